//! Client, links, flow and real server together, and the clock.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Ends;
use super::client::Client;
use super::link::{Filter, Link, Weather};
use super::proxy::{Proxy, Seen};
use super::server::Server;
use crate::dataplane::tcp_flow::{Ending, TcpTimeouts};
use crate::netstack::{RingSize, TcpState};

/// Rounds at one time that no scenario needs.
const MAX_ROUNDS: u32 = 100_000;

/// What a scenario starts from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) ends: Ends,
    /// The client's MTU.
    pub(super) mtu: usize,
    /// The client's receive and send buffers.
    pub(super) client_rings: (usize, usize),
    pub(super) rings: RingSize,
    pub(super) weather: Weather,
    pub(super) timeouts: TcpTimeouts,
    /// The real server's socket: send and receive buffers.
    pub(super) socket: (u64, u64),
    pub(super) seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ends: Ends::v4(),
            mtu: 1450,
            client_rings: (256 << 10, 256 << 10),
            rings: RingSize::SMALL,
            weather: Weather::FAIR,
            timeouts: TcpTimeouts {
                idle: None,
                closing: Duration::from_secs(120),
            },
            socket: (64 << 10, 64 << 10),
            seed: 1,
        }
    }
}

/// Everything, at one time.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) setup: Setup,
    pub(super) client: Client,
    pub(super) up: Link,
    pub(super) down: Link,
    pub(super) proxy: Proxy,
    pub(super) server: Server,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let start = Instant::now();
        let proxy = Proxy::new(setup.rings, setup.timeouts, start);
        let mut world = Self {
            now: start,
            start,
            setup,
            client: Client::new(setup.mtu, setup.client_rings, setup.seed, start),
            up: Link::new(setup.weather, setup.seed.wrapping_mul(2)),
            down: Link::new(setup.weather, setup.seed.wrapping_mul(2) + 1),
            proxy,
            server: Server::new(1, 1).0,
        };
        world.connect();
        world
    }

    /// A world whose connection is open at both ends.
    pub(super) fn established(setup: Setup) -> Self {
        let mut world = Self::new(setup);
        world.run_until("the connection opens", |world| {
            world.client.state() == TcpState::Established
                && world.proxy.state() == Some(TcpState::Established)
        });
        world
    }

    /// A new client and a new real server behind the same proxy.
    pub(super) fn reconnect(&mut self, setup: Setup) {
        self.setup = setup;
        self.up = Link::new(setup.weather, setup.seed.wrapping_mul(2));
        self.down = Link::new(setup.weather, setup.seed.wrapping_mul(2) + 1);
        self.client = Client::new(setup.mtu, setup.client_rings, setup.seed, self.start);
        self.connect();
    }

    fn connect(&mut self) {
        let (server, socket) = Server::new(self.setup.socket.0, self.setup.socket.1);
        self.server = server;
        self.proxy.dialled = Some(socket);
        self.client.connect(self.setup.ends);
    }

    /// How the flow ended, once it has.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.proxy.endings.last().copied()
    }

    /// Time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Lets everything happen that can, then moves on to the next event, until
    /// `done`. Panics after an hour or when nothing can happen any more.
    pub(super) fn run_until(&mut self, what: &str, done: impl Fn(&mut Self) -> bool) {
        let limit = self.now + Duration::from_secs(3600);
        loop {
            self.settle(&done);
            if done(self) {
                return;
            }
            let Some(next) = self.next() else {
                panic!(
                    "waiting until {what}: nothing will happen; {}",
                    self.describe()
                );
            };
            assert!(next < limit, "waiting until {what}; {}", self.describe());
            self.now = self.now.max(next);
        }
    }

    /// Lets time pass.
    pub(super) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.settle(&|_| false);
            match self.next() {
                Some(next) if next <= end => self.now = self.now.max(next),
                Some(_) | None => break,
            }
        }
        self.now = end;
        self.settle(&|_| false);
    }

    /// Only packets to the client that `filter` lets pass arrive from now on.
    pub(super) fn filter_down(&mut self, filter: impl FnMut(&Seen) -> bool + 'static) {
        self.down.filter = Some(Box::new(filter));
    }

    /// Only packets to the proxy that `filter` lets pass arrive from now on.
    pub(super) fn filter_up(&mut self, filter: impl FnMut(&Seen) -> bool + 'static) {
        self.up.filter = Some(Box::new(filter));
    }

    /// Records what is sent to the client, lost or not.
    pub(super) fn record_down(&mut self) -> Rc<RefCell<Vec<Seen>>> {
        record(&mut self.down)
    }

    /// Records what the client sends, lost or not.
    pub(super) fn record_up(&mut self) -> Rc<RefCell<Vec<Seen>>> {
        record(&mut self.up)
    }

    fn settle(&mut self, done: &dyn Fn(&mut Self) -> bool) {
        for _ in 0..MAX_ROUNDS {
            if !self.round() || done(self) {
                return;
            }
        }
        panic!("it spins; {}", self.describe());
    }

    fn round(&mut self) -> bool {
        let now = self.now;
        let mut busy = false;
        while let Some(packet) = self.up.due(now) {
            self.proxy.packet(now, &packet);
            busy = true;
        }
        if let Some(edges) = self.server.edges() {
            self.proxy.ready(edges);
            busy = true;
        }
        busy |= self.proxy.step(now);
        for packet in std::mem::take(&mut self.proxy.wire.packets) {
            self.down.send(now, packet);
        }
        while let Some(packet) = self.down.due(now) {
            self.client.take_in(packet, now);
            busy = true;
        }
        busy |= self.client.step(now);
        for packet in self.client.take_sent() {
            self.up.send(now, packet);
        }
        busy | self.server.step(now)
    }

    fn next(&mut self) -> Option<Instant> {
        [
            self.up.next(),
            self.down.next(),
            self.proxy.armed,
            self.client.next(self.now),
            self.server.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn describe(&self) -> String {
        format!(
            "after {:?}, {} turns: client {} (sent {} of {}, received {}), flow {:?} {:?}, {:?}",
            self.elapsed(),
            self.proxy.turns,
            self.client.state(),
            self.client.sent,
            self.client.offered,
            self.client.received,
            self.proxy.flow,
            self.proxy.endings,
            self.server,
        )
    }
}

fn record(link: &mut Link) -> Rc<RefCell<Vec<Seen>>> {
    let record = Rc::new(RefCell::new(Vec::new()));
    let copy = Rc::clone(&record);
    let mut before: Option<Filter> = link.filter.take();
    link.filter = Some(Box::new(move |seen| {
        copy.borrow_mut().push(*seen);
        before.as_mut().is_none_or(|filter| filter(seen))
    }));
    record
}
