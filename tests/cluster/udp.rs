//! UDP: datagrams whole, one flow one socket, errors passed back, idle flows ended.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Server, Udp, pattern};
use libtest_mimic::{Failed, Trial};

use super::sockets::send_segmented;
use super::world::{CLIENTS, Client, Family, LIMIT, Trials, World, expect_kind};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("udp")
        .both("datagrams_of_every_size", |family| every_size(family, "1"))
        .both("datagrams_of_every_size_on_four_workers", |family| {
            every_size(family, "4")
        })
        .both("real_servers_take_equal_turns", equal_turns)
        .both("a_flow_keeps_its_source_port", one_source_port)
        .both("port_unreachable_is_passed_back", port_unreachable)
        .both("an_idle_flow_ends", idle)
        .both("segments_of_one_send_arrive_apart", segmentation_offload)
        .done()
}

/// A world with one service over UDP, 12:53, and its one real server.
fn world_with(server: Udp, arguments: &[&str]) -> Result<(World, Server, [SocketAddr; 2]), Failed> {
    let mut world = World::other()?;
    world.serve("dns", 12, &[Port::udp("dns", 53, 5300)], &[world.pod(0)])?;
    let server = world.pod(0).serve_udp(5300, server)?;
    world.start(arguments)?;
    let vips = [Family::V4, Family::V6].map(|family| world.vip_at(family, 12, 53));
    Ok((world, server, vips))
}

fn of(family: Family, vips: [SocketAddr; 2]) -> SocketAddr {
    vips[usize::from(family == Family::V6)]
}

/// Sends a datagram of so many bytes and expects it back.
fn echoed(socket: &UdpSocket, length: usize) -> Result<(), Failed> {
    let mut sent = vec![0; length];
    pattern(length as u64, &mut sent);
    socket
        .send(&sent)
        .map_err(|error| format!("{length} bytes: send: {error}"))?;
    let mut back = vec![0; 65_535];
    let received = socket
        .recv(&mut back)
        .map_err(|error| format!("{length} bytes: receive: {error}"))?;
    if back[..received] == sent {
        Ok(())
    } else {
        Err(format!("{length} bytes came back as {received}").into())
    }
}

/// None, few, around an MTU of 1450 and of 1500, many fragments, the largest
/// there is: each from the node, whose packets the kernel cuts on their way to
/// the TUN, and from a pod, which cuts them itself.
fn every_size(family: Family, workers: &str) -> Result<(), Failed> {
    let (world, _server, vips) = world_with(Udp::Echo, &["--workers", workers])?;
    let largest = match family {
        Family::V4 => 65_507,
        // 65,535 of payload less UDP's header (RFC 8200 section 3).
        Family::V6 => 65_527,
    };
    let sizes = [
        0, 1, 1402, 1403, 1422, 1423, 1452, 1453, 1472, 1473, 8000, 65_000, largest,
    ];
    for client in CLIENTS {
        let vip = of(family, vips);
        let socket = client::udp_socket(world.from(client), vip, LIMIT)?;
        for size in sizes {
            echoed(&socket, size).map_err(|error| format!("{client:?}: {error:?}"))?;
        }
        // A flow of which the first datagram is a fragmented one.
        let socket = client::udp_socket(world.from(client), vip, LIMIT)?;
        echoed(&socket, 8000)?;
        echoed(&socket, 10)?;
    }
    world.wait_for_flows("four flows", |flows| flows.len() == 4)
}

fn equal_turns(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1), world.pod(2)];
    world.serve("dns", 12, &[Port::udp("dns", 53, 5300)], &pods)?;
    let servers: Vec<Server> = pods
        .iter()
        .map(|pod| Ok(pod.serve_udp(5300, Udp::Who(pod.name().to_owned()))?))
        .collect::<Result<_, Failed>>()?;
    world.start(&[])?;
    let overlay = world.capture_overlay()?;
    let vip = world.vip_at(family, 12, 53);
    for turn in 0..12 {
        let seen = client::who_udp(world.from(CLIENTS[turn % 2]), vip, LIMIT)?;
        assert_eq!(seen.peer.ip(), world.overlay_address(family));
    }
    let accepted: Vec<usize> = servers.iter().map(Server::accepted).collect();
    assert_eq!(accepted, [4; 3]);
    let captured = overlay.stop()?;
    assert!(captured.packets().all(|packet| !packet.touches(vip.ip())));
    Ok(())
}

