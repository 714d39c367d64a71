//! The traps of smoltcp 0.14 that can reach a flow, each with its counter-measure.

use std::time::Duration;

use smoltcp::wire::TcpControl;

use super::hand::{Hand, ISN, Segment};
use super::server::Pace;
use super::world::Setup;
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::{RingSize, TcpState};

/// The real server's socket takes so much before the ring fills.
const SOCKET: u64 = 4 << 10;

/// A real server that takes nothing, so that the ring fills.
fn stuffed(rings: RingSize) -> Hand {
    let hand = Hand::established(Setup {
        rings,
        socket: (SOCKET, 64 << 10),
        ..Setup::default()
    });
    let pace = Pace {
        bytes: 0,
        every: Duration::from_secs(100_000),
    };
    hand.server.set_pace(Some(pace), hand.now);
    hand
}

/// Sends far more than the ring holds, in one batch: no turn comes between.
fn flood(hand: &mut Hand, rings: RingSize) {
    let mut sent = 0;
    while sent < rings.receive * 5 / 4 {
        let packet = hand.packet(hand.data(sent as u32, 60_000, 0));
        hand.proxy.packet(hand.now, &packet);
        sent += 60_000;
    }
}

/// What fits was taken, the rest can be sent again, and the flow lives.
fn survives(mut hand: Hand, rings: RingSize) {
    assert!(hand.proxy.overruns > 0, "nothing was kept away");
    let said = hand.settle();
    assert_eq!(hand.proxy.endings, []);
    let taken = said.last().unwrap().acknowledgement.wrapping_sub(ISN + 1);
    assert!(taken as usize <= rings.receive + SOCKET as usize);
    hand.server.set_pace(None, hand.now);
    hand.settle();
    hand.say(hand.data(taken, 1_000, 0));
    hand.settle();
    assert_eq!(hand.server.look().taken, u64::from(taken) + 1_000);
}

#[test]
fn a_client_that_ignores_the_window_after_the_handshake() {
    for rings in [RingSize::SMALL, RingSize::FULL] {
        let mut hand = stuffed(rings);
        flood(&mut hand, rings);
        survives(hand, rings);
    }
}

/// A probe carries the window, but smoltcp does not remember that it told it.
#[test]
fn a_keep_alive_probe_does_not_end_the_guard() {
    let mut hand = stuffed(RingSize::FULL);
    let said = hand.wait(Duration::from_secs(61));
    assert_eq!(said.len(), 1);
    flood(&mut hand, RingSize::FULL);
    survives(hand, RingSize::FULL);
}

/// As above: the client opens with a window of 0 and the real server speaks first.
#[test]
fn a_zero_window_probe_does_not_end_the_guard() {
    let mut hand = Hand::half_open(Setup {
        rings: RingSize::FULL,
        socket: (SOCKET, 64 << 10),
        ..Setup::default()
    });
    let pace = Pace {
        bytes: 0,
        every: Duration::from_secs(100_000),
    };
    hand.server.set_pace(Some(pace), hand.now);
    let mut ack = hand.ack(0, 0);
    ack.window = 0;
    hand.say(ack);
    hand.server.write(1_000);
    let said = hand.settle();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].len, 1, "no probe");
    flood(&mut hand, RingSize::FULL);
    survives(hand, RingSize::FULL);
}

/// A client whose window is shut takes the byte of a probe, and FIN with it: the timer
/// of the probes has no purpose any more, and smoltcp would send for ever.
#[test]
fn a_shut_window_that_takes_the_last_byte_ends_the_probes() {
    let mut hand = Hand::established(Setup::default());
    let shut = |segment: Segment| Segment {
        window: 0,
        ..segment
    };
    hand.say(shut(hand.ack(0, 0)));
    hand.server.write(1);
    hand.server.finish();
    hand.wait(Duration::from_secs(2));
    let said = hand.say(shut(hand.ack(0, 2)));
    assert_eq!(hand.proxy.state(), Some(TcpState::FinWait2), "{said:?}");
    let said = hand.wait(Duration::from_secs(50));
    assert!(said.len() <= 1, "{} packets", said.len());
}

