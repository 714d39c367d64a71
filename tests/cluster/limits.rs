//! Ceilings and rates: what is above them is refused or dropped, what runs goes on.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use kube_tun_proxy::lab::capture::{Packet, Protocol as Wire};
use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use libtest_mimic::{Failed, Trial};

use super::sockets::{raw, syn, write_until_full};
use super::world::{CLIENTS, Client, Family, LIMIT, Trials, World, expect_refused, wait_until};

/// IP protocol number of TCP (IANA).
const TCP: i32 = 6;

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("limits")
        .both("max_flows", max_flows)
        .both("answered_questions_make_room", answered)
        .one("max_memory", max_memory)
        .both("a_used_up_range_of_ports", ports)
        .both("resets_are_limited", resets)
        .both("icmp_errors_are_limited", icmp_errors)
        .both("a_flood_of_syns_to_one_that_is_silent", half_open)
        .done()
}

fn max_flows(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5300)];
    world.serve("app", 4, &ports, &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let _dns = world.pod(0).serve_udp(5300, Udp::Echo)?;
    world.start(&["--max-flows", "3"])?;
    let (web, dns) = (world.vip_at(family, 4, 80), world.vip_at(family, 4, 53));
    let mut streams = Vec::new();
    for client in CLIENTS {
        streams.push(client::connect(world.from(client), web, LIMIT)?);
    }
    let socket = client::udp_socket(world.from(Client::Pod), dns, LIMIT)?;
    let mut talk = || -> Result<(), Failed> {
        for stream in &mut streams {
            stream.write_all(b"ping")?;
            stream.read_exact(&mut [0; 4])?;
        }
        socket.send(b"ping")?;
        assert_eq!(socket.recv(&mut [0; 10])?, 4);
        Ok(())
    };
    // More than a question, which would make room.
    for _ in 0..5 {
        talk()?;
    }
    for client in CLIENTS {
        expect_refused(world.from(client), web)?;
        super::world::expect_kind(
            client::udp_exchange(world.from(client), dns, b"one more", LIMIT),
            std::io::ErrorKind::ConnectionRefused,
            "a datagram",
        )?;
    }
    world.expect_reason("flow_limit")?;
    talk()?;
    // Room again.
    drop(streams.pop());
    world.wait_for_flows("two flows", |flows| flows.len() == 2)?;
    drop(client::connect(world.from(Client::Node), web, LIMIT)?);
    Ok(())
}

/// Clients that close first leave a port in TIME_WAIT each, for a minute.
fn ports(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("app", 4, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.node().namespace().set_sysctls(&[
        ("net.ipv4.ip_local_port_range", "40000 40015"),
        ("net.ipv4.tcp_tw_reuse", "0"),
    ])?;
    world.start(&[])?;
    let web = world.vip_at(family, 4, 80);
    for _ in 0..200 {
        let mut stream = client::connect(world.from(Client::Pod), web, LIMIT)?;
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(stream.read(&mut [0])?, 0);
    }
    Ok(())
}

/// As conntrack does when its table is full; what has no answer yet stays.
fn answered(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5300)];
    world.serve("app", 4, &ports, &[world.pod(0)])?;
    let silent = [Port::udp("silent", 53, 5301)];
    world.serve("silent", 5, &silent, &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let _dns = world.pod(0).serve_udp(5300, Udp::Echo)?;
    let _silent = world.pod(0).serve_udp(5301, Udp::Mute)?;
    world.start(&["--max-flows", "3", "--workers", "1"])?;
    let (web, dns) = (world.vip_at(family, 4, 80), world.vip_at(family, 4, 53));
    for _ in 0..20 {
        for client in CLIENTS {
            let answer = client::udp_exchange(world.from(client), dns, b"one more", LIMIT)?;
            assert_eq!(answer, b"one more");
        }
    }
    let mut stream = client::connect(world.from(Client::Pod), web, LIMIT)?;
    // Two that wait for an answer, and nothing can go.
    let waiting = [(); 2].map(|()| {
        let socket =
            client::udp_socket(world.from(Client::Pod), world.vip_at(family, 5, 53), LIMIT);
        socket.and_then(|socket| socket.send(b"hello?").map(|_| socket))
    });
    world.wait_for_flows("two wait", |flows| {
        let of_silent = |flow: &&kube_tun_proxy::admin::api::Flow| flow.service.contains("silent");
        flows.iter().filter(of_silent).count() == 2
    })?;
    super::world::expect_kind(
        client::udp_exchange(world.from(Client::Pod), dns, b"one more", LIMIT),
        std::io::ErrorKind::ConnectionRefused,
        "a datagram",
    )?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    drop(waiting);
    Ok(())
}

