//! Real servers that refuse or stay silent.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use libtest_mimic::{Failed, Trial};

use super::world::{
    CLIENTS, Client, Family, LIMIT, Trials, World, expect_refused, expect_silence, joined, syns,
};

/// Hosts on the other node's pod network that nobody has; packets to them vanish.
const SILENT: [u32; 2] = [200, 201];

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("failover")
        .both("one_that_refuses_is_stepped_over", refusing)
        .both("one_that_is_silent_is_stepped_over", silent)
        .both("all_refuse", all_refuse)
        .both("all_silent", all_silent)
        .both("one_refuses_and_one_is_silent", refused_and_silent)
        .both("no_more_attempts_than_allowed", attempts)
        .both("a_repeated_syn_joins_the_dial", repeated_syn)
        .done()
}

fn refusing(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1), world.pod(2)];
    world.serve("trio", 8, &[Port::tcp("", 80, 7000)], &pods)?;
    let mut servers = world.who_servers(7000)?;
    servers.remove(1);
    world.start(&[])?;
    let vip = world.vip_at(family, 8, 80);
    let overlay = world.capture_overlay()?;
    for turn in 0..6 {
        let seen = client::who(world.from(CLIENTS[turn % 2]), vip, LIMIT)?;
        assert_ne!(seen.name, "green");
    }
    // Two or three of six picks begin with it, as the rotation began.
    let tried = syns(overlay.stop()?.packets());
    let to_green = tried
        .iter()
        .filter(|syn| syn.to() == family.at(world.pod(1), 7000))
        .count();
    assert!((2..=3).contains(&to_green), "{to_green} of {tried:?}");
    assert_eq!(tried.len(), 6 + to_green);
    assert_eq!(failed_attempts(&world, vip)?, to_green);
    Ok(())
}

fn silent(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let silent = silent_addresses(&world)?;
    let addresses = [
        silent[0],
        silent[1],
        world.pod(2).address().into(),
        world.pod(2).address6().into(),
    ];
    world.serve_addresses("half", 8, &[Port::tcp("", 80, 7000)], &addresses)?;
    let _servers = world.who_servers(7000)?;
    world.start(&["--connect-timeout", "300ms"])?;
    let vip = world.vip_at(family, 8, 80);
    for client in CLIENTS {
        // Two picks: one of them begins with the silent one.
        let mut slowest = Duration::ZERO;
        for _ in 0..2 {
            let began = Instant::now();
            let seen = client::who(world.from(client), vip, LIMIT)?;
            assert_eq!(seen.name, "blue");
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest >= Duration::from_millis(300), "{slowest:?}");
    }
    Ok(())
}

fn all_refuse(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let pods = [world.pod(0), world.near()];
    world.serve("none", 8, &[Port::tcp("", 80, 7000)], &pods)?;
    world.start(&[])?;
    let tun = world.capture_tun()?;
    let vip = world.vip_at(family, 8, 80);
    for client in CLIENTS {
        expect_refused(world.from(client), vip)?;
    }
    world.expect_reason("connect_failed")?;
    let captured = tun.stop()?;
    let accepted = captured.packets().filter(|packet| {
        packet
            .tcp_flags()
            .is_some_and(|flags| flags.syn && flags.ack)
    });
    assert_eq!(accepted.count(), 0);
    Ok(())
}

fn all_silent(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let silent = silent_addresses(&world)?;
    world.serve_addresses("gone", 8, &[Port::tcp("", 80, 7000)], &silent)?;
    world.start(&["--connect-timeout", "200ms"])?;
    let tun = world.capture_tun()?;
    let vip = world.vip_at(family, 8, 80);
    let clients = CLIENTS.map(|client| {
        let from = world.from(client).clone();
        thread::spawn(move || expect_silence(&from, vip).map_err(|error| format!("{error:?}")))
    });
    for client in clients {
        joined(client)?;
    }
    world.expect_reason("connect_timeout")?;
    let captured = tun.stop()?;
    let packets: Vec<_> = captured.packets().collect();
    assert!(
        packets.len() >= 2 && packets.iter().all(|packet| packet.is_syn()),
        "{packets:?}"
    );
    Ok(())
}

/// One that refuses is an answer, whatever the others do.
fn refused_and_silent(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let silent = silent_addresses(&world)?;
    let addresses = [
        silent[0],
        silent[1],
        world.pod(0).address().into(),
        world.pod(0).address6().into(),
    ];
    world.serve_addresses("neither", 8, &[Port::tcp("", 80, 7000)], &addresses)?;
    world.start(&["--connect-timeout", "200ms"])?;
    for client in CLIENTS {
        expect_refused(world.from(client), world.vip_at(family, 8, 80))?;
    }
    Ok(())
}

