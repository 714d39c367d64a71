//! Time: handshakes that never end, the dead, the idle, and those who never close.

use std::time::Duration;

use super::hand::Hand;
use super::server::Pace;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::{Ending, TcpTimeouts};
use crate::netstack::TcpState;
use crate::packet::TcpFlags;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn idle_after(idle: Duration) -> Setup {
    Setup {
        timeouts: TcpTimeouts {
            idle: Some(idle),
            closing: seconds(120),
        },
        ..Setup::default()
    }
}

#[test]
fn a_handshake_that_is_never_completed() {
    let mut hand = Hand::half_open(Setup::default());
    let said = hand.wait(seconds(14));
    assert_eq!(hand.proxy.endings, []);
    // SYN-ACK again at 200, 600, 1400, 3000, 6200 and 12600 ms.
    assert_eq!(said.len(), 6, "{said:?}");
    let syn_ack = TcpFlags::SYN | TcpFlags::ACK;
    assert!(said.iter().all(|seen| seen.flags == syn_ack));
    let said = hand.wait(seconds(2));
    assert_eq!(hand.proxy.endings, [Ending::HandshakeTimeout]);
    assert!(said.last().unwrap().flags.rst());
    assert!(hand.server.look().resets_on_close);
}

#[test]
fn a_client_that_died_is_found() {
    let mut hand = Hand::established(Setup::default());
    let said = hand.wait(seconds(359));
    assert_eq!(hand.proxy.endings, []);
    // A probe a minute.
    assert_eq!(said.len(), 5, "{said:?}");
    // One before the next byte; the window is the whole ring, shifted by 2.
    assert!(
        said.iter()
            .all(|seen| seen.is_bare() && seen.sequence == hand.theirs && seen.window == 32_768)
    );
    let said = hand.wait(seconds(2));
    assert_eq!(hand.proxy.endings, [Ending::ClientTimeout]);
    assert!(said.last().unwrap().flags.rst());
    assert!(hand.server.look().resets_on_close);
}

#[test]
fn a_client_that_died_over_a_download_is_found() {
    let mut hand = Hand::established(Setup::default());
    hand.server.write(10_000);
    hand.wait(seconds(361));
    assert_eq!(hand.proxy.endings, [Ending::ClientTimeout]);
}

#[test]
fn a_quiet_client_lives_for_ever_and_costs_nothing() {
    let mut world = World::established(Setup::default());
    world.run_for(seconds(5));
    assert!(
        !world.server.look().keeps_alive,
        "system calls for a short life"
    );
    let turns = world.proxy.turns;
    world.run_for(seconds(6 * 3600));
    assert_eq!(world.proxy.state(), Some(TcpState::Established));
    assert!(world.server.look().keeps_alive);
    // A probe and its answer a minute, and timers that came too early.
    let turns = world.proxy.turns - turns;
    assert!(turns < 4 * 360, "{turns} turns in six hours");
}

#[test]
fn an_idle_flow_ends_though_its_client_answers_our_probes() {
    let mut world = World::established(idle_after(seconds(900)));
    world.run_for(seconds(890));
    assert_eq!(world.ending(), None);
    world.run_for(seconds(20));
    assert_eq!(world.ending(), Some(Ending::Idle));
    assert_eq!(world.client.state(), TcpState::Closed);
    assert!(world.server.look().resets_on_close);
}

#[test]
fn data_either_way_keeps_a_flow() {
    let mut world = World::established(idle_after(seconds(900)));
    for round in 0..6 {
        if round % 2 == 0 {
            world.client.write(1);
        } else {
            world.server.write(1);
        }
        world.run_for(seconds(800));
        assert_eq!(world.ending(), None);
    }
    world.run_for(seconds(110));
    assert_eq!(world.ending(), Some(Ending::Idle));
}

/// As through IPVS, where its probes pass.
#[test]
fn a_clients_own_probes_keep_a_flow() {
    let mut hand = Hand::established(idle_after(seconds(900)));
    for _ in 0..6 {
        for _ in 0..5 {
            hand.wait(seconds(60));
            hand.say(hand.ack(0, 0));
        }
        let mut probe = hand.ack(0, 0);
        probe.sequence = probe.sequence.wrapping_sub(1);
        let said = hand.say(probe);
        assert!(said[0].is_bare());
        assert_eq!(hand.proxy.endings, []);
    }
    // Answers to our probes do not.
    for _ in 0..15 {
        hand.wait(seconds(60));
        hand.say(hand.ack(0, 0));
    }
    hand.wait(seconds(1));
    assert_eq!(hand.proxy.endings, [Ending::Idle]);
}

/// A slow real server that goes on reading is not idle.
#[test]
fn a_server_that_reads_keeps_a_flow() {
    let mut world = World::established(idle_after(seconds(900)));
    let pace = Pace {
        bytes: 30_000,
        every: seconds(600),
    };
    world.server.set_pace(Some(pace), world.now);
    world.client.write(200_000);
    world.client.finish();
    world.server.finish();
    world.run_until("the flow ends", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::Closed));
    assert_eq!(world.server.look().taken, 200_000);
}

#[test]
fn a_client_that_never_acknowledges_the_end() {
    for at_once in [false, true] {
        let mut hand = Hand::established(Setup::default());
        if at_once {
            hand.server.finish();
            hand.settle();
            hand.say(hand.fin(0, 0));
            assert_eq!(hand.proxy.state(), Some(TcpState::Closing));
        } else {
            hand.say(hand.fin(0, 0));
            hand.server.finish();
            hand.settle();
            assert_eq!(hand.proxy.state(), Some(TcpState::LastAck));
        }
        hand.wait(seconds(119));
        assert_eq!(hand.proxy.endings, []);
        let said = hand.wait(seconds(2));
        assert_eq!(hand.proxy.endings, [Ending::ClosingTimeout]);
        assert!(said.last().unwrap().flags.rst());
        assert!(hand.server.look().resets_on_close);
    }
}

/// Half-closed is not closing, however long it lasts.
#[test]
fn half_closed_flows_have_no_closing_timeout() {
    for client_first in [false, true] {
        let mut world = World::established(Setup::default());
        if client_first {
            world.client.finish();
        } else {
            world.server.finish();
        }
        world.run_for(seconds(3 * 3600));
        assert_eq!(world.ending(), None);
    }
}

/// A real server whose handshake waits for the client's first data.
fn hand_that_owes() -> Hand {
    let mut hand = Hand::half_open(Setup::default());
    hand.server.look().owes_ack = true;
    assert_eq!(hand.say(hand.ack(0, 0)), []);
    hand
}

#[test]
fn the_client_s_first_data_completes_the_handshake_with_the_real_server() {
    let mut hand = hand_that_owes();
    assert!(hand.server.look().owes_ack);
    hand.say(hand.data(0, 10, 0));
    assert!(!hand.server.look().owes_ack);
}

#[test]
fn a_client_that_says_nothing_keeps_the_real_server_waiting_for_ten_milliseconds() {
    let mut hand = hand_that_owes();
    hand.wait(Duration::from_millis(9));
    assert!(hand.server.look().owes_ack);
    hand.wait(Duration::from_millis(2));
    assert!(!hand.server.look().owes_ack);
}

#[test]
fn nor_one_that_never_completes_its_own_handshake() {
    let mut hand = Hand::half_open(Setup::default());
    hand.server.look().owes_ack = true;
    hand.wait(Duration::from_millis(300));
    assert!(!hand.server.look().owes_ack);
}
