//! The client's side of one TCP connection.

use std::io;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp;

use super::clock::SPEED;
use super::mend::client_limits;
use super::observe::{Seen, behind};
use super::rings::{RingPool, RingSize, RingedSocket};
use crate::packet::protocol;

pub use smoltcp::socket::tcp::State as TcpState;

/// Bytes of data in a packet at most.
const LONGEST: u32 = 65_535;

/// TCP's byte of flags and FIN in it (RFC 9293 section 3.1).
const FLAGS_AT: usize = 13;
const FIN: u8 = 1;

/// How long the acknowledgment of a small segment waits for an answer that can carry it,
/// by the stack's clock: 10 ms, where the kernel waits 40 (TCP_DELACK_MIN, net/tcp.h). A
/// request on a kept connection costs one packet less.
const ACK_DELAY: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(10 * SPEED as u64);

/// Which of the stack's interfaces serve an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shapes {
    /// Until the client has completed its handshake.
    pub(super) handshake: usize,
    /// From then on, if that is another.
    pub(super) afterwards: Option<usize>,
}

/// One TCP connection's client side: a socket in a set of its own.
pub struct TcpEndpoint {
    pub(super) socket: RingedSocket,
    shapes: Shapes,
    burst: usize,
    rings: RingSize,
    /// The client's initial sequence number.
    pub(super) initial_sequence: u32,
    /// Bytes that this connection has taken out of the receive ring.
    drained: u64,
    /// Bytes that this connection has put into the send ring.
    pub(super) filled: u64,
    /// The highest sequence number behind a byte that the stack has been given.
    highest: u32,
    /// What `drained` and `filled` were when the rings were last trimmed.
    trimmed: (u64, u64),
    /// The sequence number behind the window that the client was told last. `None`
    /// until a segment after the SYN-ACK has told it the true window.
    pub(super) window_end: Option<u32>,
    /// What the windows that we tell are shifted by (RFC 7323 section 2).
    pub(super) window_scale: u8,
    /// When the client last said anything at all. (smoltcp 0.14 counts only what it
    /// takes, and would think a client dead that probes our closed window.)
    pub(super) heard_at: Option<Instant>,
    /// When we last probed the client.
    pub(super) probed_at: Option<Instant>,
    /// Our initial sequence number.
    pub(super) our_initial_sequence: u32,
    /// The largest segment that the client takes.
    pub(super) client_segment: usize,
    /// What the client's windows are shifted by.
    pub(super) client_scale: u8,
    /// The window of the last segment of its that only acknowledged, as the stack saw
    /// it.
    pub(super) client_window: Option<u16>,
    /// What has been said to the client so far.
    pub(super) last_sent: Option<Sent>,
    /// The sequence number behind our FIN, once it has been sent.
    pub(super) finish_end: Option<u32>,
}

