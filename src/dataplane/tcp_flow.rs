//! One TCP connection: the client's end in smoltcp, the real server's in a socket.
//!
//! Bytes go from the receive ring straight into the socket and from the socket
//! straight into the send ring; there is no third buffer, so the window that each
//! end sees is the room that the other end leaves. A flow has no task and no
//! clock: the worker calls [`TcpFlow::segment`] for a packet,
//! [`TcpFlow::server_ready`] for the socket's readiness and [`TcpFlow::turn`] once
//! for all of it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::ending::{Ending, TcpTimeouts, is_silence};
use super::server_socket::ServerSocket;
use crate::netstack::{Fault, Ingest, Stack, TcpEndpoint, TcpState, Transmit};

mod moving;

/// Packets that one turn may send.
const TURN_PACKETS: usize = 16;

/// A client that has not completed its handshake by then has gone; the kernel gives up
/// as late with net.ipv4.tcp_synack_retries = 3.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Connections that live longer are worth the system calls that arm keep-alive.
const SHORT_LIFE: Duration = Duration::from_secs(10);

/// How long into TIME_WAIT the stack is polled: half of smoltcp's 10 s by its clock.
const TIME_WAIT_POLLED: Duration = Duration::from_secs(1);

/// How often a flow's rings are looked at while something moves, and how little must
/// have moved for their memory to be given back: taking 256 KiB from the kernel again
/// costs some 15 µs (64 page faults), twice a second. A flow that falls idle holds a
/// page in each ring for as long.
const TIDY_INTERVAL: Duration = Duration::from_millis(500);
const TIDY_BYTES: u64 = 256 << 10;

/// How long the real server waits for the client's first data to complete the handshake.
/// A client sends within tens of microseconds where CPUs are idle; with 50 connections
/// being made at a time on two busy ones it takes some milliseconds.
const ACK_WAIT: Duration = Duration::from_millis(10);

/// The least time to the next turn that only a timer asks for: smoltcp may say "now"
/// while nothing can be sent.
const TIMER_FLOOR: Duration = Duration::from_millis(1);

/// What the real server sent before its RST gets this long to reach the client:
/// time for two retransmissions, after 200 and 600 ms.
const RESET_GRACE: Duration = Duration::from_secs(1);

/// What a turn leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The flow waits for a packet, its socket or a timer.
    Waiting,
    /// There is more to do at once: it was stopped by its budget.
    More,
    /// It is over.
    Ended(Ending),
}