fn attempts(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1), world.pod(2)];
    world.serve("trio", 8, &[Port::tcp("", 80, 7000)], &pods)?;
    world.start(&["--connect-attempts", "2"])?;
    let overlay = world.capture_overlay()?;
    expect_refused(world.from(Client::Pod), world.vip_at(family, 8, 80))?;
    let tried = syns(overlay.stop()?.packets());
    assert_eq!(tried.len(), 2);
    assert_ne!(tried[0].to(), tried[1].to());
    Ok(())
}

/// The client repeats its SYN after a second; by then a real server is being
/// dialled, and stays the only one until its time is over.
fn repeated_syn(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let silent = silent_addresses(&world)?;
    let addresses = [
        silent[0],
        silent[1],
        world.pod(0).address().into(),
        world.pod(0).address6().into(),
    ];
    world.serve_addresses("half", 8, &[Port::tcp("", 80, 7000)], &addresses)?;
    let _servers = world.who_servers(7000)?;
    world.start(&["--connect-timeout", "1500ms"])?;
    let vip = world.vip_at(family, 8, 80);
    let (tun, overlay) = (world.capture_tun()?, world.capture_overlay()?);
    for _ in 0..2 {
        let seen = client::who(world.from(Client::Pod), vip, LIMIT)?;
        assert_eq!(seen.name, "red");
    }
    let (tun, overlay) = (tun.stop()?, overlay.stop()?);
    let dials = syns(overlay.packets());
    let mut to_silent: Vec<_> = dials
        .iter()
        .filter(|syn| silent.contains(&syn.destination))
        .map(|syn| syn.from())
        .collect();
    // The kernel repeats the proxy's SYN too, from the same port.
    to_silent.dedup();
    assert!(!to_silent.is_empty(), "{dials:?}");
    assert_eq!(to_silent.len(), failed_attempts(&world, vip)?, "{dials:?}");
    let mut to_red: Vec<_> = dials
        .iter()
        .filter(|syn| syn.to() == family.at(world.pod(0), 7000))
        .map(|syn| syn.from())
        .collect();
    to_red.dedup();
    assert_eq!(to_red.len(), 2, "{dials:?}");
    let from_client = syns(tun.packets());
    assert!(
        from_client.len() >= 3,
        "no SYN was repeated: {from_client:?}"
    );
    // Each SYN-ACK that the client sees stands behind one of a real server. The
    // captures are two threads: what comes at the same moment has no order.
    let accepts = |captured: &kube_tun_proxy::lab::capture::Captured| -> Vec<_> {
        captured
            .frames
            .iter()
            .filter(|frame| {
                frame
                    .packet()
                    .and_then(|packet| packet.tcp_flags())
                    .is_some_and(|flags| flags.syn && flags.ack)
            })
            .map(|frame| frame.at)
            .collect()
    };
    let (to_client, from_red) = (accepts(&tun), accepts(&overlay));
    assert_eq!((to_client.len(), from_red.len()), (2, 2));
    for (client, red) in to_client.iter().zip(&from_red) {
        assert!(*client + Duration::from_millis(100) > *red);
    }
    Ok(())
}

/// Attempts to connect that failed, as `list` knows them.
fn failed_attempts(world: &World, vip: SocketAddr) -> Result<usize, Failed> {
    let services = world.services()?;
    let server = services.iter().find(|server| server.address == vip);
    let real_servers = server.iter().flat_map(|server| &server.real_servers);
    let failed: u64 = real_servers.map(|real| real.failed_attempts).sum();
    Ok(usize::try_from(failed)?)
}

/// Addresses of both families on the other node's pod network to which packets
/// vanish.
pub(crate) fn silent_addresses(world: &World) -> Result<[IpAddr; 2], Failed> {
    let node = world.other_node();
    let v4 = u32::from(node.pod_cidr().network()) + SILENT[0];
    let v6 = u128::from(node.overlay_address6()) + u128::from(SILENT[1]);
    let addresses = [
        std::net::Ipv4Addr::from(v4).into(),
        std::net::Ipv6Addr::from(v6).into(),
    ];
    for address in addresses {
        node.silence(address)?;
    }
    Ok(addresses)
}
