//! What a worker knows of a flow.

use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::relay::{Leg, Relay};
use crate::dataplane::{
    DataplaneConfig, Ending, FlowKey, FlowRecord, FlowView, KernelSocket, UdpFlow,
};
use crate::ipvs::{Connection, VirtualAddress, VirtualServer};

/// One flow and what is known about it whatever its protocol.
#[derive(Debug)]
pub(super) struct Flow {
    /// The client, and the address of the node that it sent to.
    pub(super) key: FlowKey,
    pub(super) kind: Kind,
    pub(super) server: Arc<VirtualServer>,
    /// The listener that it came through.
    pub(super) listener: u32,
    /// The count on the real server that has the flow or is being tried.
    pub(super) connection: Option<Connection>,
    pub(super) started: Instant,
    pub(super) attempts: u32,
    pub(super) dial_time: Option<Duration>,
    pub(super) source: Option<SocketAddr>,
    /// Bytes of memory accounted for its pipes.
    pub(super) held: usize,
    /// Has asked for a turn.
    pub(super) dirty: bool,
    /// Bytes to and from the real server that it counts already.
    pub(super) accounted: (u64, u64),
    /// Among those that are accounted for next.
    pub(super) unaccounted: bool,
    /// The time of the armed timer that counts.
    pub(super) armed: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// An accepted connection waits for a real server.
    Dialing(Dial),
    Tcp(Box<Relay>),
    Udp {
        flow: UdpFlow,
        /// Where answers leave.
        listener: Rc<UdpSocket>,
    },
}

/// A connection to a real server that is being opened. Nothing of what the client
/// sends is read before it is.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) client: Option<Leg>,
    pub(super) socket: Option<KernelSocket>,
    pub(super) deadline: Instant,
    pub(super) tried: Vec<SocketAddr>,
    /// Some real server said no, as opposed to nothing.
    pub(super) refused: bool,
    /// There was no descriptor for an attempt, which is made again.
    pub(super) starved: bool,
}

impl Flow {
    pub(super) fn is_retired(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.real_server().is_retired())
    }

    pub(super) fn record(&self, ending: Ending, now: Instant) -> FlowRecord {
        let (bytes_in, bytes_out) = self.bytes();
        FlowRecord {
            protocol: self.key.protocol,
            service: Arc::clone(&self.server.service),
            client: self.key.client,
            virtual_server: self.key.virtual_server,
            real_server: self.real_server(),
            source: self.source,
            attempts: self.attempts,
            dial_time: self.dial_time,
            duration: now.saturating_duration_since(self.started),
            bytes_in,
            bytes_out,
            ending,
        }
    }

    pub(super) fn view(&self, now: Instant, config: &DataplaneConfig) -> FlowView {
        let (state, ends) = match &self.kind {
            Kind::Dialing(dial) => ("SYN_RECV", Some(dial.deadline)),
            Kind::Udp { flow, .. } => ("UDP", Some(flow.deadline(config.udp_timeout))),
            Kind::Tcp(relay) => (relay.state_name(), relay.deadline(&config.tcp_timeouts)),
        };
        let (bytes_in, bytes_out) = self.bytes();
        FlowView {
            protocol: self.key.protocol,
            client: self.key.client,
            virtual_server: VirtualAddress {
                ip: self.key.virtual_server.ip(),
                port: self.key.virtual_server.port(),
                protocol: self.key.protocol,
            },
            service: Arc::clone(&self.server.service),
            real_server: self.real_server(),
            source: self.source,
            state,
            expires: ends.map(|ends| ends.saturating_duration_since(now)),
            age: now.saturating_duration_since(self.started),
            bytes_in,
            bytes_out,
        }
    }

    /// Counts the bytes since the last time on the real server and its virtual server.
    pub(super) fn account(&mut self) {
        self.unaccounted = false;
        let (bytes_in, bytes_out) = self.bytes();
        let (had_in, had_out) = self.accounted;
        if let Some(connection) = &self.connection
            && (bytes_in, bytes_out) != self.accounted
        {
            self.accounted = (bytes_in, bytes_out);
            let real_server = connection.real_server();
            self.server
                .carried(real_server, bytes_in - had_in, bytes_out - had_out);
        }
    }

    /// Whether it has bytes that nobody counts and nobody is going to.
    pub(super) fn is_unnoticed(&self) -> bool {
        !self.unaccounted && self.bytes() != self.accounted
    }

    fn bytes(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Dialing(_) => (0, 0),
            Kind::Tcp(relay) => (relay.bytes_in(), relay.bytes_out()),
            Kind::Udp { flow, .. } => (flow.bytes_in(), flow.bytes_out()),
        }
    }

    fn real_server(&self) -> Option<SocketAddr> {
        self.connection
            .as_ref()
            .map(|connection| connection.real_server().address)
    }
}