fn one_source_port(family: Family) -> Result<(), Failed> {
    let (world, server, vips) = world_with(Udp::Echo, &[])?;
    for client in CLIENTS {
        let before = server.peers().len();
        let sockets: Vec<UdpSocket> = (0..2)
            .map(|_| client::udp_socket(world.from(client), of(family, vips), LIMIT))
            .collect::<Result<_, _>>()?;
        for _ in 0..10 {
            sockets.iter().try_for_each(|socket| echoed(socket, 100))?;
        }
        let mut peers = server.peers().split_off(before);
        peers.sort();
        peers.dedup();
        assert_eq!(peers.len(), 2);
        let source = world.overlay_address(family);
        assert!(peers.iter().all(|peer| peer.ip() == source), "{peers:?}");
    }
    Ok(())
}

/// Nobody listens on the real server's port: its kernel says so, and the client
/// hears it. When somebody does, the same flow goes on.
fn port_unreachable(family: Family) -> Result<(), Failed> {
    let (world, server, vips) = world_with(Udp::Echo, &[])?;
    drop(server);
    let mut sockets = Vec::new();
    for client in CLIENTS {
        let socket = client::udp_socket(world.from(client), of(family, vips), LIMIT)?;
        for datagram in [&b"anyone?"[..], &[7; 3000]] {
            socket.send(datagram)?;
            expect_kind(
                socket.recv(&mut [0; 100]),
                ErrorKind::ConnectionRefused,
                &format!("receive of {client:?}"),
            )?;
        }
        sockets.push(socket);
    }
    let _server = world.pod(0).serve_udp(5300, Udp::Echo)?;
    sockets.iter().try_for_each(|socket| echoed(socket, 100))
}

fn idle(family: Family) -> Result<(), Failed> {
    let (world, server, vips) = world_with(Udp::Echo, &["--ipvs-udp-timeout", "1s"])?;
    let socket = client::udp_socket(world.from(Client::Pod), of(family, vips), LIMIT)?;
    echoed(&socket, 100)?;
    world.wait_for_flows("one flow", |flows| flows.len() == 1)?;
    world.wait_for_flows("no flow", <[_]>::is_empty)?;
    assert!(
        world
            .proxy()
            .wait_for_log("ending=\"idle\"", LIMIT)
            .is_some()
    );
    // The client notices nothing.
    echoed(&socket, 100)?;
    assert_eq!(server.accepted(), 2);
    Ok(())
}

/// A client on the node that has its kernel cut (UDP_SEGMENT): what the TUN hands
/// over is one packet, what arrives are datagrams.
fn segmentation_offload(family: Family) -> Result<(), Failed> {
    const SIZE: u16 = 1000;
    const LENGTH: usize = 10 * 1000 + 300;
    let (world, server, vips) = world_with(Udp::Echo, &[])?;
    for (turn, client) in CLIENTS.into_iter().enumerate() {
        let socket = client::udp_socket(world.from(client), of(family, vips), LIMIT)?;
        let mut payload = vec![0; LENGTH];
        pattern(0, &mut payload);
        assert_eq!(send_segmented(&socket, &payload, SIZE)?, LENGTH);
        let mut back = vec![0; 65_535];
        for expected in payload.chunks(usize::from(SIZE)) {
            let length = socket.recv(&mut back)?;
            assert_eq!(&back[..length], expected, "{client:?}");
        }
        assert_eq!(server.accepted(), 11 * (turn + 1));
    }
    Ok(())
}
