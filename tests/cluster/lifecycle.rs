//! The end of a proxy, and the next one's beginning.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{How, Server, Tcp, Udp};
use libtest_mimic::{Failed, Trial};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;

use super::world::{
    CLIENTS, Client, FAMILIES, Family, LIMIT, TUN, Trials, World, expect_kind, expect_silence,
    joined, wait_until,
};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("lifecycle")
        .one("sigterm_drains", || drains(Signal::SIGTERM))
        .one("sigint_drains", || drains(Signal::SIGINT))
        .one("a_second_signal_ends_at_once", second_signal)
        .one("the_time_to_drain_is_over", drain_timeout)
        .one("udp_does_not_hold_it_up", udp_does_not_hold_it_up)
        .one("sigkill_leaves_nothing", sigkill)
        .both("restarted_after_sigkill", restarted)
        .one("the_device_is_deleted", device_deleted)
        .done()
}

/// Whether the proxy's node has a device of this name.
pub(crate) fn has_link(world: &World, name: &str) -> bool {
    let node = world.node().namespace();
    node.run(|| if_nametoindex(name).is_ok())
}

/// A world with 1:80, and connections to it from everywhere.
fn world_with(arguments: &[&str]) -> Result<(World, Server, Vec<TcpStream>), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5300)];
    world.serve("web", 1, &ports, &[world.pod(0)])?;
    let server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(arguments)?;
    let mut streams = Vec::new();
    for family in FAMILIES {
        for client in CLIENTS {
            let vip = world.vip_at(family, 1, 80);
            streams.push(client::connect(world.from(client), vip, LIMIT)?);
        }
    }
    talk(&mut streams)?;
    Ok((world, server, streams))
}

fn talk(streams: &mut [TcpStream]) -> Result<(), Failed> {
    for stream in streams {
        stream.write_all(b"ping")?;
        stream.read_exact(&mut [0; 4])?;
    }
    Ok(())
}

/// Device, addresses and routes of the proxy, as the node's kernel has them.
fn traces(world: &World) -> Vec<String> {
    let node = world.node().namespace();
    let files = ["dev", "route", "ipv6_route", "if_inet6", "fib_trie"];
    let texts = node.run(|| {
        files.map(|file| {
            fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
        })
    });
    let lines = texts.iter().flat_map(|text| text.lines());
    let ours = [TUN, "172.20.0.0", "169.254.84.78"];
    lines
        .filter(|line| ours.iter().any(|ours| line.contains(ours)))
        .map(str::to_owned)
        .collect()
}

fn drains(signal: Signal) -> Result<(), Failed> {
    let (world, server, mut streams) = world_with(&["--drain-timeout", "60s"])?;
    assert!(!traces(&world).is_empty());
    world.proxy().signal(signal)?;
    assert!(world.proxy().wait_for_log("flows drain", LIMIT).is_some());
    let node = world.node().namespace();
    let ready = client::http_get(node, world.proxy().healthz(), "/readyz", LIMIT)?;
    assert_eq!(ready.0, 503, "{}", ready.1);
    // The open ones go on, new ones are dropped.
    talk(&mut streams)?;
    let new = CLIENTS.map(|client| {
        let (from, vip) = (world.from(client).clone(), world.vip_at(Family::V4, 1, 80));
        thread::spawn(move || expect_silence(&from, vip).map_err(|error| format!("{error:?}")))
    });
    new.into_iter().try_for_each(joined)?;
    world.expect_reason("draining")?;
    talk(&mut streams)?;
    assert_eq!(world.proxy().status(), None);
    drop(streams);
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    assert!(server.wait_for_ended(4, LIMIT));
    assert!(server.ended().iter().all(|ended| ended.how == How::Closed));
    assert_eq!(traces(&world), [""; 0]);
    assert!(!world.proxy().admin_socket().exists());
    Ok(())
}

/// Both ends see RST.
fn second_signal() -> Result<(), Failed> {
    let (world, server, streams) = world_with(&["--drain-timeout", "60s"])?;
    world.proxy().signal(Signal::SIGTERM)?;
    assert!(world.proxy().wait_for_log("flows drain", LIMIT).is_some());
    world.proxy().signal(Signal::SIGINT)?;
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    cut(&server, streams)?;
    assert_eq!(traces(&world), [""; 0]);
    Ok(())
}

fn drain_timeout() -> Result<(), Failed> {
    let (world, server, streams) = world_with(&["--drain-timeout", "300ms"])?;
    world.proxy().signal(Signal::SIGTERM)?;
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    cut(&server, streams)
}

fn cut(server: &Server, streams: Vec<TcpStream>) -> Result<(), Failed> {
    for mut stream in streams {
        expect_kind(stream.read(&mut [0]), ErrorKind::ConnectionReset, "a read")?;
    }
    assert!(server.wait_for_ended(4, LIMIT));
    assert!(server.ended().iter().all(|ended| ended.how == How::Reset));
    Ok(())
}

/// A conversation has no end: it is waited for while it goes on, and 5 s.
fn udp_does_not_hold_it_up() -> Result<(), Failed> {
    let (world, _server, streams) = world_with(&["--drain-timeout", "600s"])?;
    let _dns = world.pod(0).serve_udp(5300, Udp::Echo)?;
    let vip = world.vip_at(Family::V6, 1, 53);
    client::udp_exchange(world.from(Client::Node), vip, b"?", LIMIT)?;
    drop(streams);
    world.proxy().signal(Signal::SIGTERM)?;
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    Ok(())
}

fn sigkill() -> Result<(), Failed> {
    let (mut world, server, streams) = world_with(&[])?;
    world.proxy_mut().kill()?;
    wait_until("no trace", || Ok(traces(&world).is_empty()))?;
    // The kernel closes the sockets to real servers.
    assert!(server.wait_for_ended(4, LIMIT));
    drop(streams);
    Ok(())
}

/// The next one finds nothing in its way, the old one's admin socket included,
/// and old connections end when they are next used.
fn restarted(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let directory = kube_tun_proxy::lab::TempDir::new()?;
    let socket = directory.path().join("run/admin.sock");
    let options = world.options().admin_socket(&socket);
    world.start_with(&options)?;
    let vip = world.vip_at(family, 1, 80);
    let mut streams = Vec::new();
    for client in CLIENTS {
        streams.push(client::connect(world.from(client), vip, LIMIT)?);
    }
    talk(&mut streams)?;
    world.proxy_mut().kill()?;
    assert!(socket.exists());
    world.start_with(&options)?;
    world.wait_for_real_servers(vip, &[family.at(world.pod(0), 8000)])?;
    assert_eq!(world.flows()?, []);
    for (stream, client) in streams.iter_mut().zip(CLIENTS) {
        stream.write_all(b"still there?")?;
        expect_kind(
            stream.read(&mut [0]),
            ErrorKind::ConnectionReset,
            &format!("a read of {client:?}"),
        )?;
        talk(&mut [client::connect(world.from(client), vip, LIMIT)?])?;
    }
    Ok(())
}

fn device_deleted() -> Result<(), Failed> {
    let (world, server, streams) = world_with(&["--workers", "2"])?;
    world.node().delete_link(TUN)?;
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    let log = world.proxy().log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the data plane has failed"), "{log}");
    assert!(server.wait_for_ended(4, LIMIT));
    drop(streams);
    Ok(())
}
