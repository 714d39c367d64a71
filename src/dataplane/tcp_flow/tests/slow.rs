//! Back-pressure: an end that does not read stops the other, and nothing piles up.

use std::time::Duration;

use super::server::Pace;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::RingSize;

const RINGS: RingSize = RingSize {
    receive: 64 << 10,
    send: 64 << 10,
};

fn setup() -> Setup {
    Setup {
        rings: RINGS,
        client_rings: (16 << 10, 1 << 20),
        socket: (8 << 10, 8 << 10),
        ..Setup::default()
    }
}

/// Reads nothing for longer than any test takes.
const NEVER: Pace = Pace {
    bytes: 0,
    every: Duration::from_secs(100_000),
};

#[test]
fn a_server_that_does_not_read_closes_the_window() {
    let mut world = World::established(setup());
    world.server.set_pace(Some(NEVER), world.now);
    world.client.write(1 << 20);
    world.client.finish();
    let sent = world.record_down();
    world.run_for(Duration::from_secs(60));
    // The socket is full, the ring is full, and the window is shut.
    assert_eq!(world.server.look().taken, 8 << 10);
    // The window scale leaves out the last byte.
    let queue = world.proxy.flow().endpoint().receive_queue();
    assert!((RINGS.receive - 1..=RINGS.receive).contains(&queue));
    assert_eq!(sent.borrow().last().unwrap().window, 0);
    // The client's probes are answered, each once.
    let (before, turns) = (sent.borrow().len(), world.proxy.turns);
    world.run_for(Duration::from_secs(600));
    let answers = sent.borrow().len() - before;
    assert!((5..60).contains(&answers), "{answers} answers to probes");
    assert!(world.proxy.turns - turns < 100);
    assert_eq!(world.ending(), None);
    // It reads again: all arrives.
    world.server.set_pace(None, world.now);
    world.server.finish();
    world.run_until("it is over", |world| world.ending().is_some());
    assert_eq!(world.server.look().read, 1 << 20);
    assert_eq!(world.ending(), Some(Ending::Closed));
}

#[test]
fn a_slow_server_gets_all() {
    let mut world = World::established(setup());
    let pace = Pace {
        bytes: 3_000,
        every: Duration::from_millis(100),
    };
    world.server.set_pace(Some(pace), world.now);
    world.client.write(500_000);
    world.client.finish();
    world.server.finish();
    world.run_until("it is over", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::Closed));
    assert_eq!(world.server.look().taken, 500_000);
    assert!(world.server.look().client_finished);
    // What is left in the socket is the kernel's to deliver.
    assert!(world.server.look().read >= 500_000 - (8 << 10));
}

#[test]
fn a_client_that_does_not_read_stops_the_server() {
    let mut world = World::established(setup());
    world.client.set_pace(Some(NEVER), world.now);
    world.server.write(1 << 20);
    world.server.finish();
    let sent = world.record_down();
    world.run_for(Duration::from_secs(60));
    // The ring holds whole super-packets, as many as fit.
    let endpoint = world.proxy.flow().endpoint();
    let ring = endpoint.send_room() + endpoint.send_queue();
    assert!(ring <= RINGS.send && ring > RINGS.send / 2);
    let held = (16 << 10) + ring as u64;
    // One byte more, the probe's, may have been taken from the ring.
    assert!((held..held + 8).contains(&world.server.look().given));
    // We probe the closed window, ever more rarely, and never give up.
    let (before, turns) = (sent.borrow().len(), world.proxy.turns);
    world.run_for(Duration::from_secs(1200));
    let probes = sent.borrow().len() - before;
    assert!((60..200).contains(&probes), "{probes} probes");
    assert!(
        world.proxy.turns - turns < 400,
        "{}",
        world.proxy.turns - turns
    );
    assert_eq!(world.ending(), None);
    world.client.set_pace(None, world.now);
    world.client.finish();
    world.run_until("it is over", |world| world.ending().is_some());
    assert_eq!(world.client.received, 1 << 20);
    assert_eq!(world.ending(), Some(Ending::Closed));
}

/// The last ring-full of a download takes longer than the closing timeout, both
/// directions being finished: as long as the client acknowledges, it gets all.
#[test]
fn a_slow_client_gets_what_is_left_after_both_have_finished() {
    let mut world = World::established(setup());
    let pace = Pace {
        bytes: 1_000,
        every: Duration::from_secs(5),
    };
    world.client.set_pace(Some(pace), world.now);
    world.client.finish();
    world.server.write(80_000);
    world.server.finish();
    world.run_until("the flow ends", |world| world.ending().is_some());
    assert_eq!(world.ending(), Some(Ending::Closed));
    assert!(world.elapsed() > 2 * world.setup.timeouts.closing);
    // What is left is in the client's own buffer.
    world.client.set_pace(None, world.now);
    world.run_until("the client has read it all", |world| world.client.saw_end);
    assert_eq!(world.client.received, 80_000);
}

/// A window that shuts and opens again must not cost a probe's time, whichever end
/// has finished. (In LAST_ACK smoltcp 0.14 learns of no window.)
#[test]
fn a_steady_slow_client_is_not_stalled() {
    for (client_finishes, server_finishes) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let mut world = World::established(Setup {
            client_rings: (4_000, 4_000),
            socket: (64 << 10, 64 << 10),
            ..setup()
        });
        let pace = Pace {
            bytes: 4_000,
            every: Duration::from_millis(50),
        };
        if client_finishes {
            world.client.finish();
            world.run_until("the server hears", |world| {
                world.server.look().client_finished
            });
        }
        world.client.set_pace(Some(pace), world.now);
        world.server.write(60_000);
        if server_finishes {
            world.server.finish();
        }
        world.run_until("the client has it all", |world| {
            world.client.received == 60_000
        });
        // 15 reads, a little more for windows that were not full.
        let took = world.elapsed();
        assert!(
            took < Duration::from_millis(1_500),
            "{client_finishes} {server_finishes}: {took:?}"
        );
    }
}