/// Acknowledgments that repeat themselves while the window is shut bring no whole
/// segment, which would lie beyond it.
#[test]
fn repeated_acknowledgments_of_a_shut_window() {
    let mut hand = Hand::half_open_with(Setup::default(), 60_000);
    let ack = |hand: &Hand, got, window| Segment {
        window,
        ..hand.ack(0, got)
    };
    hand.say(ack(&hand, 0, 2_000));
    hand.server.write(50_000);
    let said = hand.settle();
    assert_eq!(said.iter().map(|seen| seen.len).sum::<usize>(), 2_000);
    for _ in 0..6 {
        let said = hand.say(ack(&hand, 1_000, 0));
        assert!(said.iter().all(|seen| seen.len <= 1_000), "{said:?}");
    }
    // The rest comes once the window opens.
    let said = hand.say(ack(&hand, 2_000, 60_000));
    assert_eq!(said.iter().map(|seen| seen.len).sum::<usize>(), 48_000);
}

/// Should the guard fail, the panic costs this flow only.
#[test]
fn a_panic_of_the_stack_ends_one_flow() {
    let mut hand = stuffed(RingSize::FULL);
    let now = hand.now;
    let mut fault = None;
    for index in 0..30 {
        let packet = hand.packet(hand.data(index * 60_000, 60_000, 0));
        let proxy = &mut hand.proxy;
        let flow = proxy.flow.as_mut().unwrap();
        // A guard that is told of no data sees no overrun.
        let end = ISN.wrapping_add(1);
        let taken = flow.segment(&mut proxy.stack, &packet, end, false, now, &mut proxy.wire);
        if let Err(error) = taken {
            fault = Some(error);
            break;
        }
    }
    let fault = fault.expect("smoltcp 0.14 panics on this; if it no longer does, mend the guard");
    assert!(fault.to_string().contains("panicked"), "{fault}");
    // The stack goes on: another flow opens and works.
    hand.proxy.flow = None;
    let mut other = Hand::new(Setup::default());
    std::mem::swap(&mut other.proxy.stack, &mut hand.proxy.stack);
    let answer = other.say(Segment {
        control: TcpControl::Syn,
        sequence: ISN,
        acknowledgement: None,
        window: 65_535,
        len: 0,
    });
    other.theirs = answer[0].sequence;
    other.say(other.data(0, 100, 0));
    assert_eq!(other.server.look().read, 100);
}

/// Whatever the stack says, a timer lies in the future: no turn leads to the next
/// by itself.
#[test]
fn a_deadline_is_never_now() {
    let mut hand = Hand::established(Setup::default());
    let packet = hand.packet(hand.data(0, 65_000, 0));
    hand.proxy.packet(hand.now, &packet);
    // An acknowledgment of a full segment is due at once.
    let (now, proxy) = (hand.now, &mut hand.proxy);
    let flow = proxy.flow.as_ref().unwrap();
    assert!(proxy.stack.poll_at(flow.endpoint(), now).unwrap() <= now);
    let at = flow.deadline(&mut proxy.stack, &proxy.timeouts, now);
    assert!(at >= now + Duration::from_millis(1));
    // Nor when its time is long past.
    let late = now + Duration::from_secs(10_000);
    let at = flow.deadline(&mut proxy.stack, &proxy.timeouts, late);
    assert!(at >= late + Duration::from_millis(1));
}

/// Nothing to do, twice: no packet, no demand for another turn.
#[test]
fn a_turn_with_nothing_to_do_does_nothing() {
    for finish in [false, true] {
        let mut hand = Hand::established(Setup::default());
        if finish {
            hand.say(hand.fin(0, 0));
        }
        hand.settle();
        for _ in 0..2 {
            hand.proxy.dirty = true;
            let turns = hand.proxy.turns;
            assert_eq!(hand.settle(), []);
            assert_eq!(hand.proxy.turns, turns + 1);
        }
    }
}

