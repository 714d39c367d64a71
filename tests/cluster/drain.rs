//! SIGTERM: what new clients, open flows and load balancers see of a proxy that ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use kube_tun_proxy::lab::capture::{Capture, Packet};
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{How, Server, Tcp, Udp};
use kube_tun_proxy::lab::{ClusterBuilder, client};
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use crate::node_port_stage::{PORT, Stage, is_refused, web};
use crate::world::{Client, FAMILIES, LIMIT, SILENCE, Trials, World};

/// No trial waits so long: the drain ends with the last flow.
const LONG: &str = "600s";

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("drain")
        .one("node_ports_end_with_their_flows", node_ports)
        .one("a_conversation_by_udp_goes_on", conversation)
        .one("health_tells_load_balancers", health)
        .one("rst_goes_both_ways_on_the_wire", resets)
        .one(
            "rst_goes_both_ways_on_the_wire_of_a_node_port",
            node_port_resets,
        )
        .done()
}

fn stage(timeout: &str) -> Result<(Stage, Server, Server), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let tcp = cluster.pod("pod-5").serve_tcp(80, Tcp::Echo)?;
    let udp = cluster.pod("pod-5").serve_udp(80, Udp::Echo)?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &["--drain-timeout", timeout])?;
    Ok((stage, tcp, udp))
}

fn talk(stream: &mut TcpStream) -> Result<(), Failed> {
    stream.write_all(b"ping")?;
    Ok(stream.read_exact(&mut [0; 4])?)
}

fn ask(socket: &UdpSocket) -> Result<(), Failed> {
    socket.send(b"question")?;
    assert_eq!(socket.recv(&mut [0; 20])?, 8);
    Ok(())
}

/// New connections and datagrams are refused by the kernel; the open ones go on, and
/// the proxy ends with the last of them.
fn node_ports() -> Result<(), Failed> {
    let (stage, tcp, _udp) = stage(LONG)?;
    let outside = stage.cluster.outside();
    let targets = [stage.at(PORT), stage.at6(PORT)];
    let mut streams = Vec::new();
    let mut sockets = Vec::new();
    for to in targets {
        streams.push(client::connect(outside, to, LIMIT)?);
        sockets.push(client::udp_socket(outside, to, LIMIT)?);
    }
    streams.iter_mut().try_for_each(talk)?;
    sockets.iter().try_for_each(ask)?;
    stage.proxy.signal(Signal::SIGTERM)?;
    assert!(stage.proxy.wait_for_log("flows drain", LIMIT).is_some());
    for to in targets {
        let new =
            crate::node_port_stage::eventually(|| client::connect(outside, to, LIMIT), is_refused)?;
        assert!(is_refused(&new), "{to}: {new:?}");
    }
    streams.iter_mut().try_for_each(talk)?;
    sockets.iter().try_for_each(ask)?;
    drop(streams);
    // The conversations hold it until they have been silent for 5 s.
    let status = stage.proxy.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", stage.proxy.log());
    assert!(tcp.wait_for_ended(2, LIMIT));
    assert!(tcp.ended().iter().all(|ended| ended.how == How::Closed));
    Ok(())
}

/// As long as datagrams pass, the proxy stays; datagrams of others are dropped.
fn conversation() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("dns", 1, &[Port::udp("dns", 53, 5300)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_udp(5300, Udp::Echo)?;
    world.start(&["--drain-timeout", LONG])?;
    let from = world.from(Client::Pod);
    let vips = FAMILIES.map(|family| world.vip_at(family, 1, 53));
    let sockets = [
        client::udp_socket(from, vips[0], LIMIT)?,
        client::udp_socket(from, vips[1], LIMIT)?,
    ];
    sockets.iter().try_for_each(ask)?;
    world.proxy().signal(Signal::SIGTERM)?;
    assert!(world.proxy().wait_for_log("flows drain", LIMIT).is_some());
    for vip in vips {
        let other = client::udp_exchange(from, vip, b"new", SILENCE);
        assert!(other.is_err(), "{other:?}");
    }
    world.expect_reason("draining")?;
    // Each look is a datagram: longer than the silence after which a flow is over.
    for _ in 0..7 {
        std::thread::sleep(Duration::from_secs(1));
        sockets.iter().try_for_each(ask)?;
    }
    assert_eq!(world.proxy().status(), None);
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    Ok(())
}

/// Not ready and not eligible, but alive: nobody is to restart it.
fn health() -> Result<(), Failed> {
    let (stage, _tcp, _udp) = stage(LONG)?;
    let mut stream = client::connect(stage.cluster.outside(), stage.at(PORT), LIMIT)?;
    talk(&mut stream)?;
    let status = |path| {
        client::http_get(stage.master(), stage.proxy.healthz(), path, LIMIT)
            .map(|(status, _)| status)
    };
    assert_eq!((status("/healthz")?, status("/livez")?), (200, 200));
    stage.proxy.signal(Signal::SIGTERM)?;
    assert!(stage.proxy.wait_for_log("flows drain", LIMIT).is_some());
    assert_eq!(
        (status("/readyz")?, status("/healthz")?, status("/livez")?),
        (503, 503, 200)
    );
    drop(stream);
    let status = stage.proxy.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", stage.proxy.log());
    Ok(())
}

/// Waits for a reset on its way to an address.
fn expect_reset(capture: &Capture, to: impl Fn(&Packet) -> bool) -> Result<(), Failed> {
    let is_reset = |packet: &Packet| packet.tcp_flags().is_some_and(|flags| flags.rst);
    let seen = capture.wait_for(LIMIT, |packet| is_reset(packet) && to(packet));
    seen.map(drop).ok_or_else(|| "no RST was seen".into())
}

fn resets() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&["--drain-timeout", "200ms"])?;
    let (tun, overlay) = (world.capture_tun()?, world.capture_overlay()?);
    let mut streams = Vec::new();
    for family in FAMILIES {
        let vip = world.vip_at(family, 1, 80);
        streams.push(client::connect(world.from(Client::Pod), vip, LIMIT)?);
    }
    streams.iter_mut().try_for_each(talk)?;
    world.proxy().signal(Signal::SIGTERM)?;
    for stream in &streams {
        let client = stream.local_addr()?;
        expect_reset(&tun, |packet| packet.to() == client)?;
    }
    for family in FAMILIES {
        let server: SocketAddr = family.at(world.pod(0), 8000);
        expect_reset(&overlay, |packet| packet.to() == server)?;
    }
    let status = world.proxy().wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", world.proxy().log());
    Ok(())
}

/// The second signal, here, instead of the end of the time.
fn node_port_resets() -> Result<(), Failed> {
    let (stage, _tcp, _udp) = stage(LONG)?;
    let outside = stage.cluster.outside();
    // The seed's name of the underlay's interface.
    let wire = Capture::start(stage.master(), "eth0")?;
    let overlay = Capture::start(stage.master(), stage.cluster.overlay())?;
    let mut stream = client::connect(outside, stage.at(PORT), LIMIT)?;
    talk(&mut stream)?;
    stage.proxy.signal(Signal::SIGTERM)?;
    assert!(stage.proxy.wait_for_log("flows drain", LIMIT).is_some());
    talk(&mut stream)?;
    stage.proxy.signal(Signal::SIGTERM)?;
    let client = stream.local_addr()?;
    expect_reset(&wire, |packet| packet.to() == client)?;
    let server = stage.cluster.pod("pod-5").at(80);
    expect_reset(&overlay, |packet| packet.to() == server)?;
    let status = stage.proxy.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", stage.proxy.log());
    Ok(())
}
