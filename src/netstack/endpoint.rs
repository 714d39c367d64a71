//! The client's side of one TCP connection, and the stack that moves it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::socket::tcp;
use smoltcp::wire::HardwareAddress;

use super::clock::Clock;
use super::device::{OnePacket, Outgoing, Transmit};
use super::rings::{RingPool, RingSize, RingedSocket};

pub use smoltcp::socket::tcp::State as TcpState;

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

/// smoltcp's interface and clock: one per worker, shared by all its flows.
pub struct Stack {
    interface: Interface,
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
        let clock = Clock::new(now);
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = config.seed;
        let mut nowhere = Nowhere;
        let mut device = OnePacket::new(None, &mut nowhere, config.mtu);
        let mut interface = Interface::new(settings, &mut device, clock.to_stack(now));
        // Every address is ours: the data plane has looked the packet up already.
        interface.set_any_ip(true);
        Self {
            interface,
            clock,
            config,
        }
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
        endpoint.initial_sequence = initial_sequence;
        endpoint.highest = initial_sequence.wrapping_add(1);
        let config = self.config;
        guarded(|| {
            let socket = endpoint.socket_mut();
            // Segments of 64 KiB make an ACK due at once: a delay would stall the
            // client, and Nagle would wait for the ACK of a full window.
            socket.set_ack_delay(None);
            socket.set_nagle_enabled(false);
            socket.set_congestion_control(tcp::CongestionControl::Cubic);
            socket.set_keep_alive(Some(Clock::span(config.keep_alive)));
            socket.set_timeout(Some(Clock::span(config.dead_after)));
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
        self.poll_in(endpoint, packet, now, out)?;
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
        guarded(|| {
            let mut observed = Observed { out, last: None };
            let mut device = OnePacket::new(None, &mut observed, self.config.mtu);
            let mut more = true;
            for _ in 0..budget {
                let sent = self
                    .interface
                    .poll_egress(at, &mut device, endpoint.socket.sockets());
                if sent == PollResult::None {
                    more = false;
                    break;
                }
            }
            endpoint.observe(observed.last);
            more
        })
    }

    /// When this endpoint wants to be polled again without any packet.
    pub fn poll_at(&mut self, endpoint: &TcpEndpoint, now: Instant) -> Option<Instant> {
        let at = self.clock.to_stack(now);
        self.interface
            .poll_at(at, endpoint.socket.set())
            .map(|at| self.clock.from_stack(at))
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
            let mut observed = Observed { out, last: None };
            let mut device = OnePacket::new(Some(packet), &mut observed, self.config.mtu);
            self.interface
                .poll_ingress_single(at, &mut device, endpoint.socket.sockets());
            endpoint.observe(observed.last);
        })
    }
}

/// One TCP connection's client side: a socket in a set of its own.
pub struct TcpEndpoint {
    socket: RingedSocket,
    rings: RingSize,
    /// The client's initial sequence number.
    initial_sequence: u32,
    /// Bytes that have been taken out of the receive ring.
    drained: u64,
    /// Bytes that have been put into the send ring.
    filled: u64,
    /// The highest sequence number behind a byte that the stack has been given.
    highest: u32,
    /// What `drained` and `filled` were when the rings were last trimmed.
    trimmed: (u64, u64),
    /// Set once a segment after the SYN-ACK told the client the true window.
    window_told: bool,
    /// What the last packet that we sent said.
    last_sent: Option<Sent>,
}

/// Sequence numbers of a packet that we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The sequence number of its first byte.
    pub sequence: u32,
    /// The sequence number that it acknowledged.
    pub acknowledgement: u32,
}

impl std::fmt::Debug for TcpEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpEndpoint")
            .field("state", &self.state())
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}

impl TcpEndpoint {
    /// A closed endpoint with rings of this size.
    ///
    /// # Errors
    /// ENOMEM when there is no room for rings.
    pub fn new(pool: &RingPool, rings: RingSize) -> io::Result<Self> {
        Ok(Self {
            socket: RingedSocket::new(pool, rings)?,
            rings,
            initial_sequence: 0,
            drained: 0,
            filled: 0,
            highest: 0,
            trimmed: (0, 0),
            window_told: false,
            last_sent: None,
        })
    }

    /// Size of the two rings.
    pub fn rings(&self) -> RingSize {
        self.rings
    }

    /// Bytes of memory behind the rings, at most: pages that nothing was written to
    /// have none.
    #[inline]
    pub fn touched(&mut self) -> usize {
        let received = self.drained + self.receive_queue() as u64;
        self.socket.receive.touch(received - self.trimmed.0);
        self.socket.send.touch(self.filled - self.trimmed.1);
        self.socket.receive.touched() + self.socket.send.touched()
    }

    /// Gives the memory of the rings back if they are empty. False if they are not.
    pub fn trim(&mut self) -> bool {
        let idle = self.receive_queue() == 0 && self.send_queue() == 0;
        // A hole before what has arrived out of order: it lies in the ring, uncounted.
        if !idle || self.holds_out_of_order() {
            return false;
        }
        self.trimmed = (self.drained, self.filled);
        self.socket.receive.trim();
        self.socket.send.trim();
        true
    }