/// Connections that the real server does not read fill their rings, and with
/// these the ceiling.
fn max_memory() -> Result<(), Failed> {
    const MOST: usize = 40;
    let mut world = World::other()?;
    world.serve("hold", 4, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    world.serve("echo", 5, &[Port::tcp("", 80, 8001)], &[world.pod(0)])?;
    let hold = world.pod(0).serve_tcp(8000, Tcp::Hold)?;
    let _echo = world.pod(0).serve_tcp(8001, Tcp::Echo)?;
    world.start(&["--max-memory", "4Mi", "--workers", "1"])?;
    let vip = world.vip_at(Family::V4, 4, 80);
    let from = world.from(Client::Pod);
    let mut running = client::connect(from, world.vip_at(Family::V4, 5, 80), LIMIT)?;
    let mut full: Vec<TcpStream> = Vec::new();
    let patience = std::time::Duration::from_millis(100);
    while full.len() < MOST {
        let mut stream = match client::connect(from, vip, LIMIT) {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            Err(error) => return Err(error.into()),
        };
        write_until_full(&mut stream, 64 << 20, patience)?;
        full.push(stream);
    }
    assert!((2..MOST).contains(&full.len()), "{} flows", full.len());
    world.expect_reason("memory_limit")?;
    running.write_all(b"ping")?;
    running.read_exact(&mut [0; 4])?;
    // Room again.
    hold.release();
    full.clear();
    world.wait_for_flows("one flow", |flows| flows.len() == 1)?;
    drop(client::connect(from, vip, LIMIT)?);
    Ok(())
}

/// A flood of SYNs to a port that is not served: what goes back is bounded, and
/// another client is answered.
fn resets(family: Family) -> Result<(), Failed> {
    const SYNS: u32 = 6000;
    let mut world = World::other()?;
    world.serve("web", 4, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let options = world.options().environment("RUST_LOG", "info");
    world.start_with(&options.argument("--workers").argument("1"))?;
    let tun = world.capture_tun()?;
    let (from, to) = (
        family.at(world.client_pod(), 1),
        world.vip_at(family, 4, 81),
    );
    let socket = raw(world.from(Client::Pod), to.ip(), TCP)?;
    let began = Instant::now();
    for number in 0..SYNS {
        let from = SocketAddr::new(from.ip(), 1024 + (number % 60_000) as u16);
        socket.send(&syn(from, to, number))?;
    }
    expect_refused(world.from(Client::Node), to)?;
    let seconds = began.elapsed().as_secs() + 1;
    let captured = tun.stop()?;
    let answers = captured
        .packets()
        .filter(|packet| packet.destination == from.ip() && is_reset(packet))
        .count() as u64;
    let asked = captured
        .packets()
        .filter(|packet| packet.source == from.ip() && packet.is_syn())
        .count() as u64;
    assert!(asked > 3 * 1000, "only {asked} SYNs reached the TUN");
    // 1,000 at once and 1,000 a second (ErrorLimits).
    assert!((900..=1000 * (seconds + 1)).contains(&answers), "{answers}");
    Ok(())
}

fn icmp_errors(family: Family) -> Result<(), Failed> {
    const DATAGRAMS: u64 = 2000;
    let mut world = World::other()?;
    world.serve("dns", 4, &[Port::udp("", 53, 5300)], &[])?;
    let options = world.options().environment("RUST_LOG", "info");
    world.start_with(&options.argument("--workers").argument("1"))?;
    let tun = world.capture_tun()?;
    let vip = world.vip_at(family, 4, 53);
    let socket = client::udp_socket(world.from(Client::Pod), vip, LIMIT)?;
    let began = Instant::now();
    for _ in 0..DATAGRAMS {
        // An error that came back is told by the next call, which sends nothing.
        while socket.send(b"?").is_err() {}
    }
    super::world::expect_kind(
        client::udp_exchange(world.from(Client::Node), vip, b"?", LIMIT),
        std::io::ErrorKind::ConnectionRefused,
        "a datagram of another client",
    )?;
    let seconds = began.elapsed().as_secs() + 1;
    let to_pod = family.at(world.client_pod(), 0).ip();
    let answers = count(&tun.stop()?.packets().collect::<Vec<_>>(), to_pod);
    // 100 at once and 100 a second (ErrorLimits).
    assert!((90..=100 * (seconds + 1)).contains(&answers), "{answers}");
    Ok(())
}

/// More half-open connections than one client may have: dropped, not refused,
/// and other clients are served.
fn half_open(family: Family) -> Result<(), Failed> {
    const SYNS: u32 = 3000;
    let mut world = World::other()?;
    let silent = super::failover::silent_addresses(&world)?;
    world.serve_addresses("gone", 4, &[Port::tcp("", 80, 8000)], &silent)?;
    world.serve("web", 5, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    world.start(&["--workers", "1", "--connect-timeout", "60s"])?;
    let tun = world.capture_tun()?;
    let (from, to) = (
        family.at(world.client_pod(), 1),
        world.vip_at(family, 4, 80),
    );
    let socket = raw(world.from(Client::Pod), to.ip(), TCP)?;
    for number in 0..SYNS {
        let from = SocketAddr::new(from.ip(), 1024 + number as u16);
        socket.send(&syn(from, to, number))?;
    }
    world.expect_reason("half_open_limit")?;
    wait_until("the dials", || Ok(world.flows()?.len() >= 1000))?;
    assert!(world.flows()?.len() <= 1024, "{}", world.flows()?.len());
    let seen = client::who(world.from(Client::Node), world.vip_at(family, 5, 80), LIMIT)?;
    assert_eq!(seen.name, "red");
    let packets: Vec<_> = tun.stop()?.packets().collect();
    let answers = packets
        .iter()
        .filter(|packet| packet.destination == from.ip() && packet.source == to.ip());
    assert_eq!(answers.count(), 0);
    Ok(())
}

fn is_reset(packet: &Packet) -> bool {
    packet.tcp_flags().is_some_and(|flags| flags.rst)
}

/// ICMP messages to an address.
fn count(packets: &[Packet], to: IpAddr) -> u64 {
    let errors = packets
        .iter()
        .filter(|packet| packet.destination == to && matches!(packet.protocol, Wire::Icmp { .. }));
    errors.count() as u64
}
