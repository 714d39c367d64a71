//! One endpoint, one connection after the other: nothing of the last one is left.

use std::io::ErrorKind;
use std::time::Duration;

use super::link::Weather;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::TcpState;

/// A way to end a connection that is under way, and how that is called.
type Way = (Ending, fn(&mut World));

const WAYS: [Way; 8] = [
    (Ending::Closed, |world| {
        world.client.finish();
        world.server.finish();
    }),
    (Ending::Closed, |world| {
        world.server.finish();
        world.run_for(Duration::from_secs(20));
        world.client.finish();
    }),
    (Ending::ClientReset, |world| world.client.reset()),
    (Ending::ServerReset, |world| {
        world.server.fail(ErrorKind::ConnectionReset);
    }),
    (Ending::ServerTimeout, |world| {
        world.server.fail(ErrorKind::TimedOut);
    }),
    (Ending::ClientTimeout, |world| world.filter_up(|_| false)),
    (Ending::ClosingTimeout, |world| {
        world.client.finish();
        world.run_until("the server hears", |world| {
            world.server.look().client_finished
        });
        world.filter_up(|_| false);
        world.server.finish();
    }),
    (Ending::Replaced, |world| {
        // The next connection does it.
        world.filter_up(|_| false);
        world.run_for(Duration::from_secs(1));
    }),
];

/// In the midst of foul weather: holes in the assembler, repeated acknowledgments,
/// a small congestion window, timers running.
fn begin(world: &mut World) {
    world.client.write(100_000);
    world.server.write(100_000);
    world.run_for(Duration::from_millis(30));
}

fn setup(round: u64) -> Setup {
    Setup {
        // The client of every other round does without SACK and window scale.
        client_rings: (
            if round.is_multiple_of(2) {
                256 << 10
            } else {
                32 << 10
            },
            64 << 10,
        ),
        weather: Weather::FOUL,
        seed: round,
        ..Setup::default()
    }
}

#[test]
fn after_every_kind_of_ending() {
    let mut round = 1;
    let mut world = World::established(setup(round));
    for (ending, end) in WAYS {
        begin(&mut world);
        end(&mut world);
        if ending != Ending::Replaced {
            world.run_until("it ends", |world| world.ending().is_some());
            assert_eq!(world.proxy.endings, [ending]);
        }
        round += 1;
        world.reconnect(setup(round));
        world.run_until("the next one opens", |world| {
            world.client.state() == TcpState::Established && world.proxy.flow.is_some()
        });
        assert_eq!(world.proxy.endings, [ending]);
        world.proxy.endings.clear();
        serves(&mut world);
        round += 1;
        world.reconnect(setup(round));
        world.run_until("the one after opens", |world| {
            world.client.state() == TcpState::Established
                && world.proxy.state() == Some(TcpState::Established)
        });
    }
}

/// A whole exchange.
fn serves(world: &mut World) {
    world.client.write(50_000);
    world.server.write(50_000);
    world.client.finish();
    world.server.finish();
    world.run_until("both streams are complete", |world| {
        world.ending().is_some() && world.client.saw_end
    });
    assert_eq!(world.proxy.endings, [Ending::Closed]);
    assert_eq!(world.server.look().read, 50_000);
    assert_eq!(world.client.received, 50_000);
    world.proxy.endings.clear();
}

/// A half-open connection that was reset: smoltcp's socket is back in LISTEN.
#[test]
fn after_a_reset_handshake() {
    use super::hand::Hand;
    let mut hand = Hand::half_open(Setup::default());
    hand.say(hand.rst(0));
    assert_eq!(hand.proxy.endings, [Ending::ClientReset]);
    let mut world = World::new(Setup::default());
    std::mem::swap(&mut world.proxy.pool, &mut hand.proxy.pool);
    world.run_until("the next one opens", |world| {
        world.proxy.state() == Some(TcpState::Established)
    });
    serves(&mut world);
}
