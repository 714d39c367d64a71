//! TCP: SYNs, dials, segments of open flows.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::receive::Arrival;
use super::{Dialing, Kind, Worker};
use crate::dataplane::dial::{Dial, Outcome};
use crate::dataplane::ending::Ending;
use crate::dataplane::flow_table::{FlowId, FlowKey, Found};
use crate::dataplane::preface::proxy_header;
use crate::dataplane::server_socket::{HandshakeAck, KernelSocket};
use crate::dataplane::tcp_flow::{Progress, TcpFlow};
use crate::ipvs::{DropReason, EchoVerdict, Protocol, RejectReason, Verdict, VirtualAddress};
use crate::netstack::{Fault, Ingest, RingSize};
use crate::packet::{IpPacket, TcpSegment, Unreachable};

impl Worker {
    pub(super) fn tcp(&mut self, arrival: &Arrival<'_>, segment: &TcpSegment<'_>) {
        let packet = &arrival.packet;
        let key = FlowKey {
            client: SocketAddr::new(packet.source, segment.source_port),
            virtual_server: SocketAddr::new(packet.destination, segment.destination_port),
            protocol: Protocol::Tcp,
        };
        let opens = segment.flags.opens();
        match self.flows.find(&key) {
            Some(Found::Flow(id)) if opens => {
                if self.repeats(id, segment.seq) {
                    return;
                }
                // The client has forgotten the old connection, or it is closing:
                // smoltcp would stay silent to the new one (RFC 9293 3.10.7.4 asks
                // for a challenge ACK, whose RST leads here as well, a second later).
                self.replace(id);
                if !self.pass_on(arrival, &key) {
                    self.syn(&key, packet, segment);
                }
            }
            Some(Found::Flow(id)) => self.segment(id, packet, segment),
            Some(Found::TimeWait(_)) if opens => {
                self.flows.end_time_wait(&key);
                if !self.pass_on(arrival, &key) {
                    self.syn(&key, packet, segment);
                }
            }
            Some(Found::TimeWait(sent)) => self.time_wait(&key, sent, packet, segment),
            None if self.pass_on(arrival, &key) => {}
            None if opens => self.syn(&key, packet, segment),
            None if self.pass_stray(arrival) => {}
            None => self.stray(&key, packet, segment),
        }
    }

    /// True when a SYN repeats the one that the flow began with.
    fn repeats(&mut self, id: FlowId, sequence: u32) -> bool {
        match self.flows.get_mut(id).map(|flow| &flow.kind) {
            Some(Kind::Dialing(dialing)) => dialing.sequence == sequence,
            Some(Kind::Tcp(tcp)) => tcp.endpoint().initial_sequence() == sequence,
            Some(Kind::Udp(_)) | None => false,
        }
    }

    fn replace(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Tcp(tcp) = &mut flow.kind
            && !tcp.is_finished()
        {
            tcp.forsake();
        }
        self.finish(id, Ending::Replaced);
    }

    /// A new connection: asks the table, then dials before anything is answered.
    fn syn(&mut self, key: &FlowKey, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        let address = VirtualAddress {
            ip: key.virtual_server.ip(),
            port: key.virtual_server.port(),
            protocol: Protocol::Tcp,
        };
        let verdict = self.verdict(address, key.client);
        let server = match verdict {
            Verdict::Forward(server) => server,
            refusal @ (Verdict::Reject(_) | Verdict::Drop(_)) => {
                return self.refuse_syn(packet, &refusal);
            }
        };
        if !self.is_served(&server, key.client) {
            return self.discard(DropReason::PodTraffic);
        }
        if let Err(reason) = self.admit() {
            return self.refuse_syn(packet, &Verdict::Reject(reason));
        }
        if !self.half_open.enter(key.client.ip()) {
            return self.discard(DropReason::HalfOpenLimit);
        }
        let dialing = Dialing {
            syn: packet.bytes.into(),
            sequence: segment.seq,
            max_segment_size: segment.max_segment_size(),
            dial: Dial::new(self.now),
        };
        let id = self.insert(*key, server, Kind::Dialing(dialing));
        if let Some(flow) = self.flows.get_mut(id) {
            flow.own.half_open = true;
        }
        self.dial(id);
    }

