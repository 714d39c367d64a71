//! What a client sees where nobody is to answer: refused, or nothing at all.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kube_tun_proxy::lab::capture::Protocol as Wire;
use kube_tun_proxy::lab::manifests::{self, Endpoint, Port};
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use kube_tun_proxy::lab::{ProxyProcess, client};
use kube_tun_proxy::service::Protocol;
use libtest_mimic::{Failed, Trial};

use super::sockets::{SCTP, raw};
use super::world::{
    BINARY, CLIENTS, Client, FAMILIES, Family, LIMIT, SILENCE, Trials, World, expect_kind,
    expect_refused, expect_silence, joined, syns, wait_until,
};

/// Between two files that appear: well under the 150 ms for which a file must
/// have been left alone.
const BETWEEN_FILES: Duration = Duration::from_millis(20);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("refusals")
        .both("unknown_port", unknown_port)
        .both("no_endpoints", no_endpoints)
        .both("unallocated_address", unallocated)
        .both("local_policy_without_local_endpoint", local_policy)
        .one("before_the_first_full_state", before_the_first_full_state)
        .both("sctp", sctp)
        .one("pod_traffic_never", pod_traffic_never)
        .one("a_real_server_that_is_a_virtual_ip", virtual_ip_as_endpoint)
        .done()
}

/// Another port, and the same port of the other protocol.
fn unknown_port(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5353)];
    world.serve("web", 5, &ports, &[world.pod(0)])?;
    world.start(&[])?;
    for client in CLIENTS {
        let from = world.from(client);
        for port in [81, 53] {
            expect_refused(from, world.vip_at(family, 5, port))?;
        }
        for port in [54, 80] {
            expect_udp_refused(&world, client, world.vip_at(family, 5, port))?;
        }
    }
    world.expect_reason("unknown_port")
}

fn no_endpoints(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5353)];
    world.serve("empty", 5, &ports, &[])?;
    // Endpoints that are there, but not ready.
    let vips = world.vips(6);
    let mut text = manifests::service("default", "unready", &vips, &ports);
    let addresses: [IpAddr; 2] = [
        world.pod(0).address().into(),
        world.pod(0).address6().into(),
    ];
    for pod in addresses {
        let mut endpoint = Endpoint::ready(pod);
        (endpoint.ready, endpoint.serving) = (false, false);
        let slice = format!("unready-{}", if pod.is_ipv4() { 4 } else { 6 });
        text.push_str("---\n");
        let slice = manifests::endpoint_slice("default", "unready", &slice, &ports, &[endpoint]);
        text.push_str(&slice);
    }
    world.manifests.write("unready.yaml", &text)?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&[])?;
    for client in CLIENTS {
        for number in [5, 6] {
            expect_refused(world.from(client), world.vip_at(family, number, 80))?;
            expect_udp_refused(&world, client, world.vip_at(family, number, 53))?;
        }
    }
    world.expect_reason("no_endpoints")
}

fn unallocated(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 5, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    world.start(&[])?;
    let tun = world.capture_tun()?;
    let nobody = world.vip_at(family, 6, 80);
    silent_to_all(&world, nobody)?;
    let captured = tun.stop()?;
    assert!(
        captured
            .packets()
            .all(|packet| packet.destination == nobody.ip())
    );
    world.expect_reason("unknown_address")
}

/// Real servers, but none on this node.
fn local_policy(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5353)];
    for (name, number, node) in [("far", 5, "edge-b"), ("close", 6, "edge-a")] {
        let vips = world.vips(number);
        let mut text = manifests::service("default", name, &vips, &ports);
        text.push_str("  internalTrafficPolicy: Local\n");
        let pods = [(world.pod(0), "edge-b"), (world.near(), "edge-a")];
        for family in FAMILIES {
            let on_node = pods.iter().filter(|(_, on)| *on == node);
            let endpoints: Vec<Endpoint> = on_node
                .map(|(pod, on)| {
                    let mut endpoint = Endpoint::ready(family.at(pod, 0).ip());
                    endpoint.node = Some((*on).to_owned());
                    endpoint
                })
                .collect();
            let slice = format!("{name}-{}", family.name());
            text.push_str("---\n");
            let slice = manifests::endpoint_slice("default", name, &slice, &ports, &endpoints);
            text.push_str(&slice);
        }
        world.manifests.write(&format!("{name}.yaml"), &text)?;
    }
    let _far = world.who_servers(8000)?;
    let _close = world.near().serve_tcp(8000, Tcp::Who("near".to_owned()))?;
    world.start(&[])?;
    let seen = client::who(world.from(Client::Pod), world.vip_at(family, 6, 80), LIMIT)?;
    assert_eq!(seen.name, "near");
    let overlay = world.capture_overlay()?;
    silent_to_all(&world, world.vip_at(family, 5, 80))?;
    expect_kind(
        client::udp_exchange(
            world.from(Client::Pod),
            world.vip_at(family, 5, 53),
            b"?",
            SILENCE,
        ),
        ErrorKind::WouldBlock,
        "a datagram",
    )?;
    let captured = overlay.stop()?;
    assert!(syns(captured.packets()).is_empty());
    world.expect_reason("no_local_endpoint")
}

