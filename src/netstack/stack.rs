//! The stack that moves endpoints: smoltcp, what it is kept from, and its clock.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::socket::tcp;
use smoltcp::wire::HardwareAddress;

use super::clock::Clock;
use super::device::{OnePacket, Outgoing, Shape, Transmit, WIDE_MTU};
use super::endpoint::{Shapes, TcpEndpoint};
use super::mend::Mended;
use super::observe::Observed;
use super::rings::{RingPool, RingSize};

/// smoltcp panicked while it worked on one flow. The flow is lost, nothing else.
#[derive(Debug, thiserror::Error)]
#[error("the TCP stack panicked: {0}")]
pub struct Fault(pub String);

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingest {
    /// The stack has seen it.
    Taken,
    /// It reached beyond the receive window right after the handshake and was
    /// dropped: smoltcp 0.14 would panic on it.
    WindowOverrun,
}

/// Settings of a [`Stack`].
#[derive(Clone, Copy, Debug)]
pub struct StackConfig {
    /// MTU of the TUN in bytes: bounds the MSS that clients are told.
    pub mtu: usize,
    /// Seed of the initial sequence numbers; must differ between processes.
    pub seed: u64,
    /// After this much silence of the client it is probed, and again at this rate.
    pub keep_alive: Duration,
    /// A client that has not answered for this long is dead.
    pub dead_after: Duration,
}

/// Kinds of clients that are told apart by the size of their segments; any further
/// share the last. Nodes and pods of one cluster make two or three.
const MAX_SHAPES: usize = 12;

/// smoltcp's interfaces and clock: one stack per worker, shared by all its flows.
///
/// How long a super-packet may be is a constant of a smoltcp interface, so there is
/// one for each kind of client.
pub struct Stack {
    interfaces: Vec<(Shape, Interface)>,
    clock: Clock,
    config: StackConfig,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A place for packets that must not exist: no packet is sent while a stack is made.
struct Nowhere;

impl Transmit for Nowhere {
    fn transmit<R>(&mut self, len: usize, _: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; len])
    }
}

impl Stack {
    /// A stack whose time begins at `now`.
    pub fn new(config: StackConfig, now: Instant) -> Self {
        Self {
            interfaces: Vec::new(),
            clock: Clock::new(now),
            config,
        }
    }

    /// A closed endpoint for a client whose SYN names this maximum segment size.
    ///
    /// # Errors
    /// ENOMEM when there is no room for rings.
    pub fn endpoint(
        &mut self,
        pool: &RingPool,
        rings: RingSize,
        max_segment_size: Option<u16>,
        v4: bool,
        now: Instant,
    ) -> io::Result<TcpEndpoint> {
        let headers = if v4 { 40 } else { 60 };
        // RFC 9293 section 3.7.1: without the option 536 for IPv4, 1220 for IPv6.
        let default = if v4 { 536 } else { 1220 };
        let theirs = usize::from(max_segment_size.unwrap_or(default));
        let segment = theirs.min(self.config.mtu.saturating_sub(headers)).max(1);
        let shapes = Shapes {
            handshake: self.shape(segment, now),
            // Where the client's segments are larger than ours, the MTU is the bound.
            afterwards: (!v4 && theirs == segment)
                .then(|| self.wide_shape(segment, now))
                .flatten(),
        };
        let burst = self.interfaces[shapes.handshake].0.burst();
        TcpEndpoint::new(pool, rings, shapes, burst)
    }

    /// The interface for segments of this size.
    fn shape(&mut self, segment: usize, now: Instant) -> usize {
        let shape = |segment| Shape {
            mtu: self.config.mtu,
            wide: false,
            segment,
        };
        let (shape, last) = (shape(segment), shape(0));
        if let Some(at) = self.find(shape) {
            return at;
        }
        match MAX_SHAPES - self.interfaces.len() {
            0 => MAX_SHAPES - 1,
            1 => self.add(last, now),
            _ => self.add(shape, now),
        }
    }

    /// As above, for super-packets over IPv6; `None` when there are too many.
    fn wide_shape(&mut self, segment: usize, now: Instant) -> Option<usize> {
        let shape = Shape {
            mtu: WIDE_MTU,
            wide: true,
            segment,
        };
        self.find(shape).or_else(|| {
            let room = self.interfaces.len() < MAX_SHAPES - 1;
            room.then(|| self.add(shape, now))
        })
    }

    fn find(&self, shape: Shape) -> Option<usize> {
        self.interfaces.iter().position(|(one, _)| *one == shape)
    }

    fn add(&mut self, shape: Shape, now: Instant) -> usize {
        let mut settings = Config::new(HardwareAddress::Ip);
        // Any odd factor keeps the seeds apart.
        let at = self.interfaces.len() as u64;
        settings.random_seed = self.config.seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut nowhere = Nowhere;
        let mut device = OnePacket::new(None, &mut nowhere, shape);
        let mut interface = Interface::new(settings, &mut device, self.clock.to_stack(now));
        // Every address is ours: the data plane has looked the packet up already.
        interface.set_any_ip(true);
        self.interfaces.push((shape, interface));
        self.interfaces.len() - 1
    }

