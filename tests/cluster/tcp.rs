//! TCP to a service with usable endpoints: who answers, and whom it sees.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::thread;

use kube_tun_proxy::lab::capture::{Captured, Packet};
use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};

use super::closing::world_with;
use super::world::{CLIENTS, Client, FAMILIES, Family, LIMIT, Trials, World, joined, syns};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("tcp")
        .one("the_seed_s_service", the_seed_s_service)
        .both("real_servers_take_equal_turns", equal_turns)
        .both("equal_turns_for_clients_at_once", equal_turns_at_once)
        .both("several_ports_of_one_service", several_ports)
        .both(
            "a_request_completes_the_handshake",
            request_in_the_handshake,
        )
        .both("who_speaks_first_is_not_kept_waiting", speaks_first)
        .both("masquerade_as_the_route_says", masquerade_auto)
        .one("masquerade_as_an_interface", masquerade_interface)
        .one("masquerade_as_an_address", masquerade_address)
        .done()
}

/// As the seed has it: 10.0.0.3:443 arrives at 10.1.65.5:443 from 10.1.15.0, and
/// the service's address stays between client and proxy.
fn the_seed_s_service() -> Result<(), Failed> {
    let mut world = World::seed()?;
    let port = Port::tcp("https", 443, 443);
    world.serve("metrics-server", 3, &[port], &[world.pod(0)])?;
    let _servers = world.who_servers(443)?;
    world.start(&[])?;
    let overlay = world.capture_overlay()?;
    let loopback = kube_tun_proxy::lab::capture::Capture::start(world.node().namespace(), "lo")?;
    for client in CLIENTS {
        let seen = client::who(world.from(client), "10.0.0.3:443".parse()?, LIMIT)?;
        assert_eq!(seen.name, "pod-5");
        assert_eq!(seen.peer.ip(), IpAddr::from([10, 1, 15, 0]), "{client:?}");
    }
    let captured = overlay.stop()?;
    for syn in syns(captured.packets()) {
        assert_eq!(syn.source, IpAddr::from([10, 1, 15, 0]));
        assert_eq!(syn.to(), "10.1.65.5:443".parse()?);
    }
    let vip = IpAddr::from([10, 0, 0, 3]);
    assert_eq!(syns(captured.packets()).len(), 2);
    assert!(captured.packets().all(|packet| !packet.touches(vip)));
    assert!(
        loopback
            .stop()?
            .packets()
            .all(|packet| !packet.touches(vip))
    );
    Ok(())
}

fn equal_turns(family: Family) -> Result<(), Failed> {
    const TURNS: usize = 3;
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1), world.pod(2)];
    world.serve("trio", 77, &[Port::tcp("", 8080, 9090)], &pods)?;
    let _servers = world.who_servers(9090)?;
    world.start(&[])?;
    let vip = world.vip_at(family, 77, 8080);
    // One rotation for all clients: they take turns here.
    let mut names = Vec::new();
    for turn in 0..TURNS * 3 {
        let seen = client::who(world.from(CLIENTS[turn % 2]), vip, LIMIT)?;
        assert_eq!(seen.peer.ip(), world.overlay_address(family));
        names.push(seen.name);
    }
    let mut distinct = names[..3].to_vec();
    distinct.sort();
    assert_eq!(distinct, ["blue", "green", "red"]);
    assert!(names.chunks(3).all(|turn| turn == &names[..3]), "{names:?}");
    Ok(())
}

fn equal_turns_at_once(family: Family) -> Result<(), Failed> {
    const CLIENTS_AT_ONCE: usize = 6;
    const EACH: usize = 10;
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1), world.pod(2)];
    world.serve("trio", 4000, &[Port::tcp("", 1, 65_535)], &pods)?;
    let servers = world.who_servers(65_535)?;
    world.start(&[])?;
    let vip = world.vip_at(family, 4000, 1);
    let threads: Vec<_> = (0..CLIENTS_AT_ONCE)
        .map(|number| {
            let from = world.from(CLIENTS[number % 2]).clone();
            thread::spawn(move || {
                (0..EACH).try_for_each(|_| client::who(&from, vip, LIMIT).map(drop))
            })
        })
        .collect();
    for thread in threads {
        joined(thread)?;
    }
    let accepted: Vec<usize> = servers.iter().map(|server| server.accepted()).collect();
    assert_eq!(accepted, [CLIENTS_AT_ONCE * EACH / 3; 3]);
    Ok(())
}

/// A rotation for each port, and two services that share real servers.
fn several_ports(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("admin", 81, 8001)];
    world.serve("web", 5, &ports, &[world.pod(0), world.pod(1)])?;
    world.serve("again", 6, &ports[..1], &[world.pod(0), world.pod(1)])?;
    let web = world.who_servers(8000)?;
    let admin = world.who_servers(8001)?;
    world.start(&[])?;
    for (number, port) in [(5, 80), (5, 81), (6, 80), (5, 80), (5, 81), (6, 80)] {
        client::who(
            world.from(Client::Pod),
            world.vip_at(family, number, port),
            LIMIT,
        )?;
    }
    let counts = |servers: &[kube_tun_proxy::lab::servers::Server]| -> Vec<usize> {
        servers.iter().map(|server| server.accepted()).collect()
    };
    assert_eq!(counts(&web), [2, 2, 0]);
    assert_eq!(counts(&admin), [1, 1, 0]);
    Ok(())
}