/// One TCP connection through the proxy.
#[derive(Debug)]
pub struct TcpFlow<S> {
    endpoint: TcpEndpoint,
    server: S,
    /// What the real server gets before anything of the client's.
    preface: Vec<u8>,
    readable: bool,
    writable: bool,
    /// A short read does not mean that the socket is empty.
    more_behind: bool,
    /// FIN from the real server has been read.
    server_finished: bool,
    /// FIN from the client has arrived.
    client_finished: bool,
    /// FIN has been sent to the real server.
    finish_sent: bool,
    client_reset: bool,
    server_error: Option<ErrorKind>,
    established: bool,
    kept_alive: bool,
    opened: Instant,
    active: Instant,
    /// Since when both directions are finished and the send ring has not shrunk.
    closing_since: Option<Instant>,
    /// Bytes in the send ring then.
    closing_queue: usize,
    /// Since when the real server is known to have failed.
    broken_since: Option<Instant>,
    time_wait_since: Option<Instant>,
    /// When the rings are next looked at, and what had moved at the last look.
    tidy_at: Option<Instant>,
    tidied: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl<S: ServerSocket> TcpFlow<S> {
    /// Answers `syn` now that `server` is connected. What may already be read from it is
    /// told with [`TcpFlow::server_ready`].
    ///
    /// # Errors
    /// When smoltcp panics.
    #[expect(
        clippy::too_many_arguments,
        reason = "what makes a connection is that many things"
    )]
    pub fn open(
        mut endpoint: TcpEndpoint,
        server: S,
        stack: &mut Stack,
        syn: &[u8],
        port: u16,
        initial_sequence: u32,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<Self, Fault> {
        stack.accept(&mut endpoint, syn, port, initial_sequence, now, out)?;
        Ok(Self {
            endpoint,
            server,
            preface: Vec::new(),
            // Until the socket's readiness is told: see `server_ready`.
            readable: false,
            writable: true,
            more_behind: false,
            server_finished: false,
            client_finished: false,
            finish_sent: false,
            client_reset: false,
            server_error: None,
            established: false,
            kept_alive: false,
            opened: now,
            active: now,
            closing_since: None,
            closing_queue: 0,
            broken_since: None,
            time_wait_since: None,
            tidy_at: None,
            tidied: 0,
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    /// Sends `preface` to the real server before anything of the client's. It is not
    /// counted among the bytes that the client sent.
    pub fn set_preface(&mut self, preface: Vec<u8>) {
        self.preface = preface;
    }

    /// Takes one segment of the client. `sequence_end` is the sequence number
    /// behind its last byte of data.
    ///
    /// # Errors
    /// When smoltcp panics.
    #[inline]
    pub fn segment(
        &mut self,
        stack: &mut Stack,
        packet: &[u8],
        sequence_end: u32,
        reset: bool,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<Ingest, Fault> {
        // In TIME_WAIT everything has been said, and a reset is the answer of a client
        // that has forgotten to a packet that came late (RFC 1337).
        let was_open = !self.is_closed() && self.endpoint.state() != TcpState::TimeWait;
        let before = self.standing();
        let taken = stack.ingest(&mut self.endpoint, packet, sequence_end, now, out)?;
        self.client_finished |= self.endpoint.client_finished();
        self.client_reset |= reset && was_open && self.is_closed();
        // The answer to a keep-alive probe of our own moves nothing and lies where
        // the next byte would; a probe of the client lies before that.
        let next = self.endpoint.last_sent().map(|sent| sent.acknowledgement);
        if before != self.standing() || next != Some(sequence_end) {
            self.active = now;
        }
        Ok(taken)
    }

    /// The socket's readiness has changed. `more_behind`: FIN, an error or the mark of
    /// urgent data is among what can be read, so that it must be read until it blocks.
    #[inline]
    pub fn server_ready(&mut self, readable: bool, writable: bool, more_behind: bool) {
        self.readable |= readable;
        self.writable |= writable;
        self.more_behind |= more_behind;
    }

    /// Moves what can be moved and sends what is due.
    ///
    /// # Errors
    /// When smoltcp panics.
    pub fn turn(
        &mut self,
        stack: &mut Stack,
        timeouts: &TcpTimeouts,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<Progress, Fault> {
        self.move_to_server(now);
        if self.server.owes_ack() && now >= self.opened + ACK_WAIT {
            self.server.acknowledge();
        }
        let mut more = self.move_to_client(now);
        self.finish_to_client();
        if !self.keeps_unread(now) {
            more |= stack.egress(&mut self.endpoint, now, out, TURN_PACKETS)?;
        }
        if let Some(ending) = self.ending(timeouts, now) {
            self.end(ending, stack, now, out)?;
            return Ok(Progress::Ended(ending));
        }
        if !self.kept_alive && now.saturating_duration_since(self.opened) >= SHORT_LIFE {
            self.kept_alive = true;
            self.server.keep_alive();
        }
        self.tidy(now);
        Ok(if more {
            Progress::More
        } else {
            Progress::Waiting
        })
    }

    /// When the flow wants a turn though nothing has happened to it.
    pub fn deadline(&self, stack: &mut Stack, timeouts: &TcpTimeouts, now: Instant) -> Instant {
        let mut at = if self.established {
            now + Duration::from_secs(3600)
        } else {
            self.opened + HANDSHAKE_TIMEOUT
        };
        if self.time_wait_since.is_none()
            && let Some(stack_at) = stack.poll_at(&self.endpoint, now)
        {
            at = at.min(stack_at);
        }
        if !self.kept_alive {
            at = at.min(self.opened + SHORT_LIFE);
        }
        if self.server.owes_ack() {
            at = at.min(self.opened + ACK_WAIT);
        }
        if let Some(tidy) = self.tidy_at {
            at = at.min(tidy);
        }
        if let Some(idle) = timeouts.idle {
            at = at.min(self.active + idle);
        }
        if let Some(since) = self.closing_since {
            at = at.min(since + timeouts.closing);
        }
        if let Some(since) = self.broken_since {
            at = at.min(since + RESET_GRACE);
        }
        at.max(now + TIMER_FLOOR)
    }

    /// Ends the flow from outside: RST to both ends.
    ///
    /// # Errors
    /// When smoltcp panics.
    pub fn abort(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<(), Fault> {
        self.end(Ending::Stopped, stack, now, out)
    }

    /// The client is gone without a word to it: RST to the real server only.
    pub fn forsake(&mut self) {
        self.server.reset_on_close();
    }

    /// The client's side.
    pub fn endpoint(&self) -> &TcpEndpoint {
        &self.endpoint
    }

    /// Bytes of memory behind its rings, at most.
    pub fn touched(&mut self) -> usize {
        self.endpoint.touched()
    }

    /// True once the client has completed its handshake.
    #[inline]
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// True where the real server has spoken, and the client has not.
    #[inline]
    pub fn server_spoke_first(&self) -> bool {
        self.bytes_out > 0 && self.bytes_in == 0 && !self.client_finished
    }

    /// True once either end has finished sending.
    #[inline]
    pub fn is_closing(&self) -> bool {
        self.client_finished || self.server_finished
    }

    /// True once both ends have finished sending and everything is delivered.
    pub fn is_finished(&self) -> bool {
        self.finish_sent && self.server_finished
    }

    /// The state as `ipvsadm -Lnc` names it.
    pub fn state_name(&self) -> &'static str {
        match self.endpoint.state() {
            TcpState::Listen | TcpState::SynSent | TcpState::SynReceived => "SYN_RECV",
            TcpState::Established => "ESTABLISHED",
            TcpState::FinWait1 | TcpState::FinWait2 => "FIN_WAIT",
            TcpState::CloseWait => "CLOSE_WAIT",
            TcpState::Closing | TcpState::LastAck => "LAST_ACK",
            TcpState::TimeWait => "TIME_WAIT",
            TcpState::Closed => "CLOSE",
        }
    }

    /// Bytes that the real server has been given.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes that the real server has sent.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// When the flow last moved.
    pub fn last_active(&self) -> Instant {
        self.active
    }

    /// A reset during the handshake sends smoltcp's socket back to LISTEN.
    fn is_closed(&self) -> bool {
        matches!(self.endpoint.state(), TcpState::Closed | TcpState::Listen)
    }

    /// What changes when something moves on the client's side.
    fn standing(&self) -> (TcpState, usize, usize) {
        let endpoint = &self.endpoint;
        (
            endpoint.state(),
            endpoint.receive_queue(),
            endpoint.send_queue(),
        )
    }

    /// Gives the memory of the rings back when little moves through them. A ring's
    /// position walks through all of it, however little is in it at a time.
    fn tidy(&mut self, now: Instant) {
        let moved = self.endpoint.moved();
        match self.tidy_at {
            None if moved != self.tidied => self.tidy_at = Some(now + TIDY_INTERVAL),
            Some(at) if now >= at => {
                let since = moved - self.tidied;
                self.tidied = moved;
                let done = since < TIDY_BYTES && self.endpoint.trim();
                // Rings that are full and stand still are looked at when they move.
                self.tidy_at = (!done && since > 0).then(|| now + TIDY_INTERVAL);
            }
            None | Some(_) => {}
        }
    }

    /// True when the stack must not be polled any more: at the end of TIME_WAIT
    /// smoltcp empties the receive ring, though a slow real server may still be
    /// owed what is in it. By then the client's FIN has long been acknowledged.
    fn keeps_unread(&mut self, now: Instant) -> bool {
        if self.endpoint.state() != TcpState::TimeWait {
            return false;
        }
        let since = *self.time_wait_since.get_or_insert(now);
        now >= since + TIME_WAIT_POLLED && self.endpoint.receive_queue() > 0
    }

    fn ending(&mut self, timeouts: &TcpTimeouts, now: Instant) -> Option<Ending> {
        let state = self.endpoint.state();
        self.established |= !matches!(
            state,
            TcpState::Listen | TcpState::SynReceived | TcpState::Closed
        );
        let both_finished = self.is_finished();
        let closed = self.is_closed();
        if closed && self.client_reset {
            return Some(Ending::ClientReset);
        }
        if let Some(kind) = self.server_error {
            let since = *self.broken_since.get_or_insert(now);
            let delivered = self.server_finished && self.endpoint.send_queue() == 0;
            if closed || delivered || now >= since + RESET_GRACE {
                return Some(if is_silence(kind) {
                    Ending::ServerTimeout
                } else {
                    Ending::ServerReset
                });
            }
        }
        if both_finished && (closed || state == TcpState::TimeWait) {
            return Some(Ending::Closed);
        }
        // Acknowledged to the last byte, though the real server has not taken all.
        if closed && !(self.client_finished && self.server_finished) {
            return Some(Ending::ClientTimeout);
        }
        if !self.established && now >= self.opened + HANDSHAKE_TIMEOUT {
            return Some(Ending::HandshakeTimeout);
        }
        if let Some(idle) = timeouts.idle
            && now >= self.active + idle
        {
            return Some(Ending::Idle);
        }
        if both_finished {
            let queue = self.endpoint.send_queue();
            if queue < self.closing_queue {
                self.closing_since = None;
            }
            self.closing_queue = queue;
            let since = *self.closing_since.get_or_insert(now);
            if now >= since + timeouts.closing {
                return Some(Ending::ClosingTimeout);
            }
        }
        None
    }

    /// Makes both ends see the end as it was.
    fn end(
        &mut self,
        ending: Ending,
        stack: &mut Stack,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<(), Fault> {
        if ending == Ending::Closed {
            return Ok(());
        }
        self.server.reset_on_close();
        if ending != Ending::ClientReset {
            self.endpoint.reset();
            stack.egress(&mut self.endpoint, now, out, 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