    /// Answers a client's SYN, whose real server is connected by now, with a SYN-ACK.
    ///
    /// `syn` is the packet as it came, addressed to `port`; `endpoint` is fresh
    /// from its pool.
    ///
    /// # Errors
    /// When smoltcp panics.
    pub fn accept(
        &mut self,
        endpoint: &mut TcpEndpoint,
        syn: &[u8],
        port: u16,
        initial_sequence: u32,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<(), Fault> {
        endpoint.begin(initial_sequence);
        endpoint.learn(syn);
        endpoint.heard(now);
        endpoint.probed_at = Some(now);
        guarded(|| {
            let socket = endpoint.socket_mut();
            // Nagle would wait for the ACK of a full window.
            socket.set_nagle_enabled(false);
            socket.set_congestion_control(tcp::CongestionControl::Cubic);
            socket.set_keep_alive(None);
            socket.set_timeout(None);
            // Only an open socket or port 0 is refused; the pool gives neither.
            socket.listen(port).is_ok()
        })?;
        self.poll_in(endpoint, syn, now, out)?;
        self.egress(endpoint, now, out, 1).map(|_| ())
    }

    /// Feeds one segment of the client to its endpoint. `sequence_end` is the
    /// sequence number behind its last byte of data.
    ///
    /// # Errors
    /// When smoltcp panics.
    #[inline]
    pub fn ingest(
        &mut self,
        endpoint: &mut TcpEndpoint,
        packet: &[u8],
        sequence_end: u32,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<Ingest, Fault> {
        if endpoint.overruns(sequence_end) {
            return Ok(Ingest::WindowOverrun);
        }
        endpoint.note(sequence_end);
        endpoint.heard(now);
        endpoint.delay_ack(packet);
        match endpoint.mended(packet, sequence_end) {
            Mended::AsItIs => self.poll_in(endpoint, packet, now, out)?,
            Mended::Changed(packet) => self.poll_in(endpoint, &packet, now, out)?,
            Mended::Withheld => {}
        }
        Ok(Ingest::Taken)
    }

    /// Sends what is due, at most `budget` packets. True if more may be due.
    ///
    /// # Errors
    /// When smoltcp panics.
    #[inline]
    pub fn egress(
        &mut self,
        endpoint: &mut TcpEndpoint,
        now: Instant,
        out: &mut impl Transmit,
        budget: usize,
    ) -> Result<bool, Fault> {
        let at = self.clock.to_stack(now);
        let config = &self.config;
        guarded(|| {
            if endpoint
                .dead_at(config.dead_after)
                .is_some_and(|at| now >= at)
            {
                endpoint.reset();
            }
            let mut observed = Observed::new(out);
            let (shape, interface) = &mut self.interfaces[endpoint.shape()];
            let mut device = OnePacket::new(None, &mut observed, *shape);
            for _ in 0..budget {
                let sent = interface.poll_egress(at, &mut device, endpoint.socket.sockets());
                if sent == PollResult::None {
                    endpoint.observe(observed.seen);
                    if endpoint.may_probe(config.keep_alive, now)
                        && interface.poll_at(at, endpoint.socket.set()).is_none()
                    {
                        endpoint.probe(now, out);
                    }
                    return false;
                }
            }
            endpoint.observe(observed.seen);
            true
        })
    }

    /// When this endpoint wants to be polled again without any packet.
    pub fn poll_at(&mut self, endpoint: &TcpEndpoint, now: Instant) -> Option<Instant> {
        let at = self.clock.to_stack(now);
        let (_, interface) = &mut self.interfaces[endpoint.shape()];
        let at = interface.poll_at(at, endpoint.socket.set());
        let at = at.map(|at| self.clock.from_stack(at));
        let probe = at
            .is_none()
            .then(|| endpoint.probe_at(self.config.keep_alive, now));
        let dead = endpoint.dead_at(self.config.dead_after);
        [at, probe.flatten(), dead].into_iter().flatten().min()
    }

    fn poll_in(
        &mut self,
        endpoint: &mut TcpEndpoint,
        packet: &[u8],
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<(), Fault> {
        let at = self.clock.to_stack(now);
        guarded(|| {
            let mut observed = Observed::new(out);
            let (shape, interface) = &mut self.interfaces[endpoint.shape()];
            let mut device = OnePacket::new(Some(packet), &mut observed, *shape);
            interface.poll_ingress_single(at, &mut device, endpoint.socket.sockets());
            endpoint.observe(observed.seen);
        })
    }
}

/// Runs smoltcp code; a panic in it becomes the fault of one flow.
#[inline]
fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Fault(text.unwrap_or_else(|| "no message".to_owned()))
    })
}
