//! FIN in every order, with loss.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::link::Weather;
use super::proxy::Seen;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::TcpState;

const MINUTES: Duration = Duration::from_secs(600);

/// Loses the first `count` packets that `which` finds.
fn lose(count: u32, which: impl Fn(&Seen) -> bool + 'static) -> impl FnMut(&Seen) -> bool {
    let left = Rc::new(Cell::new(count));
    move |seen| {
        if left.get() > 0 && which(seen) {
            left.set(left.get() - 1);
            return false;
        }
        true
    }
}

fn closed(world: &mut World) {
    world.run_until("it is over", |world| {
        world.ending().is_some()
            && matches!(world.client.state(), TcpState::Closed | TcpState::TimeWait)
    });
    assert_eq!(world.ending(), Some(Ending::Closed));
    assert!(world.client.saw_end);
    let server = world.server.look();
    assert!(server.client_finished && server.closed && !server.resets_on_close);
}

#[test]
fn the_client_finishes_first_and_listens_for_minutes() {
    let mut world = World::established(Setup::default());
    world.client.write(1_000);
    world.client.finish();
    world.run_for(MINUTES);
    assert_eq!(world.proxy.state(), Some(TcpState::CloseWait));
    assert!(world.server.look().client_finished);
    world.server.write(300_000);
    world.run_until("the answer arrives", |world| {
        world.client.received == 300_000
    });
    world.run_for(MINUTES);
    assert_eq!(world.ending(), None);
    world.server.finish();
    closed(&mut world);
}

#[test]
fn the_server_finishes_first_and_listens_for_minutes() {
    let mut world = World::established(Setup::default());
    world.server.write(1_000);
    world.server.finish();
    world.run_for(MINUTES);
    assert_eq!(world.proxy.state(), Some(TcpState::FinWait2));
    assert!(world.client.saw_end);
    world.client.write(300_000);
    world.run_until("the rest arrives", |world| {
        world.server.look().read == 300_000
    });
    world.run_for(MINUTES);
    assert_eq!(world.ending(), None);
    world.client.finish();
    closed(&mut world);
}

#[test]
fn both_finish_at_once() {
    let mut world = World::established(Setup::default());
    world.client.write(10);
    world.server.write(10);
    world.client.finish();
    world.server.finish();
    // Neither FIN has seen the other: both ends pass through CLOSING.
    let seen = Rc::new(Cell::new(false));
    let found = Rc::clone(&seen);
    world.run_until("it is over", move |world| {
        found.set(found.get() || world.proxy.state() == Some(TcpState::Closing));
        world.ending().is_some()
    });
    assert!(seen.get(), "the flow never was in CLOSING");
    closed(&mut world);
}

#[test]
fn fin_with_data_in_one_segment() {
    let mut world = World::established(Setup::default());
    let (up, down) = (world.record_up(), world.record_down());
    world.server.write(500);
    world.server.finish();
    world.client.write(500);
    world.client.finish();
    closed(&mut world);
    let with_data = |seen: &&Seen| seen.flags.fin() && seen.len == 500;
    assert!(up.borrow().iter().any(|seen| with_data(&seen)));
    assert!(down.borrow().iter().any(|seen| with_data(&seen)));
    assert_eq!(world.server.look().read, 500);
    assert_eq!(world.client.received, 500);
}

/// Our FIN is lost three times, in each state that sends one.
#[test]
fn our_fin_is_sent_until_it_arrives() {
    for client_first in [false, true] {
        let mut world = World::established(Setup::default());
        world.filter_down(lose(3, |seen| seen.flags.fin()));
        if client_first {
            world.client.finish();
            world.run_for(Duration::from_millis(50));
            assert_eq!(world.proxy.state(), Some(TcpState::CloseWait));
        }
        world.server.write(100);
        world.server.finish();
        let before = world.now;
        world.run_until("FIN arrives", |world| world.client.saw_end);
        // 200 + 400 + 800 ms of Linux's shortest timeout, by the fast clock.
        let took = world.now - before;
        assert!(took > Duration::from_millis(1_200) && took < Duration::from_secs(3));
        world.client.finish();
        closed(&mut world);
    }
}

/// Simultaneous close with our FIN lost: CLOSING repeats it.
#[test]
fn our_fin_is_repeated_in_closing() {
    let mut world = World::established(Setup::default());
    world.filter_down(lose(2, |seen| seen.flags.fin()));
    world.client.finish();
    world.server.finish();
    world.run_for(Duration::from_millis(50));
    assert_eq!(world.proxy.state(), Some(TcpState::Closing));
    closed(&mut world);
}

/// The client's FIN is lost, then our acknowledgments of it.
#[test]
fn the_clients_fin_is_acknowledged_until_it_believes() {
    for server_first in [false, true] {
        let mut world = World::established(Setup::default());
        if server_first {
            world.server.finish();
            world.run_for(Duration::from_millis(50));
            assert_eq!(world.proxy.state(), Some(TcpState::FinWait2));
        }
        world.filter_up(lose(2, |seen| seen.flags.fin()));
        world.filter_down(lose(2, Seen::is_bare));
        world.client.write(100);
        world.client.finish();
        world.run_until("the server hears of it", |world| {
            world.server.look().client_finished
        });
        world.server.finish();
        closed(&mut world);
        assert_eq!(world.server.look().read, 100);
    }
}

/// The acknowledgment of our FIN is lost in FIN_WAIT_1, LAST_ACK and CLOSING.
#[test]
fn lost_acknowledgments_of_our_fin() {
    for (client_first, at_once, state) in [
        (false, false, TcpState::FinWait1),
        (true, false, TcpState::LastAck),
        (false, true, TcpState::Closing),
    ] {
        let mut world = World::established(Setup::default());
        if client_first {
            world.client.finish();
            world.run_for(Duration::from_millis(50));
        }
        let told = world.client.offered as u32;
        assert_eq!(told, 0);
        let ours = world.proxy.flow().endpoint().last_sent().unwrap().sequence;
        // The FIN is one number long: what acknowledges it is lost at first.
        world.filter_up(lose(2, move |seen| {
            seen.acknowledgement == ours.wrapping_add(1) && !seen.flags.fin()
        }));
        if at_once {
            world.client.finish();
        }
        world.server.finish();
        world.run_for(Duration::from_millis(50));
        assert_eq!(world.proxy.state(), Some(state));
        world.client.finish();
        closed(&mut world);
    }
}

#[test]
fn every_order_of_ends_in_foul_weather() {
    let weather = Weather {
        loss: 200,
        repeat: 200,
        ..Weather::FOUL
    };
    for seed in 0..60 {
        let setup = Setup {
            weather,
            seed,
            ..Setup::default()
        };
        let mut world = World::established(setup);
        world.client.write(seed * 100);
        world.server.write(6_000 - seed * 100);
        let gap = Duration::from_millis(seed % 4 * 40);
        if seed % 2 == 0 {
            world.client.finish();
            world.run_for(gap);
            world.server.finish();
        } else {
            world.server.finish();
            world.run_for(gap);
            world.client.finish();
        }
        world.run_until("it is over", |world| {
            world.ending().is_some() && world.client.saw_end
        });
        assert_eq!(world.ending(), Some(Ending::Closed), "seed {seed}");
        assert_eq!(world.server.look().read, seed * 100);
        assert_eq!(world.client.received, 6_000 - seed * 100);
    }
}
