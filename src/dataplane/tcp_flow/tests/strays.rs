//! Segments that repeat, come late, or belong nowhere.

use super::hand::{Hand, ISN, Segment};
use super::server::Server;
use super::world::Setup;
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::TcpState;

fn syn(sequence: u32) -> Segment {
    Segment {
        control: smoltcp::wire::TcpControl::Syn,
        sequence,
        acknowledgement: None,
        window: 65_535,
        len: 0,
    }
}

#[test]
fn a_repeated_syn_changes_nothing() {
    for established in [false, true] {
        let mut hand = if established {
            Hand::established(Setup::default())
        } else {
            Hand::half_open(Setup::default())
        };
        let state = hand.proxy.state();
        let (_server, socket) = Server::new(1, 1);
        hand.proxy.dialled = Some(socket);
        assert_eq!(hand.say(syn(ISN)), []);
        assert_eq!(hand.proxy.state(), state);
        assert!(hand.proxy.dialled.is_some(), "a second real server");
    }
}

/// A SYN with another number: the client has forgotten the old connection. Its
/// real server sees a reset, the new one answers, as fast as any.
#[test]
fn a_new_syn_replaces_a_flow_in_any_state() {
    for finish in [false, true] {
        let mut hand = Hand::established(Setup::default());
        if finish {
            hand.say(hand.fin(0, 0));
            hand.server.finish();
            hand.settle();
            assert_eq!(hand.proxy.state(), Some(TcpState::LastAck));
        }
        let (new, socket) = Server::new(1 << 16, 1 << 16);
        hand.proxy.dialled = Some(socket);
        let answer = hand.say(syn(5));
        assert_eq!(hand.proxy.endings, [Ending::Replaced]);
        assert_eq!(answer[0].acknowledgement, 6);
        let old = hand.server.look();
        assert!(old.closed);
        // One that was finished both ways has nothing to be reset for.
        assert_eq!(old.resets_on_close, !finish);
        assert!(!new.look().closed);
    }
}

#[test]
fn old_data_is_acknowledged_again_and_not_passed_on_again() {
    let mut hand = Hand::established(Setup::default());
    hand.say(hand.data(0, 1_000, 0));
    for (from, len) in [(0, 1_000), (500, 500), (0, 1)] {
        let answer = hand.say(hand.data(from, len, 0));
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0].acknowledgement, ISN.wrapping_add(1_001));
        assert_eq!(hand.server.look().taken, 1_000);
    }
    // Half old, half new.
    hand.say(hand.data(900, 200, 0));
    assert_eq!(hand.server.look().taken, 1_100);
}

#[test]
fn old_acknowledgments_change_nothing() {
    let mut hand = Hand::established(Setup::default());
    hand.server.write(1_000);
    hand.settle();
    hand.say(hand.ack(0, 1_000));
    assert_eq!(hand.proxy.flow().endpoint().send_queue(), 0);
    for got in [0, 500, 999] {
        assert_eq!(hand.say(hand.ack(0, got)), []);
    }
    assert_eq!(hand.proxy.state(), Some(TcpState::Established));
}

#[test]
fn an_acknowledgment_of_what_was_never_sent_is_challenged() {
    let mut hand = Hand::established(Setup::default());
    let answer = hand.say(hand.ack(0, 5_000));
    assert_eq!(answer.len(), 1);
    assert!(answer[0].is_bare());
    assert_eq!(answer[0].acknowledgement, ISN.wrapping_add(1));
    // RFC 5961 section 7: not at any rate.
    assert_eq!(hand.say(hand.ack(0, 5_000)), []);
    assert_eq!(hand.proxy.state(), Some(TcpState::Established));
}

#[test]
fn data_out_of_the_window_is_not_taken() {
    let mut hand = Hand::established(Setup::default());
    hand.say(hand.data(0, 1_000, 0));
    for from in [1_000_000, 0x7000_0000, 0x9000_0000] {
        hand.say(hand.data(from, 1_000, 0));
        assert_eq!(hand.server.look().taken, 1_000);
        assert_eq!(hand.proxy.state(), Some(TcpState::Established));
    }
    hand.say(hand.data(1_000, 1_000, 0));
    assert_eq!(hand.server.look().taken, 2_000);
}

