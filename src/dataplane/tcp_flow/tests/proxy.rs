//! The worker's part: which call a packet, an event and a timer lead to.
//!
//! It follows `worker/tcp.rs` and `worker.rs` call by call, for one five-tuple and
//! with a real server that is connected already.

use std::time::{Duration, Instant};

use super::server::{Edges, Socket};
use crate::dataplane::sink::finish_tcp;
use crate::dataplane::tcp_flow::{Ending, Progress, TcpFlow, TcpTimeouts};
use crate::dataplane::testing::deliver;
use crate::netstack::{
    Ingest, Outgoing, RingPool, RingSize, Sent, Stack, StackConfig, TcpState, Transmit,
};
use crate::packet::{IpPacket, TcpFlags, TcpSegment, tcp_ack, tcp_reset, transport_checksum_ok};

/// Turns that no scenario needs: more is a spin.
const MAX_TURNS: u64 = 400_000;

/// What a test looks at in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) flags: TcpFlags,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) window: u16,
    pub(super) len: usize,
}

impl Seen {
    pub(super) fn read(packet: &[u8]) -> Self {
        let packet = IpPacket::parse(packet).unwrap();
        let segment = TcpSegment::parse(&packet).unwrap();
        Self {
            flags: segment.flags,
            sequence: segment.seq,
            acknowledgement: segment.ack,
            window: segment.window,
            len: segment.payload.len(),
        }
    }

    /// The sequence number behind all of it.
    pub(super) fn end(&self) -> u32 {
        let flags = u32::from(self.flags.syn()) + u32::from(self.flags.fin());
        self.sequence.wrapping_add(self.len as u32 + flags)
    }

    /// Nothing but an acknowledgment.
    pub(super) fn is_bare(&self) -> bool {
        self.len == 0 && self.flags.0 & !TcpFlags::PSH.0 == TcpFlags::ACK.0
    }
}

/// The TUN: frames as the sink makes them, packets as the kernel delivers them.
#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) packets: Vec<Vec<u8>>,
    /// How many were cut into segments.
    pub(super) super_packets: usize,
}

impl Transmit for Wire {
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        // What the sink's buffer held before must not matter.
        let mut packet = vec![0xa5; len];
        self.super_packets += usize::from(how.segment_size.is_some());
        let result = fill(&mut packet);
        let header = finish_tcp(&mut packet, how);
        self.packets.extend(deliver(header, &packet));
        result
    }
}

/// A flow and what keeps it going.
pub(super) struct Proxy {
    pub(super) stack: Stack,
    pub(super) pool: RingPool,
    pub(super) rings: RingSize,
    pub(super) timeouts: TcpTimeouts,
    /// The connection that the next SYN gets.
    pub(super) dialled: Option<Socket>,
    pub(super) flow: Option<TcpFlow<Socket>>,
    pub(super) time_wait: Option<Sent>,
    pub(super) endings: Vec<Ending>,
    pub(super) wire: Wire,
    pub(super) turns: u64,
    /// Segments that the guard in front of the stack kept away.
    pub(super) overruns: u64,
    pub(super) armed: Option<Instant>,
    pub(super) dirty: bool,
}

impl Proxy {
    /// The stack behind a TUN of this MTU.
    pub(super) fn stack(mtu: usize, now: Instant) -> Stack {
        let config = StackConfig {
            mtu,
            seed: 7,
            keep_alive: Duration::from_secs(60),
            dead_after: Duration::from_secs(360),
        };
        Stack::new(config, now)
    }

    pub(super) fn new(rings: RingSize, timeouts: TcpTimeouts, now: Instant) -> Self {
        Self {
            stack: Self::stack(65_535, now),
            pool: RingPool::new(usize::MAX),
            rings,
            timeouts,
            dialled: None,
            flow: None,
            time_wait: None,
            endings: Vec::new(),
            wire: Wire::default(),
            turns: 0,
            overruns: 0,
            armed: None,
            dirty: false,
        }
    }