/// The segments of a client of this node are larger than its window: what three
/// repeated acknowledgments bring must stay in the window, or the client would not
/// look at our acknowledgments any more.
#[test]
fn repeated_acknowledgments_bring_nothing_beyond_the_window() {
    let mut hand = Hand::half_open_with(Setup::default(), 65_495);
    let small = |hand: &Hand, got| Segment {
        window: 2_000,
        ..hand.ack(0, got)
    };
    hand.say(small(&hand, 0));
    hand.server.write(40_000);
    hand.settle();
    for _ in 0..6 {
        hand.say(small(&hand, 0));
    }
    hand.wait(Duration::from_millis(500));
    assert!(hand.heard.iter().any(|seen| seen.len > 0));
    let edge = hand.theirs.wrapping_add(1 + 2_000);
    for seen in &hand.heard[1..] {
        assert!(edge.wrapping_sub(seen.end()) <= 2_001, "beyond: {seen:?}");
    }
    // And it goes on.
    let said = hand.say(small(&hand, 2_000));
    assert_eq!(said.iter().map(|seen| seen.len).sum::<usize>(), 2_000);
}

/// The window stays shut while the last byte and FIN are acknowledged: smoltcp 0.14's
/// window probe then fires in FIN_WAIT_2, and is due for ever.
#[test]
fn a_shut_window_in_fin_wait_2_does_not_spin() {
    let mut hand = Hand::established(Setup::default());
    let shut = |hand: &Hand, got| Segment {
        window: 0,
        ..hand.ack(0, got)
    };
    hand.server.write(2_000);
    hand.settle();
    hand.say(shut(&hand, 1_410));
    hand.server.finish();
    hand.settle();
    hand.say(shut(&hand, 2_001));
    assert_eq!(hand.proxy.state(), Some(TcpState::FinWait2));
    let turns = hand.proxy.turns;
    let said = hand.wait(Duration::from_secs(50));
    assert_eq!(said, []);
    assert!(hand.proxy.turns - turns < 10);
}

/// A segment that reaches beyond the window: smoltcp 0.14 cuts its data, and would
/// take its FIN for the end of a stream that lacks bytes.
#[test]
fn a_fin_beyond_the_window_is_not_believed() {
    for ends in [super::Ends::v4(), super::Ends::v6()] {
        let mut hand = Hand::established(Setup {
            ends,
            socket: (SOCKET, 64 << 10),
            ..Setup::default()
        });
        let pace = Pace {
            bytes: 0,
            every: Duration::from_secs(100_000),
        };
        hand.server.set_pace(Some(pace), hand.now);
        for sent in [0, 60_000] {
            hand.say(hand.data(sent, 60_000, 0));
        }
        let mut last = hand.data(120_000, 40_000, 0);
        last.control = TcpControl::Fin;
        hand.say(last);
        assert_eq!(hand.proxy.state(), Some(TcpState::Established));
        hand.server.set_pace(None, hand.now);
        hand.settle();
        assert!(!hand.server.look().client_finished);
        assert!(hand.server.look().taken < 160_000);
        hand.say(last);
        assert_eq!(hand.server.look().taken, 160_000);
        assert!(hand.server.look().client_finished);
    }
}

/// The window is reported shut while data is out, and that is lost: smoltcp 0.14's
/// timer fires into the shut window and is not set again.
#[test]
fn a_window_reported_shut_too_late_stalls_nothing() {
    let mut hand = Hand::established(Setup::default());
    hand.wait(Duration::from_secs(5));
    hand.server.write(1_000);
    assert_eq!(hand.settle().len(), 1);
    let mut shut = hand.ack(0, 0);
    shut.window = 0;
    hand.say(shut);
    let said = hand.wait(Duration::from_millis(1_500));
    // Nothing but a probe, before the first byte that is not acknowledged.
    assert!(!said.is_empty());
    assert!(
        said.iter()
            .all(|seen| seen.is_bare() && seen.sequence == hand.theirs),
        "{said:?}"
    );
    let said = hand.say(hand.ack(0, 0));
    assert_eq!(said[0].len, 1_000, "{said:?}");
}