/// flannel.1's address for pods of other nodes, cni0's for those of this one.
fn masquerade_auto(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let port = Port::tcp("", 443, 6443);
    world.serve("mixed", 9, &[port], &[world.pod(0), world.near()])?;
    let _servers = world.who_servers(6443)?;
    let _near = world.near().serve_tcp(6443, Tcp::Who("near".to_owned()))?;
    world.start(&[])?;
    let overlay = world.capture_overlay()?;
    let vip = world.vip_at(family, 9, 443);
    for client in CLIENTS {
        let seen: BTreeMap<String, IpAddr> = (0..2)
            .map(|_| {
                let seen = client::who(world.from(client), vip, LIMIT)?;
                Ok((seen.name, seen.peer.ip()))
            })
            .collect::<Result<_, Failed>>()?;
        assert_eq!(seen["red"], world.overlay_address(family), "{client:?}");
        assert_eq!(seen["near"], world.bridge_address(family), "{client:?}");
    }
    let captured = overlay.stop()?;
    let opened: Vec<(IpAddr, SocketAddr)> = syns(captured.packets())
        .iter()
        .map(|syn| (syn.source, syn.to()))
        .collect();
    let expected = (world.overlay_address(family), family.at(world.pod(0), 6443));
    assert_eq!(opened, [expected; 2]);
    assert!(captured.packets().all(|packet| !packet.touches(vip.ip())));
    Ok(())
}

fn masquerade_interface() -> Result<(), Failed> {
    let source = |world: &World, family| world.bridge_address(family);
    masquerade_as("pods0", source)
}

fn masquerade_address() -> Result<(), Failed> {
    let source = |_: &World, family| match family {
        Family::V4 => IpAddr::from([10, 44, 3, 1]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x44, 3, 0, 0, 0, 1]),
    };
    masquerade_as("10.44.3.1,fd00:10:44:3::1", source)
}

fn masquerade_as(argument: &str, source: impl Fn(&World, Family) -> IpAddr) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("one", 9, &[Port::tcp("", 443, 6443)], &[world.pod(0)])?;
    let _servers = world.who_servers(6443)?;
    world.start(&["--masquerade-source", argument])?;
    for family in FAMILIES {
        for client in CLIENTS {
            let seen = client::who(world.from(client), world.vip_at(family, 9, 443), LIMIT)?;
            assert_eq!(seen.peer.ip(), source(&world, family), "{client:?}");
        }
    }
    Ok(())
}

/// What the real server hears right after the SYN of each connection.
fn after_syns(captured: &Captured, server: SocketAddr) -> Vec<Packet> {
    let heard: Vec<Packet> = captured
        .packets()
        .filter(|packet| packet.to() == server)
        .collect();
    heard
        .iter()
        .enumerate()
        .filter(|(_, packet)| packet.is_syn())
        .filter_map(|(at, syn)| {
            let mut later = heard[at + 1..].iter();
            later.find(|packet| packet.from() == syn.from()).cloned()
        })
        .collect()
}

/// A client that asks at once: no packet only says that the connection is there. One that
/// takes longer than ten milliseconds gets it, so that not all can be asked for.
fn request_in_the_handshake(family: Family) -> Result<(), Failed> {
    const REQUESTS: usize = 40;
    let (world, _server) = world_with(Tcp::Http("web".into()), &[])?;
    let overlay = world.capture_overlay()?;
    let vip = world.vip_at(family, 8, 80);
    for turn in 0..REQUESTS {
        let (status, _) = client::http_get(world.from(CLIENTS[turn % 2]), vip, "/", LIMIT)?;
        assert_eq!(status, 200);
    }
    let second = after_syns(&overlay.stop()?, family.at(world.pod(0), 7000));
    assert_eq!(second.len(), REQUESTS);
    let with_data = second.iter().filter(|packet| !packet.payload.is_empty());
    assert!(with_data.count() > 0, "{second:?}");
    Ok(())
}

/// A real server that speaks first hears of the handshake without data, and, once it is
/// known to do so, before the client could send any.
fn speaks_first(family: Family) -> Result<(), Failed> {
    let (world, _server) = world_with(Tcp::Who("who".into()), &[])?;
    let overlay = world.capture_overlay()?;
    let vip = world.vip_at(family, 8, 80);
    // It is told of after the greeting has passed.
    client::who(world.from(CLIENTS[0]), vip, LIMIT)?;
    for turn in 0..10 {
        // Says something at once, as no client of such a server would.
        let mut stream = client::connect(world.from(CLIENTS[turn % 2]), vip, LIMIT)?;
        stream.write_all(b"hello\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
    }
    let second = after_syns(&overlay.stop()?, family.at(world.pod(0), 7000));
    assert_eq!(second.len(), 11);
    assert!(
        second.iter().all(|packet| packet.payload.is_empty()),
        "{second:?}"
    );
    Ok(())
}
