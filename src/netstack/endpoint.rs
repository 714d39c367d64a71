//! The client's side of one TCP connection.

use std::time::{Duration, Instant};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

use super::mend::client_limits;
use super::observe::{Seen, behind};
use super::pool::RingSize;

pub use smoltcp::socket::tcp::State as TcpState;

/// One TCP connection's client side: a socket in a set of its own.
pub struct TcpEndpoint {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    rings: RingSize,
    /// The client's initial sequence number.
    pub(super) initial_sequence: u32,
    /// Bytes that this connection has taken out of the receive ring.
    drained: u64,
    /// Bytes that this connection has put into the send ring.
    pub(super) filled: u64,
    /// Bytes of each ring that any connection so far has written to, at most.
    touched: RingSize,
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
    pub(super) fn new(rings: RingSize) -> Self {
        let receive = tcp::SocketBuffer::new(vec![0; rings.receive]);
        let send = tcp::SocketBuffer::new(vec![0; rings.send]);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(tcp::Socket::new(receive, send));
        Self {
            sockets,
            handle,
            rings,
            initial_sequence: 0,
            drained: 0,
            filled: 0,
            touched: RingSize {
                receive: 0,
                send: 0,
            },
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
        }
    }

    /// Makes a used endpoint as good as new. False if its socket would not close.
    pub(super) fn recycle(&mut self) -> bool {
        self.touched = self.touched();
        self.drained = 0;
        self.filled = 0;
        self.window_end = None;
        self.window_scale = 0;
        self.client_window = None;
        self.heard_at = None;
        self.probed_at = None;
        self.our_initial_sequence = 0;
        self.last_sent = None;
        self.finish_end = None;
        let socket = self.socket_mut();
        socket.abort();
        // A closed socket forgets its peer and its data when it listens again.
        !socket.is_open()
    }

    /// Size of the two rings.
    pub fn rings(&self) -> RingSize {
        self.rings
    }

    /// An upper bound of the bytes of each ring that are backed by memory: pages
    /// that nothing was ever written to are not.
    #[inline]
    pub fn touched(&self) -> RingSize {
        let received = self.drained.saturating_add(self.receive_queue() as u64);
        RingSize {
            receive: self
                .touched
                .receive
                .max(capped(received, self.rings.receive)),
            send: self.touched.send.max(capped(self.filled, self.rings.send)),
        }
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
        if self.window_end.is_some() {
            return false;
        }
        let edge = self
            .initial_sequence
            .wrapping_add(1)
            .wrapping_add(self.drained as u32)
            .wrapping_add(self.rings.receive as u32);
        behind(edge, sequence_end)
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
        self.sockets.get(self.handle)
    }

    #[inline]
    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

fn capped(bytes: u64, capacity: usize) -> usize {
    usize::try_from(bytes).map_or(capacity, |bytes| bytes.min(capacity))
}