    fn refuse_syn(&mut self, packet: &IpPacket<'_>, verdict: &Verdict) {
        match verdict {
            Verdict::Reject(reason) => {
                self.rejected(*reason);
                self.refuse_tcp(packet);
            }
            Verdict::Drop(reason) => self.discard(*reason),
            Verdict::Forward(_) => {}
        }
    }

    /// Tries the next real server, and the next, until one is being connected to.
    fn dial(&mut self, id: FlowId) {
        let now = self.now;
        loop {
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let Some(address) = flow.next_attempt(&self.config, &self.stats, now) else {
                return self.give_up(id);
            };
            let socket = if self.shared.table.echo(address.ip()) == EchoVerdict::Answer {
                // A real server that is a virtual IP would lead back here for ever.
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            } else {
                // Whoever is silent until the handshake is complete must not wait for data.
                let ack = if flow.server.speaks_first() {
                    HandshakeAck::AtOnce
                } else {
                    HandshakeAck::WithData
                };
                self.dialer.connect(address, ack, now)
            };
            match socket.and_then(|socket| self.watch(id, socket)) {
                Ok(socket) => return self.flows.connecting(id, socket),
                Err(error) => self.flows.attempt_failed(id, &error, &self.stats),
            }
        }
    }

    fn watch(&mut self, id: FlowId, socket: KernelSocket) -> io::Result<KernelSocket> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let fd = socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), Token(id.to_token()), interest)?;
        Ok(socket)
    }

    /// The socket of a dial has become writable or failed.
    pub(super) fn dial_ready(&mut self, id: FlowId, event: &Event) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dialing) = &flow.kind else {
            return;
        };
        let Some(socket) = &dialing.dial.socket else {
            return;
        };
        // What is writable and neither broken nor closed is connected: no call to ask.
        let sound = event.is_writable()
            && !event.is_error()
            && !event.is_write_closed()
            && !event.is_read_closed();
        let result = if sound {
            Ok(())
        } else {
            socket.connect_result()
        };
        match result {
            Ok(()) => self.open(id),
            Err(error) => {
                self.flows.attempt_failed(id, &error, &self.stats);
                self.dial(id);
            }
        }
    }

    pub(super) fn dial_timer(&mut self, id: FlowId) {
        if self.flows.is_overdue(id, self.now) {
            let error = io::ErrorKind::TimedOut.into();
            self.flows.attempt_failed(id, &error, &self.stats);
            self.dial(id);
        }
    }

    /// No real server is left to try.
    fn give_up(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dialing) = &mut flow.kind else {
            return;
        };
        let syn = std::mem::take(&mut dialing.syn);
        let outcome = dialing.dial.outcome();
        let server = Arc::clone(&flow.server);
        self.finish(id, outcome.ending());
        let Ok(packet) = IpPacket::parse(&syn) else {
            return;
        };
        match outcome {
            Outcome::NoneTried => self.refuse_syn(&packet, &server.refusal()),
            Outcome::Refused => {
                self.refuse_syn(&packet, &Verdict::Reject(RejectReason::ConnectFailed));
            }
            Outcome::Unreachable => {
                self.rejected(RejectReason::ConnectFailed);
                self.refuse(&packet, Unreachable::Host);
            }
            Outcome::Silent => self.discard(DropReason::ConnectTimeout),
        }
    }

    /// The real server is connected: now the client gets its SYN-ACK.
    fn open(&mut self, id: FlowId) {
        let now = self.now;
        let rings = self.ring_size();
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Some(socket) = flow.connected(&self.stats, now) else {
            return;
        };
        let Kind::Dialing(dialing) = &flow.kind else {
            return;
        };
        let before = self.rings.touched();
        let endpoint = self.stack.endpoint(
            &self.rings,
            rings,
            dialing.max_segment_size,
            flow.key.client.is_ipv4(),
            now,
        );
        // Memory that moves from the pool to the flow stays accounted.
        flow.held = before - self.rings.touched();
        let endpoint = match endpoint {
            Ok(endpoint) => endpoint,
            Err(error) => return self.no_rings(id, &error),
        };
        let opened = TcpFlow::open(
            endpoint,
            socket,
            &mut self.stack,
            &dialing.syn,
            flow.key.virtual_server.port(),
            dialing.sequence,
            now,
            &mut self.sink,
        );
        match opened {
            Ok(mut tcp) => {
                let version = flow.server.proxy_protocol;
                let header = version.and_then(|version| {
                    proxy_header(version, flow.key.client, flow.key.virtual_server)
                });
                if let Some(header) = header {
                    tcp.set_preface(header);
                }
                flow.kind = Kind::Tcp(Box::new(tcp));
                self.flows.mark(id);
            }
            Err(fault) => self.fault(id, &fault),
        }
    }

    /// The kernel gives no address space: the client is refused.
    fn no_rings(&mut self, id: FlowId, error: &io::Error) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        tracing::debug!(client = %flow.key.client, %error, "no rings for a connection");
        let Kind::Dialing(dialing) = &mut flow.kind else {
            return;
        };
        let syn = std::mem::take(&mut dialing.syn);
        self.finish(id, Ending::Fault);
        if let Ok(packet) = IpPacket::parse(&syn) {
            self.refuse_syn(&packet, &Verdict::Reject(RejectReason::MemoryLimit));
        }
    }

    fn ring_size(&self) -> RingSize {
        // Above three quarters of the ceiling a flow still starts, but small.
        let ceiling = self.config.max_memory;
        if self.shared.memory.load(Ordering::Relaxed) < ceiling / 4 * 3 {
            RingSize::FULL
        } else {
            RingSize::SMALL
        }
    }

    fn segment(&mut self, id: FlowId, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let tcp = match &mut flow.kind {
            Kind::Tcp(tcp) => tcp,
            Kind::Dialing(dialing) => {
                // The client gives up; anything else can wait for the SYN-ACK.
                if segment.flags.rst() && segment.seq.wrapping_sub(dialing.sequence) <= 1 {
                    self.finish(id, Ending::Abandoned);
                }
                return;
            }
            Kind::Udp(_) => return,
        };
        let end = segment.seq.wrapping_add(segment.payload.len() as u32);
        let reset = segment.flags.rst();
        let taken = tcp.segment(
            &mut self.stack,
            packet.bytes,
            end,
            reset,
            self.now,
            &mut self.sink,
        );
        match taken {
            Ok(Ingest::Taken) => self.flows.mark(id),
            Ok(Ingest::WindowOverrun) => self.discard(DropReason::WindowOverrun),
            Err(fault) => self.fault(id, &fault),
        }
    }

    /// Lets a flow move bytes and send.
    pub(super) fn turn(&mut self, id: FlowId) {
        let now = self.now;
        let timeouts = self.config.tcp_timeouts;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        flow.dirty = false;
        let Kind::Tcp(tcp) = &mut flow.kind else {
            return;
        };
        let progress = match tcp.turn(&mut self.stack, &timeouts, now, &mut self.sink) {
            Ok(progress) => progress,
            Err(fault) => return self.fault(id, &fault),
        };
        let held = tcp.touched();
        self.shared.account(flow.held, held);
        flow.held = held;
        if flow.own.half_open && tcp.is_established() {
            flow.own.half_open = false;
            self.half_open.leave(flow.key.client.ip());
        }
        if tcp.server_spoke_first() {
            flow.server.spoke_first();
        }
        if tcp.is_closing()
            && let Some(connection) = &mut flow.connection
        {
            connection.closing();
        }
        let deadline = match progress {
            Progress::Waiting => Some(tcp.deadline(&mut self.stack, &timeouts, now)),
            Progress::Ended(ending) => return self.finish(id, ending),
            Progress::More => None,
        };
        self.flows.notice_bytes(id);
        match deadline {
            Some(at) => self.flows.arm(id, at),
            None => self.flows.mark(id),
        }
    }

    /// The stack panicked over one flow. Both ends of it see a reset: the real
    /// server now, the client when it sends something.
    fn fault(&mut self, id: FlowId, fault: &Fault) {
        self.discard(DropReason::FlowFault);
        if let Some(flow) = self.flows.get_mut(id) {
            if !self.faulted {
                self.faulted = true;
                tracing::error!(
                    client = %flow.key.client,
                    virtual_server = %flow.key.virtual_server,
                    %fault,
                    "a flow broke; further ones are only counted"
                );
            }
            if let Kind::Tcp(tcp) = &mut flow.kind {
                tcp.forsake();
            }
        }
        self.finish(id, Ending::Fault);
    }
}
