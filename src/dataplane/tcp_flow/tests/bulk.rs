//! Streams both ways: every byte arrives, in its place, whatever the link does.

use std::time::Duration;

use smoltcp::wire::TcpControl;

use super::Ends;
use super::hand::{Hand, ISN, Segment};
use super::link::Weather;
use super::proxy::Proxy;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::RingSize;
use crate::packet::{IpPacket, TcpSegment};

/// Both ends send, finish, and read to the end.
fn exchange(setup: Setup, up: u64, down: u64) -> World {
    let mut world = World::new(setup);
    world.client.write(up);
    world.client.finish();
    world.server.write(down);
    world.server.finish();
    world.server.interrupt(setup.seed);
    world.run_until("both streams have arrived and the flow is over", |world| {
        world.ending().is_some() && world.client.saw_end
    });
    assert_eq!(world.ending(), Some(Ending::Closed));
    assert_eq!(world.server.look().read, up);
    assert_eq!(world.client.received, down);
    assert!(world.server.look().client_finished);
    assert!(!world.server.look().resets_on_close);
    world
}

#[test]
fn eight_mib_each_way() {
    let setup = Setup {
        rings: RingSize::FULL,
        client_rings: (1 << 20, 1 << 20),
        ..Setup::default()
    };
    let world = exchange(setup, 8 << 20, 8 << 20);
    // No retransmission timeout, no probe: the clean path never waits.
    assert!(
        world.elapsed() < Duration::from_secs(2),
        "{:?}",
        world.elapsed()
    );
}

#[test]
fn a_client_of_this_node_sends_super_packets() {
    let setup = Setup {
        ends: Ends::v6(),
        mtu: 65_535,
        rings: RingSize::FULL,
        client_rings: (1 << 20, 1 << 20),
        ..Setup::default()
    };
    let world = exchange(setup, 8 << 20, 8 << 20);
    assert!(
        world.elapsed() < Duration::from_secs(2),
        "{:?}",
        world.elapsed()
    );
}

/// Longer than the MTU of the TUN, which is what clients are told all the same.
#[test]
fn super_packets_to_clients_of_both_families() {
    for (ends, told) in [(Ends::v4(), 1_460), (Ends::v6(), 1_440)] {
        let mut hand = Hand::new(Setup {
            ends,
            rings: RingSize::FULL,
            socket: (64 << 10, 64 << 10),
            ..Setup::default()
        });
        hand.proxy.stack = Proxy::stack(1_500, hand.now);
        let syn = hand.packet(Segment {
            control: TcpControl::Syn,
            sequence: ISN,
            acknowledgement: None,
            window: 65_535,
            len: 0,
        });
        hand.proxy.packet(hand.now, &syn);
        let packet = IpPacket::parse(&hand.proxy.wire.packets[0]).unwrap();
        let answer = TcpSegment::parse(&packet).unwrap();
        assert_eq!(answer.max_segment_size(), Some(told));
        hand.theirs = answer.seq;
        hand.say(hand.ack(0, 0));
        hand.server.write(40 * 1_410);
        let (mut got, mut said) = (0, hand.settle());
        while !said.is_empty() {
            assert!(
                said.iter().all(|seen| seen.len <= 1_410),
                "{ends:?} {said:?}"
            );
            got += said.iter().map(|seen| seen.len as u32).sum::<u32>();
            said = hand.say(hand.ack(0, got));
        }
        assert_eq!(got, 40 * 1_410);
        // The congestion window begins small.
        assert!(
            hand.proxy.wire.super_packets >= 3,
            "{}",
            hand.proxy.wire.super_packets
        );
    }
}

#[test]
fn loss_reordering_and_repetition() {
    for seed in 1..=4 {
        let setup = Setup {
            weather: Weather::FOUL,
            seed,
            ..Setup::default()
        };
        exchange(setup, 2 << 20, 1 << 20);
    }
}

#[test]
fn loss_reordering_and_repetition_of_super_packets() {
    for seed in 1..=4 {
        let setup = Setup {
            ends: Ends::v6(),
            mtu: 65_535,
            rings: RingSize::FULL,
            client_rings: (1 << 20, 1 << 20),
            weather: Weather::FOUL,
            seed,
            ..Setup::default()
        };
        exchange(setup, 8 << 20, 4 << 20);
    }
}

#[test]
fn every_other_packet_lost() {
    let setup = Setup {
        weather: Weather {
            loss: 300,
            ..Weather::FOUL
        },
        ..Setup::default()
    };
    exchange(setup, 20_000, 20_000);
}

#[test]
fn tiny_segments_into_tiny_windows() {
    // MSS 48 and 536; windows of one and two KiB.
    for (mtu, window) in [(88, 1 << 10), (88, 2 << 10), (576, 1 << 10), (576, 2 << 10)] {
        for weather in [Weather::FAIR, Weather::FOUL] {
            let setup = Setup {
                mtu,
                client_rings: (window, 4 << 10),
                weather,
                ..Setup::default()
            };
            exchange(setup, 20_000, 20_000);
        }
    }
}

#[test]
fn rings_smaller_than_a_super_packet() {
    let setup = Setup {
        mtu: 65_535,
        rings: RingSize {
            receive: 5_000,
            send: 3_000,
        },
        socket: (1_000, 700),
        ..Setup::default()
    };
    exchange(setup, 300_000, 300_000);
}

#[test]
fn an_empty_connection() {
    let world = exchange(Setup::default(), 0, 0);
    assert!(world.elapsed() < Duration::from_secs(1));
}

/// The real server speaks first: its words lie in the socket before the flow
/// exists, and no edge will tell of them.
#[test]
fn what_the_real_server_said_first_arrives() {
    let mut world = World::new(Setup::default());
    world.server.write(40);
    assert!(world.server.edges().is_some());
    world.run_until("the greeting arrives", |world| world.client.received == 40);
    assert!(world.elapsed() < Duration::from_secs(1));
}

/// As above, and it has closed already.
#[test]
fn a_greeting_and_farewell_before_the_flow_exists_arrive() {
    let mut world = World::new(Setup::default());
    world.server.write(40);
    world.server.finish();
    assert!(world.server.edges().is_some());
    world.run_until("the end arrives", |world| world.client.saw_end);
    assert_eq!(world.client.received, 40);
    assert!(world.elapsed() < Duration::from_secs(1));
}