/// How far we have got with what we say to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The sequence number behind everything sent: SND.NXT of RFC 9293.
    pub sequence: u32,
    /// The sequence number acknowledged last: RCV.NXT.
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
    /// `burst`: payload of a full super-packet. The send ring is a multiple of it, so
    /// that none is cut where the ring wraps.
    pub(super) fn new(
        pool: &RingPool,
        rings: RingSize,
        shapes: Shapes,
        burst: usize,
    ) -> io::Result<Self> {
        let send = (rings.send / burst).max(1) * burst;
        Ok(Self {
            socket: RingedSocket::new(pool, rings, send.min(rings.send))?,
            shapes,
            burst,
            rings,
            initial_sequence: 0,
            drained: 0,
            filled: 0,
            highest: 0,
            trimmed: (0, 0),
            window_end: None,
            window_scale: 0,
            client_segment: 0,
            client_scale: 0,
            client_window: None,
            heard_at: None,
            probed_at: None,
            our_initial_sequence: 0,
            last_sent: None,
            finish_end: None,
        })
    }

    /// Says how soon a packet is to be acknowledged. A full segment at once, since its
    /// client may wait for that before it sends more, and FIN, since the flow may end
    /// before the delay does.
    #[inline]
    pub(super) fn delay_ack(&mut self, packet: &[u8]) {
        let delay = if packet.len() < self.client_segment && !finishes(packet) {
            ACK_DELAY
        } else {
            smoltcp::time::Duration::ZERO
        };
        self.socket_mut().set_ack_delay(Some(delay));
    }

    /// The connection begins with the client's SYN of this sequence number.
    pub(super) fn begin(&mut self, initial_sequence: u32) {
        self.initial_sequence = initial_sequence;
        self.highest = initial_sequence.wrapping_add(1);
    }

    /// The interface that serves it now.
    #[inline]
    pub(super) fn shape(&self) -> usize {
        match self.shapes.afterwards {
            Some(shape) if !matches!(self.state(), TcpState::Listen | TcpState::SynReceived) => {
                shape
            }
            Some(_) | None => self.shapes.handshake,
        }
    }

    /// Payload of a full super-packet to this client in bytes.
    #[inline]
    pub fn burst(&self) -> usize {
        self.burst
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

    /// What a connection in TIME_WAIT needs to answer a repeated FIN.
    pub fn last_sent(&self) -> Option<Sent> {
        self.last_sent
    }

    /// smoltcp 0.14 takes its own SYN-ACK's unscaled window for a scaled one and
    /// asserts that nothing exceeds the ring. Until the true window is told, a
    /// segment that reaches past the ring must not get in.
    #[inline]
    pub(super) fn overruns(&self, sequence_end: u32) -> bool {
        self.window_end.is_none() && behind(self.right_edge(), sequence_end)
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
    pub(super) fn note(&mut self, sequence_end: u32) {
        let edge = self.right_edge();
        if behind(edge.wrapping_add(LONGEST), sequence_end) {
            return;
        }
        // The stack keeps what is before the edge.
        let end = if behind(edge, sequence_end) {
            edge
        } else {
            sequence_end
        };
        if behind(self.highest, end) {
            self.highest = end;
        }
    }

    /// True when bytes may lie in the ring behind a hole, where no queue length tells
    /// of them.
    fn holds_out_of_order(&self) -> bool {
        let received = (self.drained + self.receive_queue() as u64) as u32;
        let next = self.initial_sequence.wrapping_add(1).wrapping_add(received);
        behind(next, self.highest)
    }

    /// When to take a silent client for dead.
    #[inline]
    pub(super) fn dead_at(&self, after: Duration) -> Option<Instant> {
        let listens = !matches!(
            self.state(),
            TcpState::Closed | TcpState::Listen | TcpState::TimeWait
        );
        Some(self.heard_at.filter(|_| listens)? + after)
    }

    #[inline]
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
    }

    /// Reads a client's SYN.
    pub(super) fn learn(&mut self, syn: &[u8]) {
        (self.client_segment, self.client_scale) = client_limits(syn).unwrap_or((536, 0));
    }

    #[inline]
    pub(super) fn observe(&mut self, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        // A repeated segment takes nothing back.
        let sequence = match self.last_sent {
            Some(last) if behind(seen.sequence_end, last.sequence) => last.sequence,
            Some(_) | None => seen.sequence_end,
        };
        self.last_sent = Some(Sent {
            sequence,
            acknowledgement: seen.acknowledgement,
        });
        if seen.finishes {
            self.finish_end = Some(seen.sequence_end);
        }
        if let Some((sequence, scale)) = seen.opens {
            self.our_initial_sequence = sequence;
            self.window_scale = scale;
        }
        if let Some((number, window)) = seen.told
            && !matches!(self.state(), TcpState::Listen | TcpState::SynReceived)
        {
            let window = u32::from(window) << self.window_scale;
            self.window_end = Some(number.wrapping_add(window));
        }
    }

    #[inline]
    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.socket.socket()
    }

    #[inline]
    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.socket.socket_mut()
    }
}

/// True unless this is plainly a TCP segment without FIN.
#[inline]
fn finishes(packet: &[u8]) -> bool {
    let tcp = match packet.first().map(|first| first >> 4) {
        Some(4) => usize::from(packet[0] & 15) * 4,
        // Behind extension headers nobody looks.
        Some(6) if packet.get(6) == Some(&protocol::TCP) => 40,
        _ => return true,
    };
    packet
        .get(tcp + FLAGS_AT)
        .is_none_or(|flags| flags & FIN != 0)
}
