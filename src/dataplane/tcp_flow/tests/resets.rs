//! RST in every state, from either end.

use std::io::ErrorKind;
use std::time::Duration;

use super::hand::Hand;
use super::server::Pace;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::{RingSize, TcpState};
use crate::packet::TcpFlags;

const SOON: Duration = Duration::from_millis(20);

/// A connection whose flow is in `state`, with the bytes that the client has sent
/// of the sequence space behind its SYN.
fn in_state(state: TcpState) -> (Hand, u32) {
    let setup = Setup::default();
    let mut hand = if state == TcpState::SynReceived {
        Hand::half_open(setup)
    } else {
        Hand::established(setup)
    };
    let mut sent = 0;
    match state {
        TcpState::FinWait1 => {
            hand.server.finish();
            hand.settle();
        }
        TcpState::FinWait2 => {
            hand.server.finish();
            hand.settle();
            hand.say(hand.ack(0, 1));
        }
        TcpState::CloseWait => {
            hand.say(hand.fin(0, 0));
            sent = 1;
        }
        TcpState::LastAck => {
            hand.say(hand.fin(0, 0));
            hand.server.finish();
            hand.settle();
            sent = 1;
        }
        TcpState::Closing => {
            hand.server.finish();
            hand.settle();
            hand.say(hand.fin(0, 0));
            sent = 1;
        }
        TcpState::TimeWait => {
            // The real server does not take what the client said last.
            let pace = Pace {
                bytes: 0,
                every: Duration::from_secs(100_000),
            };
            hand.server.set_pace(Some(pace), hand.now);
            hand.server.finish();
            hand.settle();
            hand.say(hand.data(0, 60_000, 1));
            hand.say(hand.data(60_000, 60_000, 1));
            hand.say(hand.fin(120_000, 1));
            sent = 120_001;
        }
        TcpState::Closed
        | TcpState::Listen
        | TcpState::SynSent
        | TcpState::SynReceived
        | TcpState::Established => {}
    }
    assert_eq!(hand.proxy.state(), Some(state));
    (hand, sent)
}

const STATES: [TcpState; 7] = [
    TcpState::SynReceived,
    TcpState::Established,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];

#[test]
fn the_client_resets_in_every_state() {
    for state in STATES {
        let (mut hand, sent) = in_state(state);
        let answer = hand.say(hand.rst(sent));
        assert_eq!(answer, [], "an answer to RST in {state}");
        assert_eq!(hand.proxy.endings, [Ending::ClientReset], "in {state}");
        let server = hand.server.look();
        assert!(server.resets_on_close && server.closed, "in {state}");
    }
}

/// In TIME_WAIT there is nothing to reset: the real server gets what it is owed.
#[test]
fn a_reset_in_time_wait_takes_nothing_from_the_server() {
    let (mut hand, sent) = in_state(TcpState::TimeWait);
    assert_eq!(hand.say(hand.rst(sent)), []);
    assert_eq!(hand.proxy.endings, []);
    hand.server.set_pace(None, hand.now);
    hand.settle();
    assert_eq!(hand.proxy.endings, [Ending::Closed]);
    assert_eq!(hand.server.look().taken, 120_000);
    assert!(!hand.server.look().resets_on_close);
}

/// RST whose number is not in the window (RFC 5961 section 3) changes nothing.
#[test]
fn a_reset_from_elsewhere_is_ignored_in_every_state() {
    for state in STATES {
        let (mut hand, sent) = in_state(state);
        for off in [sent.wrapping_sub(50_000), sent + 3_000_000] {
            hand.say(hand.rst(off));
            assert_eq!(hand.proxy.state(), Some(state));
            assert_eq!(hand.proxy.endings, []);
        }
    }
}

#[test]
fn the_server_resets_in_every_state() {
    for state in STATES {
        let (mut hand, _) = in_state(state);
        // A real server that has finished is heard of again only when it is sent
        // something, and a flow that has finished sends it nothing.
        let heard = matches!(
            state,
            TcpState::SynReceived | TcpState::Established | TcpState::CloseWait
        );
        hand.server.fail(ErrorKind::ConnectionReset);
        let mut said = hand.settle();
        if state == TcpState::SynReceived {
            assert_eq!(said, [], "the client is told when it is there");
            said = hand.say(hand.ack(0, 0));
        }
        if heard {
            assert_eq!(hand.proxy.endings, [Ending::ServerReset], "in {state}");
            assert!(said.last().unwrap().flags.rst(), "in {state}: {said:?}");
            assert!(hand.server.look().resets_on_close);
        } else {
            assert_eq!(hand.proxy.endings, [], "in {state}");
        }
    }
}

