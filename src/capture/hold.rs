//! Packets on their way from the socket to the file: in order, each as soon as it is
//! known what it belongs to.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::known::{KnownFlows, ListedFlow, Pair, Side};
use super::scope::{Ends, Scope};
use super::socket::Received;
use crate::packet::protocol;

/// How long a packet waits for the proxy to tell of its flow: two answers, which are a
/// second apart.
const WAIT: Duration = Duration::from_millis(2500);

/// Bytes that may wait. Above, the oldest packet goes first.
const MAX_BYTES: usize = 32 << 20;

/// What a waiting packet takes beside its bytes.
const OVERHEAD: usize = size_of::<Held>();

/// Who opens flows that are wanted.
type WantedClient = Box<dyn Fn(SocketAddr) -> bool + Send>;

/// The packets that wait.
pub struct Hold {
    scope: Scope,
    wanted_client: WantedClient,
    /// Whether a client's packet is told when its real server is not known.
    without_real_server: bool,
    known: KnownFlows,
    queue: VecDeque<Held>,
    bytes: usize,
    ripe_at_once: bool,
    asks: bool,
    crowded_out: u64,
}

/// A packet and what it belongs to.
#[derive(Debug)]
pub struct Told {
    /// What came with it.
    pub received: Received,
    /// Its bytes from the IP header on.
    pub bytes: Vec<u8>,
    /// Service, real server, client and virtual server, and the side.
    pub comment: String,
    /// Whether the proxy has told of its flow.
    pub listed: bool,
}

#[derive(Debug)]
struct Held {
    received: Received,
    bytes: Vec<u8>,
    ends: Ends,
    /// What it must be if it is of a wanted flow, by its addresses.
    guess: Option<(Side, Pair)>,
    flow: Option<(Arc<ListedFlow>, Side)>,
    since: Instant,
}

impl Hold {
    /// Holds packets of this scope whose clients are wanted. `without_real_server` says
    /// whether a client's packet is told also if no flow to a real server is known.
    pub fn new(
        scope: Scope,
        wanted_client: impl Fn(SocketAddr) -> bool + Send + 'static,
        without_real_server: bool,
    ) -> Self {
        Self {
            scope,
            wanted_client: Box::new(wanted_client),
            without_real_server,
            known: KnownFlows::default(),
            queue: VecDeque::new(),
            bytes: 0,
            ripe_at_once: false,
            asks: false,
            crowded_out: 0,
        }
    }

    /// Takes in a packet that has passed an interface, if it can be a wanted one.
    pub fn offer(&mut self, now: Instant, received: Received, bytes: &[u8]) {
        let Some(ends) = Ends::of(bytes) else {
            return;
        };
        let mut held = Held {
            received,
            bytes: Vec::new(),
            ends,
            guess: self.scope.guess(received.interface, &ends),
            flow: None,
            since: now,
        };
        if let Some((Side::Client, pair)) = held.guess
            && !(self.wanted_client)(pair.opener)
        {
            return;
        }
        self.recognise(&mut held);
        if held.flow.is_none() && held.guess.is_none() {
            return;
        }
        if !held.is_settled() && matches!(held.guess, Some((Side::Client, _))) {
            self.asks = true;
        }
        held.bytes = bytes.to_vec();
        self.bytes += bytes.len() + OVERHEAD;
        self.queue.push_back(held);
    }

    /// Takes in what the proxy has told: the flows that are wanted, and what there is to
    /// look for if that was asked too.
    pub fn update(&mut self, now: Instant, flows: Vec<ListedFlow>, scope: Option<Scope>) {
        self.known.update(now, flows);
        if let Some(scope) = scope {
            self.scope = scope;
        }
        let mut queue = std::mem::take(&mut self.queue);
        for held in queue.iter_mut().filter(|held| !held.is_settled()) {
            self.recognise(held);
        }
        self.queue = queue;
    }

    /// Whether a packet waits that made it worth asking the proxy at once. Says so once.
    pub fn asks(&mut self) -> bool {
        std::mem::take(&mut self.asks)
    }

    /// Nothing more will be told: what waits has waited long enough.
    pub fn finish(&mut self) {
        self.ripe_at_once = true;
    }

    /// The next packet to write, if it is known what it belongs to, or has waited long
    /// enough.
    pub fn next(&mut self, now: Instant) -> Option<Told> {
        loop {
            let head = self.queue.front()?;
            let crowded = self.bytes > MAX_BYTES;
            let waited = now.saturating_duration_since(head.since) >= WAIT;
            let settled = head.is_settled();
            if !(settled || waited || crowded || self.ripe_at_once) {
                return None;
            }
            let held = self.queue.pop_front()?;
            self.bytes -= held.bytes.len() + OVERHEAD;
            if crowded && !settled && !waited {
                self.crowded_out += 1;
            } else if let Some(told) = self.tell(held) {
                return Some(told);
            }
        }
    }

    /// The interface's name, if it is known.
    pub fn interface(&self, index: u32) -> Option<&str> {
        let name = self.scope.interfaces.names.get(&index)?;
        Some(name)
    }

    /// Packets left out because too many waited.
    pub fn crowded_out(&self) -> u64 {
        self.crowded_out
    }

    fn recognise(&self, held: &mut Held) {
        for pair in held.ends.pairs() {
            if let Some((flow, side)) = self.known.find(&pair, held.ends.opens)
                && self
                    .scope
                    .is_its_place(held.received.interface, side, &pair)
            {
                held.flow = Some((Arc::clone(flow), side));
                return;
            }
        }
    }

    fn tell(&self, held: Held) -> Option<Told> {
        let (comment, listed) = match (&held.flow, &held.guess) {
            (Some((flow, side)), _) => (comment(flow, *side), true),
            (None, Some((Side::Client, pair))) if self.without_real_server => {
                let flow = ListedFlow {
                    protocol: pair.protocol,
                    client: pair.opener,
                    virtual_address: pair.server,
                    real_server: None,
                    source: None,
                    service: self.scope.service(pair)?.to_owned(),
                };
                (comment(&flow, Side::Client), false)
            }
            (None, _) => return None,
        };
        Some(Told {
            received: held.received,
            bytes: held.bytes,
            comment,
            listed,
        })
    }
}

impl Held {
    /// Whether nothing more is to be learned of it.
    fn is_settled(&self) -> bool {
        self.flow
            .as_ref()
            .is_some_and(|(flow, _)| flow.source.is_some())
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("packets", &self.queue.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// `default/web:http: real server 10.1.15.8:80, client 10.1.7.5:41000, virtual server
/// 10.0.0.3:80/TCP; client's side`.
fn comment(flow: &ListedFlow, side: Side) -> String {
    let real_server = match flow.real_server {
        Some(real_server) => format!("real server {real_server}"),
        None => "real server not known".to_owned(),
    };
    let protocol = if flow.protocol == protocol::UDP {
        "UDP"
    } else {
        "TCP"
    };
    let side = match side {
        Side::Client => "client's side",
        Side::Server => "real server's side",
    };
    format!(
        "service {}, {real_server}, client {}, virtual server {}/{protocol}; {side}",
        flow.service, flow.client, flow.virtual_address,
    )
}
