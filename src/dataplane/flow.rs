//! What a worker knows of a flow, whether it came through the TUN or a listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::DataplaneConfig;
use super::access_log::FlowRecord;
use super::dial::Dial;
use super::ending::Ending;
use super::flow_table::{FlowId, FlowKey};
use super::stats::{WorkerStats, add};
use super::timers::Timers;
use super::udp_flow::UdpFlow;
use super::view::FlowView;
use crate::ipvs::{Connection, VirtualAddress, VirtualServer};

/// What carries a flow's bytes.
pub(crate) trait Conversation {
    /// What only flows of this kind of worker have.
    type Own;

    /// Bytes to and from the real server so far.
    fn bytes(&self) -> (u64, u64);

    /// The state as `ipvsadm -Lnc` names it, and when the flow ends if nothing moves.
    fn standing(&self, config: &DataplaneConfig) -> (&'static str, Option<Instant>);

    /// The connection to a real server that is being opened, if that is where it stands.
    fn dial(&mut self) -> Option<&mut Dial>;

    /// The conversation, if it is one of UDP.
    fn udp(&self) -> Option<&UdpFlow>;
}

/// One flow and what is known about it whatever its protocol.
#[derive(Debug)]
pub(crate) struct Flow<K: Conversation> {
    /// The client, and the address that it sent to.
    pub(crate) key: FlowKey,
    pub(crate) kind: K,
    pub(crate) own: K::Own,
    pub(crate) server: Arc<VirtualServer>,
    /// The count on the real server that has the flow or is being tried.
    pub(crate) connection: Option<Connection>,
    pub(crate) started: Instant,
    pub(crate) attempts: u32,
    pub(crate) dial_time: Option<Duration>,
    pub(crate) source: Option<SocketAddr>,
    /// Bytes of memory accounted for its rings or pipes.
    pub(crate) held: usize,
    /// Has asked for a turn.
    pub(crate) dirty: bool,
    /// Bytes to and from the real server that it counts already.
    accounted: (u64, u64),
    /// Among those that are accounted for next.
    pub(super) unaccounted: bool,
    /// The time of the armed timer that counts.
    pub(super) armed: Option<Instant>,
}

impl<K: Conversation> Flow<K> {
    /// One that no real server has yet.
    pub(crate) fn new(
        key: FlowKey,
        kind: K,
        own: K::Own,
        server: Arc<VirtualServer>,
        started: Instant,
    ) -> Self {
        Self {
            key,
            kind,
            own,
            server,
            connection: None,
            started,
            attempts: 0,
            dial_time: None,
            source: None,
            held: 0,
            dirty: false,
            accounted: (0, 0),
            unaccounted: false,
            armed: None,
        }
    }

    /// Arms its timer unless an earlier one is armed.
    pub(super) fn arm(&mut self, id: FlowId, at: Instant, timers: &mut Timers) {
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            timers.arm(at, id);
        }
    }

    pub(crate) fn is_retired(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.real_server().is_retired())
    }

    /// Counts the bytes since the last time on the real server and its virtual server.
    pub(super) fn account(&mut self) {
        self.unaccounted = false;
        let (bytes_in, bytes_out) = self.kind.bytes();
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
        !self.unaccounted && self.kind.bytes() != self.accounted
    }

    fn real_server(&self) -> Option<SocketAddr> {
        self.connection
            .as_ref()
            .map(|connection| connection.real_server().address)
    }

    /// Counts the end, and the last bytes, and has the end logged where it is to be.
    pub(crate) fn ended(
        &mut self,
        ending: Ending,
        now: Instant,
        config: &DataplaneConfig,
        stats: &WorkerStats,
        log: &SyncSender<FlowRecord>,
    ) {
        let record = self.record(ending, now);
        self.account();
        stats.ended(ending, record.duration);
        let logged = self.server.access_log.unwrap_or(config.access_log);
        if logged && log.try_send(record).is_err() {
            add(&stats.unlogged);
        }
    }

    fn record(&self, ending: Ending, now: Instant) -> FlowRecord {
        let (bytes_in, bytes_out) = self.kind.bytes();
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

    pub(crate) fn view(&self, now: Instant, config: &DataplaneConfig) -> FlowView {
        let (state, ends) = self.kind.standing(config);
        let (bytes_in, bytes_out) = self.kind.bytes();
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
