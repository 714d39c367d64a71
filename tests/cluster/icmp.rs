//! Echo requests to virtual IPs.

use std::io::ErrorKind;
use std::time::Duration;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use libtest_mimic::{Failed, Trial};

use super::world::{CLIENTS, Family, LIMIT, Trials, World, expect_kind};

/// How long an answer would take to come that must not: there is nothing that
/// repeats a ping.
const NO_ANSWER: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("icmp")
        .both("a_virtual_ip_answers", answers)
        .both("pings_are_not_answered_when_told_so", answer_ping_false)
        .done()
}

/// With endpoints and without, whatever the size; not where no service is.
fn answers(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 5, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    world.serve("dns", 6, &[Port::udp("", 53, 5353)], &[])?;
    world.start(&["--workers", "2"])?;
    let overlay = world.capture_overlay()?;
    for client in CLIENTS {
        let from = world.from(client);
        for number in [5, 6] {
            // Around an MTU of 1450 and of 1500, several fragments, and the
            // largest: 65,535 less both headers, IPv6's counted too.
            for payload in [0, 56, 1402, 1403, 1452, 1453, 1473, 5000, 65_487] {
                client::ping(from, world.vip(family, number), payload, LIMIT)
                    .map_err(|error| format!("{payload} bytes from {client:?}: {error}"))?;
            }
        }
        expect_kind(
            client::ping(from, world.vip(family, 7), 56, NO_ANSWER),
            ErrorKind::WouldBlock,
            "ping where no service is",
        )?;
    }
    let captured = overlay.stop()?;
    let on_overlay = captured
        .packets()
        .filter(|packet| packet.touches(world.vip(family, 5)));
    assert_eq!(on_overlay.count(), 0);
    world.expect_reason("unknown_address")
}

fn answer_ping_false(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 5, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    world.start(&["--answer-ping=false"])?;
    for client in CLIENTS {
        let from = world.from(client);
        expect_kind(
            client::ping(from, world.vip(family, 5), 56, NO_ANSWER),
            ErrorKind::WouldBlock,
            "ping",
        )?;
        client::who(from, world.vip_at(family, 5, 80), LIMIT)?;
    }
    world.expect_reason("ping_disabled")
}
