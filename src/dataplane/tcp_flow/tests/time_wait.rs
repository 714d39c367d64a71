//! TIME_WAIT: what is left of a flow, and what it may still owe.

use std::time::Duration;

use super::hand::{Hand, ISN};
use super::proxy::Seen;
use super::server::Pace;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::{Sent, TcpState};

/// The real server finishes first and the client last: TIME_WAIT is the flow's.
fn server_first(hand: &mut Hand) {
    hand.server.finish();
    hand.settle();
    hand.say(hand.ack(0, 1));
    hand.say(hand.fin(0, 1));
}

#[test]
fn the_endpoint_is_free_at_once_and_two_numbers_are_left() {
    let mut hand = Hand::established(Setup::default());
    server_first(&mut hand);
    assert_eq!(hand.proxy.endings, [Ending::Closed]);
    assert_eq!(
        hand.proxy.time_wait,
        Some(Sent {
            sequence: hand.theirs.wrapping_add(2),
            acknowledgement: ISN.wrapping_add(2),
        })
    );
    let server = hand.server.look();
    assert!(server.closed && server.client_finished && !server.resets_on_close);
}

/// The last packet before TIME_WAIT was a repeated one: the numbers left behind
/// are nevertheless those behind everything.
#[test]
fn the_numbers_are_right_after_a_repeated_fin() {
    let mut hand = Hand::established(Setup::default());
    hand.server.write(1_500);
    hand.server.finish();
    hand.settle();
    assert_eq!(hand.proxy.state(), Some(TcpState::FinWait1));
    hand.say(hand.fin(0, 0));
    assert_eq!(hand.proxy.state(), Some(TcpState::Closing));
    let said = hand.wait(Duration::from_millis(300));
    assert!(!said.is_empty(), "nothing was repeated");
    let before = said.last().unwrap();
    hand.say(hand.ack(1, 1_501));
    assert_eq!(hand.proxy.endings, [Ending::Closed]);
    let answer = hand.say(hand.fin(0, 1_501));
    assert_eq!(answer.len(), 1);
    assert!(answer[0].is_bare());
    assert_eq!(
        answer[0].sequence,
        hand.theirs.wrapping_add(1_502),
        "{before:?}"
    );
    assert_eq!(answer[0].acknowledgement, ISN.wrapping_add(2));
}

/// The acknowledgment of the client's FIN is lost and its flow is gone.
#[test]
fn what_is_left_satisfies_a_client_that_repeats_its_fin() {
    for with_data in [0, 700] {
        let mut world = World::established(Setup::default());
        world.server.finish();
        world.run_until("the client has heard", |world| world.client.saw_end);
        let mut left = 2;
        world.filter_down(move |seen: &Seen| {
            let lost = left > 0 && seen.is_bare();
            left -= u32::from(lost);
            !lost
        });
        world.client.write(with_data);
        world.client.finish();
        world.run_until("the flow is over", |world| world.ending().is_some());
        assert_ne!(world.client.state(), TcpState::Closed);
        assert!(world.proxy.time_wait.is_some());
        world.run_until("the client is satisfied", |world| {
            world.client.state() == TcpState::Closed
        });
        assert_eq!(world.ending(), Some(Ending::Closed));
        assert_eq!(world.server.look().read, with_data);
    }
}

#[test]
fn a_new_connection_may_begin_in_time_wait() {
    let mut world = World::established(Setup::default());
    world.server.finish();
    world.client.finish();
    world.run_until("the flow is over", |world| world.ending().is_some());
    let setup = Setup {
        seed: 99,
        ..Setup::default()
    };
    world.reconnect(setup);
    world.client.write(10);
    let before = world.now;
    world.run_until("the new one works", |world| world.server.look().read == 10);
    assert!(world.now - before < Duration::from_secs(1));
}

/// smoltcp would empty the ring at the end of TIME_WAIT.
#[test]
fn a_slow_server_gets_what_it_is_owed_after_time_wait() {
    let mut world = World::established(Setup {
        socket: (8 << 10, 8 << 10),
        ..Setup::default()
    });
    let pace = Pace {
        bytes: 2_000,
        every: Duration::from_secs(2),
    };
    world.server.finish();
    world.run_until("the client has heard", |world| world.client.saw_end);
    world.server.set_pace(Some(pace), world.now);
    world.client.write(100_000);
    world.client.finish();
    world.run_until("the client is done", |world| {
        world.client.state() == TcpState::Closed
    });
    assert_eq!(world.proxy.state(), Some(TcpState::TimeWait));
    let turns = world.proxy.turns;
    world.run_until("the flow is over", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::Closed));
    let server = world.server.look();
    assert_eq!(server.taken, 100_000);
    assert!(server.client_finished && !server.resets_on_close);
    assert!(world.proxy.turns - turns < 300);
}

/// LAST_ACK completes, then the client's machine forgets and answers with RST:
/// the connection is over, and what the real server is owed stays.
#[test]
fn a_reset_after_the_end_takes_nothing_from_a_slow_server() {
    let mut hand = Hand::established(Setup {
        socket: (8 << 10, 8 << 10),
        ..Setup::default()
    });
    let pace = Pace {
        bytes: 1_000,
        every: Duration::from_secs(1),
    };
    hand.server.set_pace(Some(pace), hand.now);
    hand.say(hand.data(0, 30_000, 0));
    hand.say(hand.fin(30_000, 0));
    hand.server.finish();
    hand.settle();
    assert_eq!(hand.proxy.state(), Some(TcpState::LastAck));
    hand.say(hand.ack(30_001, 1));
    assert_eq!(hand.proxy.state(), Some(TcpState::Closed));
    hand.say(hand.rst(30_001));
    hand.wait(Duration::from_secs(60));
    assert_eq!(hand.proxy.endings, [Ending::Closed]);
    assert_eq!(hand.server.look().taken, 30_000);
    assert!(!hand.server.look().resets_on_close);
}