    /// One packet from the client.
    pub(super) fn packet(&mut self, now: Instant, bytes: &[u8]) {
        let packet = IpPacket::parse(bytes).unwrap();
        assert!(transport_checksum_ok(&packet));
        let segment = TcpSegment::parse(&packet).unwrap();
        let opens = segment.flags.opens();
        match &mut self.flow {
            Some(flow) if opens => {
                // However late a repeated SYN comes, it is not a new one.
                if flow.endpoint().initial_sequence() == segment.seq {
                    return;
                }
                if !flow.is_finished() {
                    flow.forsake();
                }
                self.finish(Ending::Replaced);
                self.open(now, &packet, &segment);
            }
            Some(flow) => {
                let end = segment.seq.wrapping_add(segment.payload.len() as u32);
                let reset = segment.flags.rst();
                let out = &mut self.wire;
                match flow.segment(&mut self.stack, bytes, end, reset, now, out) {
                    Ok(Ingest::Taken) => self.dirty = true,
                    Ok(Ingest::WindowOverrun) => self.overruns += 1,
                    Err(_) => self.fault(),
                }
            }
            None if opens => self.open(now, &packet, &segment),
            None => self.without_flow(&packet, &segment),
        }
    }

    /// Edges of the real server's socket.
    pub(super) fn ready(&mut self, edges: Edges) {
        if let Some(flow) = &mut self.flow {
            flow.server_ready(edges.readable || edges.closed, edges.writable, edges.closed);
            self.dirty = true;
        }
    }

    /// Timers, then a turn if anything asks for one. True if there was one.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        if self.armed.is_some_and(|at| at <= now) {
            self.armed = None;
            self.dirty = true;
        }
        if !self.dirty {
            return false;
        }
        self.dirty = false;
        let Some(flow) = &mut self.flow else {
            return false;
        };
        self.turns += 1;
        assert!(self.turns < MAX_TURNS, "the flow spins: {flow:?}");
        match flow.turn(&mut self.stack, &self.timeouts, now, &mut self.wire) {
            Ok(Progress::Ended(ending)) => self.finish(ending),
            Ok(Progress::More) => self.dirty = true,
            Ok(Progress::Waiting) => {
                let at = flow.deadline(&mut self.stack, &self.timeouts, now);
                assert!(
                    at >= now + Duration::from_millis(1),
                    "a timer without a floor"
                );
                if self.armed.is_none_or(|armed| at < armed) {
                    self.armed = Some(at);
                }
            }
            Err(_) => self.fault(),
        }
        if let Some(flow) = &mut self.flow {
            assert!(flow.touched() <= self.rings.total());
            let endpoint = flow.endpoint();
            assert!(endpoint.receive_queue() <= self.rings.receive);
            assert!(endpoint.send_queue() <= self.rings.send);
        }
        true
    }

    pub(super) fn state(&self) -> Option<TcpState> {
        self.flow.as_ref().map(|flow| flow.endpoint().state())
    }

    pub(super) fn flow(&self) -> &TcpFlow<Socket> {
        self.flow.as_ref().unwrap()
    }

    fn open(&mut self, now: Instant, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        self.time_wait = None;
        let Some(socket) = self.dialled.take() else {
            return self.refuse(packet);
        };
        let edges = socket.at_first();
        let size = segment.max_segment_size();
        let endpoint = self
            .stack
            .endpoint(&self.pool, self.rings, size, packet.is_ipv4(), now)
            .unwrap();
        self.flow = Some(
            TcpFlow::open(
                endpoint,
                socket,
                &mut self.stack,
                packet.bytes,
                segment.destination_port,
                segment.seq,
                now,
                &mut self.wire,
            )
            .unwrap(),
        );
        self.ready(edges);
    }

    fn without_flow(&mut self, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        let Some(sent) = self.time_wait else {
            if !segment.flags.rst() {
                self.refuse(packet);
            }
            return;
        };
        if segment.flags.rst() {
            self.time_wait = None;
        } else if segment.flags.fin() || !segment.payload.is_empty() {
            let mut reply = Vec::new();
            tcp_ack(packet, sent.sequence, sent.acknowledgement, &mut reply).unwrap();
            self.wire.packets.push(reply);
        }
    }

    fn refuse(&mut self, packet: &IpPacket<'_>) {
        let mut reply = Vec::new();
        tcp_reset(packet, &mut reply).unwrap();
        self.wire.packets.push(reply);
    }

    fn fault(&mut self) {
        if let Some(flow) = &mut self.flow {
            flow.forsake();
        }
        self.finish(Ending::Fault);
    }

    fn finish(&mut self, ending: Ending) {
        let Some(flow) = self.flow.take() else { return };
        self.armed = None;
        self.dirty = false;
        self.endings.push(ending);
        if flow.endpoint().state() == TcpState::TimeWait {
            self.time_wait = flow.endpoint().last_sent();
        }
    }
}