/// Dropped, not refused, so that a client that came too early gets through when
/// it tries again.
fn before_the_first_full_state() -> Result<(), Failed> {
    let world = World::other()?;
    world.serve("web", 5, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    // The first full state is there once each file has been left alone for a
    // while, and there is always one that has not.
    let complete = AtomicBool::new(false);
    thread::scope(|scope| {
        let _complete = OnDrop(&complete);
        scope.spawn(|| {
            for number in 0.. {
                let file = world.manifests.path().join(format!("new-{number}.yaml"));
                if complete.load(Ordering::Relaxed) || fs::write(file, "").is_err() {
                    break;
                }
                thread::sleep(BETWEEN_FILES);
            }
        });
        let (node, options) = (world.node().namespace(), world.options());
        let proxy = ProxyProcess::spawn(node, Path::new(BINARY), &options)?;
        if proxy.wait_for_log("started", LIMIT).is_none() {
            return Err(format!("not started:\n{}", proxy.log()).into());
        }
        let healthz = |path| client::http_get(node, proxy.healthz(), path, LIMIT);
        let (status, body) = healthz("/readyz")?;
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("first full state"), "{body}");
        assert_eq!(healthz("/livez")?.0, 200);

        let clients: Vec<_> = FAMILIES
            .into_iter()
            .flat_map(|family| CLIENTS.map(|client| (family, client)))
            .map(|(family, client)| {
                let (from, vip) = (world.from(client).clone(), world.vip_at(family, 5, 80));
                thread::spawn(move || client::who(&from, vip, LIMIT))
            })
            .collect();
        wait_until("SYNs that are dropped", || {
            Ok(proxy.log().matches("reason=\"not_synced\"").count() >= clients.len())
        })?;
        complete.store(true, Ordering::Relaxed);
        for client in clients {
            assert_eq!(joined(client)?.name, "red");
        }
        proxy.wait_until_ready()?;
        assert_eq!(healthz("/readyz")?.0, 200);
        Ok(())
    })
}

/// Sets a flag however a scope is left.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sctp(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let mut port = Port::tcp("signal", 80, 8000);
    port.protocol = Protocol::Sctp;
    world.serve(
        "web",
        5,
        &[port, Port::tcp("web", 80, 8000)],
        &[world.pod(0)],
    )?;
    let _servers = world.who_servers(8000)?;
    world.start(&[])?;
    let vip = world.vip_at(family, 5, 80);
    let tun = world.capture_tun()?;
    for client in CLIENTS {
        // An INIT chunk's beginning (RFC 9260 section 3.3.2) is enough.
        let init = [0xc0, 0x00, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20];
        raw(world.from(client), vip.ip(), SCTP)?.send(&init)?;
    }
    world.expect_reason("sctp")?;
    // The proxy takes packets in order: with this answered, those are dealt with.
    client::who(world.from(Client::Node), vip, LIMIT)?;
    client::who(world.from(Client::Pod), vip, LIMIT)?;
    let captured = tun.stop()?;
    let (mut asked, mut answered) = (0, 0);
    for packet in captured.packets() {
        match packet.protocol {
            Wire::Other(132) => asked += 1,
            Wire::Tcp { .. } => {}
            Wire::Udp { .. } | Wire::Icmp { .. } | Wire::Other(_) => answered += 1,
        }
    }
    assert_eq!((asked, answered), (2, 0));
    Ok(())
}

fn pod_traffic_never() -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5353)];
    world.serve("web", 5, &ports, &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let _dns = world.pod(0).serve_udp(5353, Udp::Who("red".to_owned()))?;
    world.start(&["--pod-traffic", "never"])?;
    let mut silent = Vec::new();
    for family in FAMILIES {
        let (web, dns) = (world.vip_at(family, 5, 80), world.vip_at(family, 5, 53));
        let (node, pod) = (world.from(Client::Node), world.from(Client::Pod).clone());
        assert_eq!(client::who(node, web, LIMIT)?.name, "red");
        assert_eq!(client::who_udp(node, dns, LIMIT)?.name, "red");
        silent.push(thread::spawn(move || {
            expect_silence(&pod, web).map_err(|error| format!("{error:?}"))?;
            expect_kind(
                client::who_udp(&pod, dns, SILENCE),
                ErrorKind::WouldBlock,
                "a datagram from a pod",
            )
            .map_err(|error| format!("{error:?}"))
        }));
    }
    for client in silent {
        joined(client)?;
    }
    world.expect_reason("pod_traffic")
}

/// It would lead back into the TUN for ever.
fn virtual_ip_as_endpoint() -> Result<(), Failed> {
    let mut world = World::other()?;
    let port = [Port::tcp("", 80, 80)];
    world.serve_addresses("loop", 5, &port, &world.vips(5))?;
    world.serve_addresses("bad", 6, &port, &world.vips(7))?;
    world.serve("good", 7, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    world.start(&[])?;
    for family in FAMILIES {
        for client in CLIENTS {
            expect_refused(world.from(client), world.vip_at(family, 5, 80))?;
            expect_refused(world.from(client), world.vip_at(family, 6, 80))?;
            client::who(world.from(client), world.vip_at(family, 7, 80), LIMIT)?;
        }
    }
    Ok(())
}

fn expect_udp_refused(world: &World, client: Client, to: SocketAddr) -> Result<(), Failed> {
    expect_kind(
        client::udp_exchange(world.from(client), to, b"anyone?", LIMIT),
        ErrorKind::ConnectionRefused,
        &format!("a datagram from {client:?} to {to}"),
    )
}

/// Both clients at once: neither is answered.
fn silent_to_all(world: &World, to: SocketAddr) -> Result<(), Failed> {
    let clients = CLIENTS.map(|client| {
        let from = world.from(client).clone();
        thread::spawn(move || expect_silence(&from, to).map_err(|error| format!("{error:?}")))
    });
    clients.into_iter().try_for_each(joined)
}