    /// Bytes that have passed in both directions.
    #[inline]
    pub fn moved(&self) -> u64 {
        self.drained + self.filled
    }

    /// The state of the connection, by RFC 9293's names.
    #[inline]
    pub fn state(&self) -> TcpState {
        self.socket().state()
    }

    /// True once the client has sent FIN and everything before it has arrived.
    #[inline]
    pub fn client_finished(&self) -> bool {
        matches!(
            self.state(),
            TcpState::CloseWait | TcpState::LastAck | TcpState::Closing | TcpState::TimeWait
        )
    }

    /// Bytes from the client that wait to be taken.
    #[inline]
    pub fn receive_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Bytes for the client that it has not acknowledged.
    #[inline]
    pub fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    /// Room for bytes to the client.
    #[inline]
    pub fn send_room(&self) -> usize {
        let socket = self.socket();
        socket.send_capacity() - socket.send_queue()
    }

    /// Lends the oldest contiguous bytes from the client; `take` says how many it
    /// took. `None` when there are none.
    #[inline]
    pub fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        let mut taken = 0;
        let result = self
            .socket_mut()
            .recv(|bytes| {
                let (count, result) = take(bytes);
                taken = count;
                (count, result)
            })
            .ok();
        self.drained += taken as u64;
        result
    }

    /// Lends contiguous room for bytes to the client; `fill` says how many it
    /// wrote. `None` when the connection takes no more bytes.
    #[inline]
    pub fn send<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let mut filled = 0;
        let result = self
            .socket_mut()
            .send(|room| {
                let (count, result) = fill(room);
                filled = count;
                (count, result)
            })
            .ok();
        self.filled += filled as u64;
        result
    }

    /// Sends FIN after all bytes that were given to [`TcpEndpoint::send`].
    pub fn finish(&mut self) {
        self.socket_mut().close();
    }

    /// Sends RST at the next egress and forgets the connection.
    pub fn reset(&mut self) {
        self.socket_mut().abort();
    }

    /// The sequence number of the SYN that the connection began with.
    pub fn initial_sequence(&self) -> u32 {
        self.initial_sequence
    }

    /// Sequence numbers of the last packet sent: what a connection in TIME_WAIT
    /// needs to answer a repeated FIN.
    pub fn last_sent(&self) -> Option<Sent> {
        self.last_sent
    }

    /// smoltcp 0.14 takes its own SYN-ACK's unscaled window for a scaled one and
    /// asserts that nothing exceeds the ring. Until the true window is told, a
    /// segment that reaches past the ring must not get in.
    #[inline]
    fn overruns(&self, sequence_end: u32) -> bool {
        !self.window_told && is_after(sequence_end, self.right_edge())
    }

    /// The sequence number behind the last byte that the receive ring has room for.
    #[inline]
    fn right_edge(&self) -> u32 {
        self.initial_sequence
            .wrapping_add(1)
            .wrapping_add(self.drained as u32)
            .wrapping_add(self.rings.receive as u32)
    }

    #[inline]
    fn note(&mut self, sequence_end: u32) {
        if is_after(sequence_end, self.highest) && !is_after(sequence_end, self.right_edge()) {
            self.highest = sequence_end;
        }
    }

    /// True when bytes may lie in the ring behind a hole, where no queue length tells
    /// of them.
    fn holds_out_of_order(&self) -> bool {
        let received = (self.drained + self.receive_queue() as u64) as u32;
        let next = self.initial_sequence.wrapping_add(1).wrapping_add(received);
        is_after(self.highest, next)
    }

    #[inline]
    fn observe(&mut self, last: Option<Sent>) {
        if last.is_some() {
            self.last_sent = last;
            self.window_told |= !matches!(self.state(), TcpState::Listen | TcpState::SynReceived);
        }
    }

    #[inline]
    fn socket(&self) -> &tcp::Socket<'static> {
        self.socket.socket()
    }

    #[inline]
    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.socket.socket_mut()
    }
}

/// Looks at the sequence numbers of what passes.
struct Observed<'a, T: Transmit> {
    out: &'a mut T,
    last: Option<Sent>,
}

impl<T: Transmit> Transmit for Observed<'_, T> {
    #[inline]
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let last = &mut self.last;
        self.out.transmit(len, how, |packet| {
            let result = fill(packet);
            *last = sequence_numbers(packet);
            result
        })
    }
}

/// Serial number arithmetic, RFC 1982 section 3.2.
#[inline]
fn is_after(one: u32, other: u32) -> bool {
    (other.wrapping_sub(one) as i32) < 0
}

fn sequence_numbers(packet: &[u8]) -> Option<Sent> {
    // smoltcp writes neither IPv4 options nor IPv6 extension headers before TCP.
    let tcp = match packet.first()? >> 4 {
        4 => packet.get(20..)?,
        _ => packet.get(40..)?,
    };
    let number = |at: usize| {
        let bytes = tcp.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    Some(Sent {
        sequence: number(4)?,
        acknowledgement: number(8)?,
    })
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
