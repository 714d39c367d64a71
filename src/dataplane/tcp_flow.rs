//! One TCP connection: the client's end in smoltcp, the real server's in a socket.
//!
//! Bytes go from the receive ring straight into the socket and from the socket
//! straight into the send ring; there is no third buffer, so the window that each
//! end sees is the room that the other end leaves. A flow has no task and no
//! clock: the worker calls [`TcpFlow::segment`] for a packet,
//! [`TcpFlow::server_ready`] for the socket's readiness and [`TcpFlow::turn`] once
//! for all of it.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::ending::Ending;
use super::server_socket::ServerSocket;
use crate::netstack::{Fault, Ingest, Stack, TcpEndpoint, TcpState, Transmit};

/// Bytes that one turn may read from the real server before other flows have theirs:
/// four super-packets.
const TURN_BYTES: usize = 256 << 10;

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
/// have moved for their memory to be given back: taking 1 MiB from the kernel again
/// costs some 60 µs (256 page faults), once in two seconds.
const TIDY_INTERVAL: Duration = Duration::from_secs(2);
const TIDY_BYTES: u64 = 1 << 20;

/// The least time to the next turn that only a timer asks for: smoltcp may say "now"
/// while nothing can be sent.
const TIMER_FLOOR: Duration = Duration::from_millis(1);

/// Limits on a flow's time.
#[derive(Clone, Copy, Debug)]
pub struct TcpTimeouts {
    /// Ends a flow on which nothing has moved for so long. `None`: never.
    pub idle: Option<Duration>,
    /// Ends a flow whose two directions are finished while the client does not
    /// acknowledge the end.
    pub closing: Duration,
}

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
    closing_since: Option<Instant>,
    time_wait_since: Option<Instant>,
    /// When the rings are next looked at, and what had moved at the last look.
    tidy_at: Option<Instant>,
    tidied: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl<S: ServerSocket> TcpFlow<S> {
    /// Answers `syn` now that `server` is connected.
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
        let taken = stack.ingest(&mut self.endpoint, packet, sequence_end, now, out)?;
        self.client_finished |= self.endpoint.client_finished();
        // A reset during the handshake sends smoltcp's socket back to LISTEN.
        let closed = matches!(self.endpoint.state(), TcpState::Closed | TcpState::Listen);
        self.client_reset |= reset && closed;
        self.active = now;
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
    /// # Errors
    /// When smoltcp panics.
    pub fn turn(
        &mut self,
        stack: &mut Stack,
        timeouts: &TcpTimeouts,
        now: Instant,
        out: &mut impl Transmit,
    ) -> Result<Progress, Fault> {
        self.move_to_server();
        let mut more = self.move_to_client(now);
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
        if let Some(tidy) = self.tidy_at {
            at = at.min(tidy);
        }
        if let Some(idle) = timeouts.idle {
            at = at.min(self.active + idle);
        }
        if let Some(since) = self.closing_since {
            at = at.min(since + timeouts.closing);
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

    /// From the receive ring into the socket.
    fn move_to_server(&mut self) {
        if !self.preface.is_empty() {
            self.send_preface();
            if !self.preface.is_empty() {
                return;
            }
        }
        while self.writable && self.server_error.is_none() && self.endpoint.receive_queue() > 0 {
            let server = &mut self.server;
            let sent = self.endpoint.receive(|bytes| match server.send(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Some(Ok(count)) => self.bytes_in += count as u64,
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Some(Err(error)) => self.server_failed(&error),
                None => break,
            }
        }
        if self.client_finished && !self.finish_sent && self.endpoint.receive_queue() == 0 {
            self.finish_sent = true;
            if self.server_error.is_none() {
                self.server.finish();
            }
        }
    }

    fn send_preface(&mut self) {
        while self.writable && !self.preface.is_empty() {
            match self.server.send(&self.preface) {
                Ok(sent) => drop(self.preface.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.preface.clear();
                    self.server_failed(&error);
                }
            }
        }
    }

    /// From the socket into the send ring. True when the budget stopped it.
    fn move_to_client(&mut self, now: Instant) -> bool {
        // Whole super-packets: a runt costs as much as a full one.
        let burst = self.endpoint.burst();
        let mut budget = (TURN_BYTES / burst).max(1) * burst;
        while self.readable && !self.server_finished && self.endpoint.send_room() > 0 {
            if budget == 0 {
                return true;
            }
            let server = &mut self.server;
            let received = self.endpoint.send(|room| {
                let limit = budget.min(room.len());
                match server.receive(&mut room[..limit]) {
                    Ok(count) => (count, Ok((count, limit))),
                    Err(error) => (0, Err(error)),
                }
            });
            match received {
                Some(Ok((0, _))) => {
                    self.server_finished = true;
                    if self.server_error.is_none() {
                        self.endpoint.finish();
                    }
                }
                Some(Ok((count, limit))) => {
                    self.bytes_out += count as u64;
                    self.active = now;
                    budget = budget.saturating_sub(count);
                    // A short read has emptied the socket; what comes later is told.
                    self.readable = count == limit || self.more_behind;
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Some(Err(error)) => {
                    self.server_failed(&error);
                    self.server_finished = true;
                }
                None => break,
            }
        }
        false
    }

    /// A failed send or receive. What the real server sent before its RST is still
    /// in the socket: it is read before the flow ends.
    fn server_failed(&mut self, error: &io::Error) {
        self.server_error = self.server_error.or_else(|| Some(error.kind()));
        self.readable = true;
        self.more_behind = true;
    }

    /// Gives the memory of the rings back when little moves through them. A ring's
    /// position walks through all of it, however little is in it at a time.
    fn tidy(&mut self, now: Instant) {
        let moved = self.endpoint.moved();
        match self.tidy_at {
            None if moved != self.tidied => self.tidy_at = Some(now + TIDY_INTERVAL),
            Some(at) if now >= at => {
                let bulk = moved - self.tidied >= TIDY_BYTES;
                self.tidied = moved;
                let done = !bulk && self.endpoint.trim();
                self.tidy_at = (!done).then(|| now + TIDY_INTERVAL);
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
        if let Some(kind) = self.server_error
            && self.server_finished
        {
            let silent = matches!(
                kind,
                ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            );
            return Some(if silent {
                Ending::ServerTimeout
            } else {
                Ending::ServerReset
            });
        }
        let closed = matches!(state, TcpState::Closed | TcpState::Listen);
        if both_finished && (closed || state == TcpState::TimeWait) {
            return Some(Ending::Closed);
        }
        if closed && self.client_reset {
            return Some(Ending::ClientReset);
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
