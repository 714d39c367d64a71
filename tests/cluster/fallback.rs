//! `--mode fallback`: routes that come and go as the kernel carries services.

use std::fs;
use std::io::{Read, Write};

use kube_tun_proxy::admin::api::{self, Services};
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::Tcp;
use kube_tun_proxy::lab::{ProxyOptions, client};
use libtest_mimic::{Failed, Trial};

use super::kernel::{KubeProxy, add_device, kube_proxy_table};
use super::world::{CLIENTS, Client, FAMILIES, Family, LIMIT, TUN, Trials, World, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("fallback")
        .one("comes_and_goes_with_the_kernel", comes_and_goes)
        .one("stands_by_from_the_start", stands_by)
        .done()
}

pub(crate) fn options(world: &World) -> ProxyOptions {
    world
        .options()
        .healthz(([127, 0, 0, 1], 10_266).into())
        .argument("--mode")
        .argument("fallback")
}

/// Whether anything is routed into the TUN, of both families.
pub(crate) fn is_routed(world: &World) -> Result<bool, Failed> {
    let mut found = false;
    // Routes come and go one after the other.
    wait_until("one family like the other", || {
        let (v4, v6) = routed(world)?;
        found = v4;
        Ok(v4 == v6)
    })?;
    Ok(found)
}

/// Whether anything is routed into the TUN, for IPv4 and for IPv6.
fn routed(world: &World) -> Result<(bool, bool), Failed> {
    let node = world.node().namespace();
    let read = |file: &'static str| node.run(move || fs::read_to_string(file));
    let v4 = read("/proc/thread-self/net/route")?;
    let v6 = read("/proc/thread-self/net/ipv6_route")?;
    let range = world.cluster.service_cidr6().network().octets();
    let range: String = range.iter().map(|byte| format!("{byte:02x}")).collect();
    let v4 = v4.lines().any(|line| line.starts_with(TUN));
    let v6 = v6
        .lines()
        .any(|line| line.starts_with(&range) && line.ends_with(TUN));
    Ok((v4, v6))
}

pub(crate) fn is_served(world: &World) -> Result<(), Failed> {
    for family in FAMILIES {
        for from in CLIENTS {
            client::who(world.from(from), world.vip_at(family, 1, 80), LIMIT)?;
        }
    }
    Ok(())
}

pub(crate) fn standing(world: &World) -> Result<api::Standing, Failed> {
    let services: Services = world.ask(api::SERVICES)?;
    Ok(services.fallback.ok_or("no standing")?)
}

fn readyz(world: &World) -> Result<String, Failed> {
    let proxy = world.proxy();
    let node = world.node().namespace();
    let (status, body) = client::http_get(node, proxy.healthz(), "/readyz", LIMIT)?;
    assert_eq!(status, 200, "{body}");
    Ok(body)
}

fn log_has(world: &World, words: &str, times: usize) {
    let log = world.proxy().log();
    let found = log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(found, times, "{words:?}:\n{log}");
}

fn comes_and_goes() -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("echo", 81, 8001)];
    world.serve("web", 1, &ports, &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let _echo = world.pod(0).serve_tcp(8001, Tcp::Echo)?;
    world.start_with(&options(&world))?;
    wait_until("routes", || is_routed(&world))?;
    is_served(&world)?;
    assert!(readyz(&world)?.starts_with("ready, takes part: the kernel carries no services"));
    assert!(standing(&world)?.active);

    // Neither alone is a kernel that carries: these have no IPVS to use it.
    let node = world.node().namespace().clone();
    add_device(&node, "kube-ipvs0", &["172.20.0.77".parse()?])?;
    let kube_proxy = KubeProxy::start(&node)?;
    let at = world.vip_at(Family::V4, 1, 81);
    let mut open = client::connect(world.from(Client::Pod), at, LIMIT)?;
    kube_proxy_table(&node, true)?;
    let stands_by = "fallback: stands by";
    let said = world.proxy().wait_for_log(stands_by, LIMIT);
    let said = said.ok_or("it does not stand by")?;
    assert!(said.contains("netfilter"), "{said}");
    let now = standing(&world)?;
    assert_eq!((now.active, now.changes), (false, 1));
    assert!(readyz(&world)?.starts_with("ready, stands by: kube-proxy is well"));
    let listed = world.proxy().command(&["list"])?;
    let listed = String::from_utf8(listed.stdout)?;
    assert!(listed.starts_with("Fallback stands by for "), "{listed}");

    // The flow that is open goes on, and then the routes go.
    assert!(is_routed(&world)?);
    open.write_all(b"still here")?;
    let mut answer = [0; 10];
    open.read_exact(&mut answer)?;
    assert_eq!(&answer, b"still here");
    drop(open);
    wait_until("no routes", || Ok(!is_routed(&world)?))?;

    drop(kube_proxy);
    kube_proxy_table(&node, false)?;
    wait_until("routes again", || is_routed(&world))?;
    is_served(&world)?;
    let now = standing(&world)?;
    assert_eq!((now.active, now.changes), (true, 2));
    log_has(&world, stands_by, 1);
    log_has(&world, "fallback: takes part", 2);
    Ok(())
}

fn stands_by() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let node = world.node().namespace().clone();
    let kube_proxy = KubeProxy::start(&node)?;
    kube_proxy_table(&node, true)?;
    // It is ready, beside a kube-proxy that has the usual port.
    world.start_with(&options(&world))?;
    assert!(!is_routed(&world)?);
    assert!(!standing(&world)?.active);
    drop(kube_proxy);
    kube_proxy_table(&node, false)?;
    wait_until("routes", || is_routed(&world))?;
    is_served(&world)
}
