//! Anything, in any order: what arrives is what was sent, and it ends.

use std::io::ErrorKind;
use std::time::Duration;

use proptest::prelude::*;

use super::link::Weather;
use super::server::Pace;
use super::world::{Setup, World};
use crate::dataplane::tcp_flow::Ending;
use crate::netstack::{RingSize, TcpState};

#[derive(Clone, Copy, Debug)]
enum Step {
    ClientWrites(u32),
    ClientReads(bool),
    ClientFinishes,
    ClientResets,
    ServerWrites(u32),
    ServerReads(bool),
    ServerFinishes,
    ServerCloses,
    ServerFails,
    Weather {
        loss: u32,
        repeat: u32,
        reorder: u32,
    },
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..60_000_u32).prop_map(Step::ClientWrites),
        2 => any::<bool>().prop_map(Step::ClientReads),
        1 => Just(Step::ClientFinishes),
        4 => (1..60_000_u32).prop_map(Step::ServerWrites),
        2 => any::<bool>().prop_map(Step::ServerReads),
        1 => Just(Step::ServerFinishes),
        2 => (0..200_u32, 0..200_u32, 0..200_u32)
            .prop_map(|(loss, repeat, reorder)| Step::Weather { loss, repeat, reorder }),
        6 => prop_oneof![0..3_u32, 0..500_u32, 0..200_000_u32].prop_map(Step::Wait),
    ]
}

/// At most one of these in a scenario: the streams need not be complete then.
fn break_off() -> impl Strategy<Value = Option<Step>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Step::ClientResets)),
        1 => Just(Some(Step::ServerFails)),
        1 => Just(Some(Step::ServerCloses)),
    ]
}

fn take(world: &mut World, step: Step, over: &mut bool) {
    // An end that does not read: a little, and rarely.
    let lazy = |reads: bool| {
        (!reads).then_some(Pace {
            bytes: 100,
            every: Duration::from_secs(50),
        })
    };
    match step {
        Step::ClientWrites(bytes) if !*over && !world.client.is_finishing() => {
            world.client.write(u64::from(bytes));
        }
        Step::ClientReads(reads) => world.client.set_pace(lazy(reads), world.now),
        Step::ClientFinishes => world.client.finish(),
        Step::ClientResets => {
            world.client.reset();
            *over = true;
        }
        Step::ServerWrites(bytes) if !world.server.is_finishing() => {
            world.server.write(u64::from(bytes));
        }
        Step::ServerReads(reads) => world.server.set_pace(lazy(reads), world.now),
        Step::ServerFinishes => world.server.finish(),
        Step::ServerCloses => world.server.close(),
        Step::ServerFails => world.server.fail(ErrorKind::ConnectionReset),
        Step::Weather {
            loss,
            repeat,
            reorder,
        } => {
            let weather = Weather {
                loss,
                repeat,
                reorder,
                ..Weather::FAIR
            };
            world.up.weather = weather;
            world.down.weather = weather;
        }
        Step::Wait(millis) => world.run_for(Duration::from_millis(millis.into())),
        Step::ClientWrites(_) | Step::ServerWrites(_) => {}
    }
}

fn setup() -> impl Strategy<Value = Setup> {
    // A smoltcp with larger segments than the flow's window is no client to learn from:
    // see netstack's mend.rs.
    let mtu = prop_oneof![Just(576_usize), Just(1450)];
    let client = prop_oneof![Just(2_000_usize), Just(32 << 10), Just(200_000)];
    let ring = prop_oneof![Just(3_000_usize), Just(40_000), Just(128 << 10)];
    let socket = prop_oneof![Just(700_u64), Just(50_000)];
    (mtu, client, ring, socket, any::<u64>()).prop_map(|(mtu, client, ring, socket, seed)| Setup {
        mtu,
        client_rings: (client, 64 << 10),
        rings: RingSize {
            receive: ring,
            send: ring,
        },
        socket: (socket, socket),
        seed,
        ..Setup::default()
    })
}

proptest! {
    // Two smoltcps, who both go back to repeat and both look at no acknowledgment outside
    // their window, get stuck in one of 100,000 scenarios; no kernel's client does.
    #[test]
    fn streams_are_kept_and_flows_end(
        setup in setup(),
        before in prop::collection::vec(step(), 0..20),
        break_off in break_off(),
        after in prop::collection::vec(step(), 0..6),
    ) {
        let mut world = World::new(setup);
        let mut over = false;
        let steps = before.into_iter().chain(break_off).chain(after);
        for step in steps {
            take(&mut world, step, &mut over);
        }
        // The weather clears, everybody reads, both ends finish.
        world.up.weather = Weather::FAIR;
        world.down.weather = Weather::FAIR;
        world.client.set_pace(None, world.now);
        world.server.set_pace(None, world.now);
        world.client.finish();
        world.server.finish();
        let (up, down) = (world.client.offered, world.server.look().offered);
        world.run_until("it ends", |world| {
            (world.ending().is_some() || world.client.state() == TcpState::Closed)
                && world.proxy.flow.is_none()
        });
        // Every byte was checked where it arrived; here it is whether all did.
        // A client whose TIME_WAIT is over answers our last FIN with RST.
        let forgotten = world.ending() == Some(Ending::ClientReset) && world.client.saw_end;
        let whole = world.ending() == Some(Ending::Closed) || forgotten;
        if break_off.is_none() {
            prop_assert!(whole, "{:?}", world.ending());
        }
        if whole && break_off.is_none() {
            world.run_until("the client reads all", |world| world.client.saw_end);
            prop_assert_eq!(world.server.look().taken, up);
            prop_assert_eq!(world.client.received, down);
            prop_assert!(forgotten || !world.server.look().resets_on_close);
        }
    }
}
