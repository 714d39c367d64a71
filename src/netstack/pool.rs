//! Reuse of endpoints: a connection's rings are costly to map and to zero.

use super::endpoint::TcpEndpoint;

/// Capacity of a flow's two rings in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    /// From the client: the largest receive window it is told.
    pub receive: usize,
    /// To the client: what is sent and not yet acknowledged.
    pub send: usize,
}

impl RingSize {
    /// The usual rings. In the prototype 1 MiB was faster than 256 KiB in every
    /// bulk direction, and 4 MiB stalled; untouched pages cost nothing.
    pub const FULL: Self = Self {
        receive: 1 << 20,
        send: 1 << 20,
    };

    /// The rings of flows that start while memory is short: room for one
    /// super-packet each way.
    pub const SMALL: Self = Self {
        receive: 128 << 10,
        send: 128 << 10,
    };

    /// Both rings together.
    pub fn total(self) -> usize {
        self.receive + self.send
    }
}

/// Endpoints that ended, ready for the next connection. One per worker.
#[derive(Debug)]
pub struct EndpointPool {
    full: Vec<TcpEndpoint>,
    small: Vec<TcpEndpoint>,
    limit: usize,
}

impl EndpointPool {
    /// A pool that keeps at most `limit` endpoints of each size; more are freed.
    pub fn new(limit: usize) -> Self {
        Self {
            full: Vec::new(),
            small: Vec::new(),
            limit,
        }
    }

    /// An endpoint with rings of this size, used before or new.
    pub fn take(&mut self, rings: RingSize) -> TcpEndpoint {
        self.shelf(rings)
            .pop()
            .unwrap_or_else(|| TcpEndpoint::new(rings))
    }

    /// Gives an endpoint back, whatever state it is in. False if it was freed.
    pub fn give(&mut self, mut endpoint: TcpEndpoint) -> bool {
        let limit = self.limit;
        let shelf = self.shelf(endpoint.rings());
        let kept = shelf.len() < limit && endpoint.recycle();
        if kept {
            shelf.push(endpoint);
        }
        kept
    }

    fn shelf(&mut self, rings: RingSize) -> &mut Vec<TcpEndpoint> {
        if rings == RingSize::FULL {
            &mut self.full
        } else {
            &mut self.small
        }
    }
}