/// A window that shuts over a part of what is out, which is lost: smoltcp 0.14 trades
/// its timer for window probes, and the timer is gone when the window opens. Its own
/// keep-alive probe would then put a byte where lost data belongs.
#[test]
fn a_window_that_shrinks_stalls_nothing() {
    let mut hand = Hand::established(Setup::default());
    hand.server.write(2_000);
    let said = hand.settle();
    assert_eq!(said.iter().map(|seen| seen.len).sum::<usize>(), 2_000);
    let mut shut = hand.ack(0, 1_410);
    shut.window = 0;
    hand.say(shut);
    hand.say(hand.ack(0, 1_410));
    hand.heard.clear();
    for _ in 0..4 {
        hand.wait(Duration::from_millis(1_100));
        hand.say(hand.ack(0, 1_410));
    }
    let place = hand.theirs.wrapping_add(1_411);
    assert!(hand.heard[0].is_bare() && hand.heard[0].end() == place.wrapping_sub(1));
    assert!(
        hand.heard
            .iter()
            .any(|seen| seen.sequence == place && seen.len == 590),
        "it is never repeated: {:?}",
        hand.heard
    );
}

/// The third repeated acknowledgment while only FIN is out: smoltcp 0.14 gives up
/// the FIN, and its own keep-alive probe would put a byte in its place.
#[test]
fn repeated_acknowledgments_do_not_stop_our_fin() {
    for state in [TcpState::FinWait1, TcpState::Closing, TcpState::LastAck] {
        let mut hand = Hand::established(Setup::default());
        hand.server.write(500);
        if state == TcpState::LastAck {
            hand.say(hand.fin(0, 0));
        }
        hand.server.finish();
        hand.settle();
        let mut sent = u32::from(state == TcpState::LastAck);
        if state == TcpState::Closing {
            hand.say(hand.fin(0, 0));
            sent = 1;
        }
        if state == TcpState::LastAck {
            // FIN waits for this.
            hand.say(hand.ack(sent, 500));
        }
        assert_eq!(hand.proxy.state(), Some(state));
        // The data arrived, the FIN did not.
        for _ in 0..5 {
            hand.say(hand.ack(sent, 500));
        }
        let said = hand.wait(Duration::from_secs(100));
        let place = hand.theirs.wrapping_add(501);
        assert!(
            said.iter().any(|seen| seen.flags.fin() && seen.len == 0),
            "FIN was given up in {state}: {said:?}"
        );
        assert!(
            said.iter()
                .all(|seen| seen.end().wrapping_sub(place) <= 1 && seen.len == 0),
            "data where FIN belongs in {state}: {said:?}"
        );
        // It arrives after all.
        hand.say(hand.ack(sent, 501));
        let expected = (state == TcpState::FinWait1).then_some(TcpState::FinWait2);
        assert_eq!(hand.proxy.state(), expected);
    }
}

/// The initial timeout is 1 s by smoltcp's clock: 200 ms of ours, as Linux's least.
#[test]
fn a_lost_segment_is_repeated_after_200_ms() {
    let mut hand = Hand::established(Setup::default());
    hand.server.write(500);
    let first = hand.settle();
    assert_eq!(first.len(), 1);
    assert_eq!(hand.wait(Duration::from_millis(199)), []);
    let again = hand.wait(Duration::from_millis(3));
    assert_eq!(again, first);
    assert_eq!(hand.wait(Duration::from_millis(390)), []);
    assert_eq!(hand.wait(Duration::from_millis(12)), first);
    assert_eq!(hand.proxy.endings, [] as [Ending; 0]);
}
