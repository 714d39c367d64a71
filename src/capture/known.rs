//! The flows that the proxy has told of, by the address pairs of both their sides.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long packets of a flow are recognised after it was last listed: as long as the
/// proxy itself answers what comes after the end of a connection.
const AFTER_THE_END: Duration = Duration::from_secs(10);

/// Address pairs remembered at most: two for each of 131,072 flows, twice the proxy's
/// default ceiling. Above, those that have ended are forgotten at once.
const MAX_PAIRS: usize = 1 << 18;

/// A flow as the proxy tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFlow {
    /// IP's number of its protocol, see [`crate::packet::protocol`].
    pub protocol: u8,
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom the client sends to.
    pub virtual_address: SocketAddr,
    /// Who answers; none while none is chosen.
    pub real_server: Option<SocketAddr>,
    /// Whom the real server sees; none while it is not connected.
    pub source: Option<SocketAddr>,
    /// The service port's name.
    pub service: String,
}

/// Which half of a flow a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// Between client and virtual server.
    Client,
    /// Between this node and real server.
    Server,
}

/// Both ends of one side, and the protocol between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) protocol: u8,
    /// Who opened it: client, or this node.
    pub(super) opener: SocketAddr,
    /// Virtual server, or real server.
    pub(super) server: SocketAddr,
}

#[derive(Debug)]
struct Entry {
    flow: Arc<ListedFlow>,
    side: Side,
    by_time: bool,
    listed: Instant,
}

/// What a pair belongs to.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) flow: Arc<ListedFlow>,
    pub(super) side: Side,
    /// Whether its two sides were put together by their times, not told by the proxy.
    pub(super) by_time: bool,
}

/// What the proxy has told of.
#[derive(Debug, Default)]
pub(super) struct KnownFlows {
    pairs: HashMap<Pair, Entry>,
    last: Option<Instant>,
}

impl KnownFlows {
    /// Takes in the flows of one answer.
    pub(super) fn update(&mut self, now: Instant, flows: Vec<ListedFlow>) {
        self.last = Some(now);
        for flow in flows {
            self.insert(now, flow, false);
        }
        self.pairs
            .retain(|_, entry| now.saturating_duration_since(entry.listed) < AFTER_THE_END);
        if self.pairs.len() > MAX_PAIRS {
            self.pairs.retain(|_, entry| entry.listed == now);
        }
    }

    /// Takes in a flow that the proxy has not told of.
    pub(super) fn add_by_time(&mut self, now: Instant, flow: ListedFlow) {
        self.insert(self.last.unwrap_or(now), flow, true);
    }

    /// The flow of a pair. `opens`: whether the packet opens one, so that a flow which
    /// has ended is not meant.
    pub(super) fn find(&self, pair: &Pair, opens: bool) -> Option<Found> {
        let entry = self.pairs.get(pair)?;
        let over = self.last.is_some_and(|last| last != entry.listed);
        (!(opens && over)).then(|| Found {
            flow: Arc::clone(&entry.flow),
            side: entry.side,
            by_time: entry.by_time,
        })
    }

    fn insert(&mut self, listed: Instant, flow: ListedFlow, by_time: bool) {
        let flow = Arc::new(flow);
        let mut add = |side, opener, server| {
            let pair = Pair {
                protocol: flow.protocol,
                opener,
                server,
            };
            let entry = Entry {
                flow: Arc::clone(&flow),
                side,
                by_time,
                listed,
            };
            self.pairs.insert(pair, entry);
        };
        add(Side::Client, flow.client, flow.virtual_address);
        if let (Some(source), Some(real_server)) = (flow.source, flow.real_server) {
            add(Side::Server, source, real_server);
        }
    }
}
