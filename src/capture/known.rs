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
    listed: Instant,
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
            let flow = Arc::new(flow);
            let mut add = |side, opener, server| {
                let pair = Pair {
                    protocol: flow.protocol,
                    opener,
                    server,
                };
                let flow = Arc::clone(&flow);
                let listed = now;
                self.pairs.insert(pair, Entry { flow, side, listed });
            };
            add(Side::Client, flow.client, flow.virtual_address);
            if let (Some(source), Some(real_server)) = (flow.source, flow.real_server) {
                add(Side::Server, source, real_server);
            }
        }
        self.pairs
            .retain(|_, entry| now.saturating_duration_since(entry.listed) < AFTER_THE_END);
        if self.pairs.len() > MAX_PAIRS {
            self.pairs.retain(|_, entry| entry.listed == now);
        }
    }

    /// The flow of a pair. `opens`: whether the packet opens one, so that a flow which
    /// has ended is not meant.
    pub(super) fn find(&self, pair: &Pair, opens: bool) -> Option<(&Arc<ListedFlow>, Side)> {
        let entry = self.pairs.get(pair)?;
        let over = Some(entry.listed) != self.last;
        (!(opens && over)).then_some((&entry.flow, entry.side))
    }
}