/// The real server has closed both ways; what the client then sends is answered
/// with RST, in FIN_WAIT_1 and FIN_WAIT_2.
#[test]
fn data_to_a_server_that_is_gone_resets_the_client() {
    for state in [TcpState::FinWait1, TcpState::FinWait2] {
        let (mut hand, _) = in_state(state);
        hand.server.close();
        let got = u32::from(state == TcpState::FinWait2);
        let said = hand.say(hand.data(0, 100, got));
        assert_eq!(hand.proxy.endings, [], "its kernel has not answered yet");
        assert!(said.iter().all(|seen| !seen.flags.rst()));
        let said = hand.say(hand.data(100, 100, got));
        assert_eq!(hand.proxy.endings, [Ending::ServerReset], "in {state}");
        assert!(said.last().unwrap().flags.rst());
    }
}

/// What the real server sent before its RST arrives, to the last byte that the
/// client takes.
#[test]
fn data_before_the_servers_reset_arrives() {
    let mut world = World::established(Setup::default());
    world.server.write(60_000);
    world.server.fail(ErrorKind::ConnectionReset);
    world.run_until("the client is reset", |world| {
        world.client.state() == TcpState::Closed
    });
    assert_eq!(world.client.received, 60_000);
    assert_eq!(world.ending(), Some(Ending::ServerReset));
    assert!(world.elapsed() < Duration::from_secs(1));
}

/// A client that does not read does not keep a reset connection.
#[test]
fn a_reset_does_not_wait_for_a_client_that_does_not_read() {
    let setup = Setup {
        client_rings: (4_000, 4_000),
        ..Setup::default()
    };
    let mut world = World::established(setup);
    let pace = Pace {
        bytes: 0,
        every: Duration::from_secs(100_000),
    };
    world.client.set_pace(Some(pace), world.now);
    world.server.write(60_000);
    world.server.fail(ErrorKind::ConnectionReset);
    world.run_until("the flow ends", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::ServerReset));
    assert!(
        world.elapsed() < Duration::from_secs(2),
        "{:?}",
        world.elapsed()
    );
    world.run_until("the client is reset", |world| {
        world.client.state() == TcpState::Closed
    });
    // As far as its window allowed.
    assert_eq!(world.client.receive_queue(), 4_000);
}

/// A send fails while the ring is full and the socket holds more: the flow knows that
/// its real server is gone, and does not wait for a client that does not read.
#[test]
fn a_failed_send_with_a_full_ring_ends_the_flow() {
    let setup = Setup {
        client_rings: (4_000, 4_000),
        rings: RingSize {
            receive: 10_000,
            send: 10_000,
        },
        ..Setup::default()
    };
    let mut world = World::established(setup);
    let pace = Pace {
        bytes: 0,
        every: Duration::from_secs(100_000),
    };
    world.client.set_pace(Some(pace), world.now);
    world.server.write(60_000);
    world.run_for(Duration::from_secs(5));
    world.server.fail(ErrorKind::ConnectionReset);
    let before = world.now;
    world.client.write(100);
    world.run_until("the flow ends", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::ServerReset));
    assert!(world.now - before < Duration::from_secs(2));
}

/// Its error comes out of a send: the socket then reads as finished.
#[test]
fn a_failed_send_is_a_reset_and_not_an_end() {
    let mut world = World::established(Setup::default());
    world.server.write(5_000);
    world.client.write(100);
    world.run_until("the request is there", |world| {
        world.server.look().read == 100
    });
    world.server.fail(ErrorKind::ConnectionReset);
    world.client.write(100_000);
    world.run_until("the client is reset", |world| {
        world.client.state() == TcpState::Closed
    });
    assert_eq!(world.ending(), Some(Ending::ServerReset));
    assert!(!world.client.saw_end, "RST must not look like FIN");
}

/// A real server that fell silent: the kernel's keep-alive says so.
#[test]
fn a_silent_server_is_told_from_one_that_resets() {
    for kind in [
        ErrorKind::TimedOut,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
    ] {
        let (mut hand, _) = in_state(TcpState::Established);
        hand.server.fail(kind);
        let said = hand.settle();
        assert_eq!(hand.proxy.endings, [Ending::ServerTimeout]);
        assert!(said.last().unwrap().flags.rst());
    }
}

/// Ended from outside: both ends see RST.
#[test]
fn an_abort_resets_both_ends() {
    for state in STATES {
        let (mut hand, _) = in_state(state);
        let now = hand.now;
        let proxy = &mut hand.proxy;
        let flow = proxy.flow.as_mut().unwrap();
        flow.abort(&mut proxy.stack, now, &mut proxy.wire).unwrap();
        let packets = std::mem::take(&mut proxy.wire.packets);
        assert_eq!(packets.len(), 1, "in {state}");
        let seen = super::proxy::Seen::read(&packets[0]);
        assert!(seen.flags.contains(TcpFlags::RST), "in {state}");
        assert!(hand.server.look().resets_on_close, "in {state}");
    }
}

/// As client and real server of their own would: over a real path.
#[test]
fn a_client_that_aborts_is_heard_by_the_server() {
    for upload in [0, 5_000_000] {
        let mut world = World::established(Setup::default());
        world.client.write(upload);
        world.run_for(SOON);
        world.client.reset();
        world.run_until("the flow ends", |world| world.ending().is_some());
        assert_eq!(world.ending(), Some(Ending::ClientReset));
        assert!(world.server.look().resets_on_close);
    }
}
