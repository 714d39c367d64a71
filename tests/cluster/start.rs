//! What a proxy that cannot start says, and with which status it ends: 3 where
//! the node lacks something, with the mend; 2 for wrong usage; else 1.

use std::path::Path;
use std::thread;

use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::{LabError, ProxyOptions, ProxyProcess, client};
use libtest_mimic::{Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::world::{BINARY, Client, Family, LIMIT, TUN, Trials, World};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("start")
        .one("the_name_of_the_device_is_taken", name_taken)
        .one("a_route_is_in_the_way", route_conflict)
        .one("no_capability", no_capability)
        .one("no_tun_driver", no_tun_driver)
        .one("the_port_of_healthz_is_taken", healthz_taken)
        .one("wrong_usage", wrong_usage)
        .done()
}

/// Another port for health: not what the second proxy fails for.
fn beside(world: &World) -> ProxyOptions {
    world
        .options()
        .healthz(([127, 0, 0, 1], 20_256).into())
        .metrics(([127, 0, 0, 1], 20_249).into())
}

/// Starts a proxy that cannot, and expects it to say this.
fn expect_failure(
    world: &World,
    options: &ProxyOptions,
    status: i32,
    says: &[&str],
) -> Result<(), Failed> {
    let node = world.node().namespace();
    ended_so(
        &ProxyProcess::spawn(node, Path::new(BINARY), options)?,
        status,
        says,
    )
}

fn ended_so(proxy: &ProxyProcess, status: i32, says: &[&str]) -> Result<(), Failed> {
    let ended = proxy.wait(LIMIT).ok_or("it runs")?;
    let log = proxy.log();
    assert_eq!(ended.code(), Some(status), "{log}");
    for part in says {
        assert!(log.contains(part), "{part:?} is not in:\n{log}");
    }
    Ok(())
}

/// What runs is not touched by what does not start.
fn still_serves(world: &World) -> Result<(), Failed> {
    for family in [Family::V4, Family::V6] {
        client::who(world.from(Client::Pod), world.vip_at(family, 1, 80), LIMIT)?;
    }
    Ok(())
}

fn name_taken() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    world.start(&[])?;
    // A TUN, and a device of another kind.
    let mend = format!("ip link delete {TUN}");
    expect_failure(&world, &beside(&world), 3, &[TUN, &mend, "--tun-name"])?;
    let bridge = beside(&world).argument("--tun-name").argument("pods0");
    expect_failure(
        &world,
        &bridge,
        3,
        &["there is a network device pods0 already"],
    )?;
    still_serves(&world)
}

fn route_conflict() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    world.start(&[])?;
    let other = beside(&world)
        .argument("--tun-name")
        .argument("svc-tun1")
        .argument("--tun-address")
        .argument("169.254.1.2,fdaf::2");
    let says = [
        "cannot route 172.20.0.0/20",
        "dev svc-tun0",
        "ip route delete",
    ];
    expect_failure(&world, &other, 3, &says)?;
    still_serves(&world)?;
    // Nothing is left of the one that failed.
    assert!(!super::lifecycle::has_link(&world, "svc-tun1"));
    // The pods' own network.
    let overlapping = ProxyOptions::new(world.manifests.path(), &["10.44.64.0/18".parse()?])
        .healthz(([127, 0, 0, 1], 20_256).into())
        .metrics(([127, 0, 0, 1], 20_249).into())
        .argument("--tun-name")
        .argument("svc-tun1")
        .argument("--tun-address")
        .argument("169.254.1.2,fdaf::2");
    expect_failure(&world, &overlapping, 3, &["10.44.64.0/18", "dev vx9"])
}

fn no_capability() -> Result<(), Failed> {
    let world = World::other()?;
    let options = world.options().unprivileged();
    let says = [
        "CAP_NET_ADMIN",
        "setcap cap_net_admin+ep",
        "--cap-add NET_ADMIN",
    ];
    expect_failure(&world, &options, 3, &says)
}

/// A thread with mounts of its own, in which `/dev/net` is empty; the process that
/// it starts has them too.
fn no_tun_driver() -> Result<(), Failed> {
    let world = World::other()?;
    let (node, options) = (world.node().namespace().clone(), world.options());
    let starting = thread::spawn(move || -> Result<ProxyProcess, LabError> {
        let failed = |cause: nix::Error| LabError::ProxyStart {
            binary: BINARY.into(),
            cause: cause.into(),
        };
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed)?;
        mount(
            Some("none"),
            "/dev/net",
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .map_err(failed)?;
        ProxyProcess::spawn(&node, Path::new(BINARY), &options)
    });
    let proxy = super::world::joined(starting)?;
    ended_so(
        &proxy,
        3,
        &["/dev/net/tun", "modprobe tun", "--device /dev/net/tun"],
    )
}

fn healthz_taken() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.start(&[])?;
    let other = world.options().argument("--tun-name").argument("svc-tun1");
    let says = ["127.0.0.1:10256", "--healthz-bind-address"];
    expect_failure(&world, &other, 1, &says)?;
    assert!(!super::lifecycle::has_link(&world, "svc-tun1"));
    Ok(())
}

fn wrong_usage() -> Result<(), Failed> {
    let world = World::other()?;
    for (flag, value, says) in [
        ("--workers", "0", "--workers"),
        ("--connect-timeout", "soon", "--connect-timeout"),
        ("--tun-name", "longer-than-15-bytes", "--tun-name"),
        (
            "--masquerade-source",
            "10.1.15.0,10.1.15.1",
            "--masquerade-source",
        ),
        ("--no-such-flag", "1", "--no-such-flag"),
    ] {
        let options = world.options().argument(flag).argument(value);
        expect_failure(&world, &options, 2, &[says])?;
    }
    Ok(())
}
