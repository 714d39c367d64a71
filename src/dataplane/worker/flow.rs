//! What a worker knows of a flow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dataplane::DataplaneConfig;
use crate::dataplane::access_log::FlowRecord;
use crate::dataplane::ending::Ending;
use crate::dataplane::flow_table::FlowKey;
use crate::dataplane::server_socket::KernelSocket;
use crate::dataplane::tcp_flow::TcpFlow;
use crate::dataplane::udp_flow::UdpFlow;
use crate::dataplane::view::FlowView;
use crate::ipvs::{Connection, VirtualAddress, VirtualServer};

/// One flow and what is known about it whatever its protocol.
#[derive(Debug)]
pub(in crate::dataplane) struct Flow {
    pub(in crate::dataplane) key: FlowKey,
    pub(in crate::dataplane) kind: Kind,
    pub(in crate::dataplane) server: Arc<VirtualServer>,
    /// The count on the real server that has the flow or is being tried.
    pub(in crate::dataplane) connection: Option<Connection>,
    pub(in crate::dataplane) started: Instant,
    pub(in crate::dataplane) attempts: u32,
    pub(in crate::dataplane) dial_time: Option<Duration>,
    pub(in crate::dataplane) source: Option<SocketAddr>,
    /// Bytes of memory accounted for its rings.
    pub(in crate::dataplane) held: usize,
    /// Counted by [`HalfOpen`].
    pub(in crate::dataplane) half_open: bool,
    /// Has asked for a turn.
    pub(in crate::dataplane) dirty: bool,
    /// Bytes to and from the real server that it counts already.
    pub(in crate::dataplane) accounted: (u64, u64),
    /// Among those that are accounted for next.
    pub(in crate::dataplane) unaccounted: bool,
    /// The time of the armed timer that counts.
    pub(in crate::dataplane) armed: Option<Instant>,
}

#[derive(Debug)]
pub(in crate::dataplane) enum Kind {
    /// A SYN waits for a real server.
    Dialing(Dial),
    Tcp(Box<TcpFlow<KernelSocket>>),
    Udp(UdpFlow),
}

/// A connection that is being opened: the SYN as it came and nothing else.
#[derive(Debug)]
pub(in crate::dataplane) struct Dial {
    pub(in crate::dataplane) syn: Box<[u8]>,
    pub(in crate::dataplane) sequence: u32,
    pub(in crate::dataplane) max_segment_size: Option<u16>,
    pub(in crate::dataplane) socket: Option<KernelSocket>,
    pub(in crate::dataplane) deadline: Instant,
    pub(in crate::dataplane) tried: Vec<SocketAddr>,
    /// Some real server said no, as opposed to nothing.
    pub(in crate::dataplane) refused: bool,
    pub(in crate::dataplane) unreachable: bool,
}

impl Flow {
    pub(super) fn is_retired(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.real_server().is_retired())
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
            Kind::Tcp(tcp) => (tcp.bytes_in(), tcp.bytes_out()),
            Kind::Udp(udp) => (udp.bytes_in(), udp.bytes_out()),
        }
    }

    fn real_server(&self) -> Option<SocketAddr> {
        self.connection
            .as_ref()
            .map(|connection| connection.real_server().address)
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
            Kind::Udp(udp) => ("UDP", Some(udp.deadline(config.udp_timeout))),
            Kind::Tcp(tcp) => {
                let idle = config
                    .tcp_timeouts
                    .idle
                    .map(|idle| tcp.last_active() + idle);
                (tcp.state_name(), idle)
            }
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
}