#[test]
fn data_behind_a_gap_waits_for_it() {
    let mut hand = Hand::established(Setup::default());
    let answer = hand.say(hand.data(1_000, 1_000, 0));
    assert_eq!(answer[0].acknowledgement, ISN.wrapping_add(1));
    // FIN behind the gap as well.
    hand.say(hand.fin(2_000, 0));
    assert_eq!(hand.server.look().taken, 0);
    assert!(!hand.server.look().client_finished);
    hand.say(hand.data(0, 1_000, 0));
    assert_eq!(hand.server.look().taken, 2_000);
    hand.say(hand.fin(2_000, 0));
    assert!(hand.server.look().client_finished);
}

/// The rings give their memory back when little moves; what lies behind a gap stays,
/// also of a segment that reaches beyond the window.
#[test]
fn data_behind_a_gap_outlives_idle_times() {
    for (from, len) in [(2_000, 1_000), (100_000, 60_000)] {
        let mut hand = Hand::established(Setup::default());
        hand.say(hand.data(0, 1_000, 0));
        // Its acknowledgment tells the window.
        hand.wait(std::time::Duration::from_millis(10));
        hand.say(hand.data(from, len, 0));
        hand.wait(std::time::Duration::from_secs(20));
        let mut sent = 1_000;
        while sent < from {
            let len = 50_000.min(from - sent);
            hand.say(hand.data(sent, len as usize, 0));
            sent += len;
        }
        // Each byte is checked as it arrives.
        assert!(hand.server.look().taken > u64::from(from));
    }
}

/// No client sends it, and the real server must not see it.
#[test]
fn data_behind_fin_is_not_passed_on() {
    let mut hand = Hand::established(Setup::default());
    hand.say(hand.fin(0, 0));
    hand.say(hand.data(1, 100, 0));
    assert_eq!(hand.server.look().taken, 0);
    assert_eq!(hand.proxy.state(), Some(TcpState::CloseWait));
    hand.server.write(10);
    let said = hand.settle();
    assert_eq!(said[0].len, 10, "the other direction goes on");
    hand.server.finish();
    hand.settle();
    hand.say(hand.ack(101, 10));
    hand.say(hand.ack(101, 11));
    assert_eq!(hand.proxy.endings, [Ending::Closed]);
}

/// The first data carries the handshake's last acknowledgment.
#[test]
fn data_may_complete_the_handshake() {
    let mut hand = Hand::half_open(Setup::default());
    let mut data = hand.data(0, 700, 0);
    data.control = smoltcp::wire::TcpControl::Fin;
    hand.say(data);
    assert_eq!(hand.server.look().taken, 700);
    assert!(hand.server.look().client_finished);
    assert_eq!(hand.proxy.state(), Some(TcpState::CloseWait));
}

#[test]
fn a_segment_to_a_half_open_flow_with_a_wrong_number_is_reset() {
    let mut hand = Hand::half_open(Setup::default());
    let answer = hand.say(hand.ack(0, 77));
    assert!(answer[0].flags.rst());
    assert_eq!(hand.proxy.state(), Some(TcpState::SynReceived));
    hand.say(hand.ack(0, 0));
    assert_eq!(hand.proxy.state(), Some(TcpState::Established));
}

/// The answer carries it, if one comes in time; full segments and FIN do not wait.
#[test]
fn a_small_segment_is_acknowledged_late() {
    let mut hand = Hand::established(Setup::default());
    assert_eq!(hand.say(hand.data(0, 100, 0)), []);
    let said = hand.wait(std::time::Duration::from_millis(10));
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].acknowledgement, hand.data(100, 0, 0).sequence);

    assert_eq!(hand.say(hand.data(100, 100, 0)), []);
    hand.server.write(5);
    let said = hand.settle();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].acknowledgement, hand.data(200, 0, 0).sequence);
    assert_eq!(hand.wait(std::time::Duration::from_millis(50)), []);

    assert_eq!(hand.say(hand.data(200, 65_000, 5)).len(), 1);
    assert_eq!(hand.say(hand.fin(65_200, 5)).len(), 1);
}
