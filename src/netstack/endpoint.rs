//! The client's side of one TCP connection.

use std::io;

use smoltcp::socket::tcp;

use super::rings::{RingPool, RingSize, RingedSocket};

pub use smoltcp::socket::tcp::State as TcpState;

/// One TCP connection's client side: a socket in a set of its own.
pub struct TcpEndpoint {
    pub(super) socket: RingedSocket,
    /// Which of the stack's interfaces.
    pub(super) shape: usize,
    burst: usize,
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
    /// `burst`: payload of a full super-packet. The send ring is a multiple of it, so
    /// that none is cut where the ring wraps.
    pub(super) fn new(
        pool: &RingPool,
        rings: RingSize,
        shape: usize,
        burst: usize,
    ) -> io::Result<Self> {
        let send = (rings.send / burst).max(1) * burst;
        Ok(Self {
            socket: RingedSocket::new(pool, rings, send.min(rings.send))?,
            shape,
            burst,
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

    /// Payload of a full super-packet to this client in bytes.
    #[inline]
    pub fn burst(&self) -> usize {
        self.burst
    }

    /// The connection begins with the client's SYN of this sequence number.
    pub(super) fn begin(&mut self, initial_sequence: u32) {
        self.initial_sequence = initial_sequence;
        self.highest = initial_sequence.wrapping_add(1);
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
    pub(super) fn overruns(&self, sequence_end: u32) -> bool {
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
    pub(super) fn note(&mut self, sequence_end: u32) {
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
    pub(super) fn observe(&mut self, last: Option<Sent>) {
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
    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.socket.socket_mut()
    }
}

/// Serial number arithmetic, RFC 1982 section 3.2.
#[inline]
fn is_after(one: u32, other: u32) -> bool {
    (other.wrapping_sub(one) as i32) < 0
}
