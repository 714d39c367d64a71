//! One TCP connection between two kernel sockets.
//!
//! Each direction goes through a pipe of its own, which it holds only while bytes are
//! in it. An end that takes nothing leaves its pipe full, and the other end's window
//! closes: the pipe's size is all that is ever stored. A relay has no task and no
//! clock; the worker calls [`Relay::ready`] for an event of a socket and
//! [`Relay::turn`] once for all of them.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::pipe::{PIPE_BYTES, Pipe, Pipes};
use crate::dataplane::{Ending, KernelSocket, Progress, ServerSocket, TcpTimeouts, is_silence};

/// Bytes that one turn may take from either end before other flows have theirs.
const TURN_BYTES: usize = 2 * PIPE_BYTES;

/// Which of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What epoll said of a socket; edges, so they add up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readiness {
    /// There may be bytes, FIN or an error to read.
    pub(super) readable: bool,
    /// There may be room.
    pub(super) writable: bool,
    /// RST came, or the kernel gave up.
    pub(super) failed: bool,
}

/// One end.
#[derive(Debug)]
pub(super) struct Leg {
    socket: KernelSocket,
    readable: bool,
    writable: bool,
    failed: Option<ErrorKind>,
}

/// One direction.
#[derive(Debug, Default)]
struct Stream {
    pipe: Option<Pipe>,
    /// FIN, or an error, has been read from its source.
    finished: bool,
    /// FIN has been sent on.
    passed: bool,
    /// Bytes that its destination has taken.
    moved: u64,
}

/// A connection whose two ends are up.
#[derive(Debug)]
pub(super) struct Relay {
    client: Leg,
    server: Leg,
    inward: Stream,
    outward: Stream,
    /// What the real server gets before anything of the client's.
    preface: Vec<u8>,
    active: Instant,
    ending_since: Option<Instant>,
}

impl Leg {
    pub(super) fn new(socket: KernelSocket) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            failed: None,
        }
    }

    /// Takes an event in. An error is fetched from the socket, as nothing reports it
    /// twice.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable || readiness.failed;
        self.writable |= readiness.writable || readiness.failed;
        if readiness.failed
            && let Err(error) = self.socket.connect_result()
        {
            self.fail(&error);
        }
    }

    /// Whether it was reset.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Makes dropping it send RST.
    pub(super) fn reset_on_close(&mut self) {
        self.socket.reset_on_close();
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = self.failed.or_else(|| Some(error.kind()));
        self.readable = true;
    }

    fn is_silent(&self) -> bool {
        self.failed.is_some_and(is_silence)
    }
}

impl Relay {
    /// Joins the two. `preface` goes to the real server first.
    pub(super) fn new(client: Leg, server: KernelSocket, preface: Vec<u8>, now: Instant) -> Self {
        let mut server = Leg::new(server);
        // It was just found connected, and what it sent meanwhile is not told again.
        server.ready(Readiness {
            readable: true,
            writable: true,
            failed: false,
        });
        Self {
            client,
            server,
            inward: Stream::default(),
            outward: Stream::default(),
            preface,
            active: now,
            ending_since: None,
        }
    }

    /// A socket has an event.
    pub(super) fn ready(&mut self, side: Side, readiness: Readiness) {
        match side {
            Side::Client => self.client.ready(readiness),
            Side::Server => self.server.ready(readiness),
        }
    }

    /// Moves what can be moved.
    pub(super) fn turn(
        &mut self,
        pipes: &mut Pipes,
        timeouts: &TcpTimeouts,
        now: Instant,
    ) -> Progress {
        let before = self.bytes_in() + self.bytes_out();
        self.send_preface();
        let mut budget = TURN_BYTES;
        if self.preface.is_empty() {
            let (from, to) = (&mut self.client, &mut self.server);
            self.inward.pump(from, to, pipes, &mut budget);
        }
        let mut budget_back = TURN_BYTES;
        let (from, to) = (&mut self.server, &mut self.client);
        self.outward.pump(from, to, pipes, &mut budget_back);
        if self.bytes_in() + self.bytes_out() > before {
            self.active = now;
        }
        if let Some(ending) = self.ending(timeouts, now) {
            self.end(ending, pipes);
            return Progress::Ended(ending);
        }
        if budget == 0 || budget_back == 0 {
            Progress::More
        } else {
            Progress::Waiting
        }
    }

    /// When the relay wants a turn though nothing has happened to it.
    pub(super) fn deadline(&self, timeouts: &TcpTimeouts) -> Option<Instant> {
        [
            timeouts.idle.map(|idle| self.active + idle),
            self.ending_since.map(|since| since + timeouts.closing),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Resets both ends when it is dropped.
    pub(super) fn abort(&mut self) {
        self.client.socket.reset_on_close();
        self.server.socket.reset_on_close();
    }

    /// True once either end has finished sending.
    pub(super) fn is_closing(&self) -> bool {
        self.inward.finished || self.outward.finished
    }

    /// The state as `ipvsadm -Lnc` names it.
    pub(super) fn state_name(&self) -> &'static str {
        match (self.inward.finished, self.outward.finished) {
            (false, false) => "ESTABLISHED",
            (true, false) => "CLOSE_WAIT",
            (false, true) => "FIN_WAIT",
            (true, true) => "LAST_ACK",
        }
    }

    /// Bytes that the real server has been given of the client's.
    pub(super) fn bytes_in(&self) -> u64 {
        self.inward.moved
    }

    /// Bytes that the client has been given.
    pub(super) fn bytes_out(&self) -> u64 {
        self.outward.moved
    }

    /// Bytes in the pipes.
    pub(super) fn held(&self) -> usize {
        self.inward.held() + self.outward.held()
    }

    fn send_preface(&mut self) {
        while !self.preface.is_empty() && self.server.writable {
            match self.server.socket.send(&self.preface) {
                Ok(sent) => {
                    self.preface.drain(..sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.server.writable = false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.server.fail(&error);
                    self.preface.clear();
                }
            }
        }
    }

    fn ending(&mut self, timeouts: &TcpTimeouts, now: Instant) -> Option<Ending> {
        // What an end sent before its RST is delivered before the other sees the RST.
        let nobody_left = self.client.has_failed() && self.server.has_failed();
        if self.client.has_failed() && (self.inward.is_delivered() || nobody_left) {
            return Some(if self.client.is_silent() {
                Ending::ClientTimeout
            } else {
                Ending::ClientReset
            });
        }
        if self.server.has_failed() && self.outward.is_delivered() {
            return Some(if self.server.is_silent() {
                Ending::ServerTimeout
            } else {
                Ending::ServerReset
            });
        }
        if self.inward.passed && self.outward.passed {
            return Some(Ending::Closed);
        }
        if let Some(idle) = timeouts.idle
            && now >= self.active + idle
        {
            return Some(Ending::Idle);
        }
        let over = self.inward.finished && self.outward.finished
            || self.client.has_failed()
            || self.server.has_failed();
        if over {
            let since = *self.ending_since.get_or_insert(now);
            if now >= since + timeouts.closing {
                return Some(Ending::ClosingTimeout);
            }
        }
        None
    }

    /// Makes both ends see the end as it was; dropping the relay closes the sockets.
    fn end(&mut self, ending: Ending, pipes: &mut Pipes) {
        if ending != Ending::Closed {
            self.abort();
        }
        for stream in [&mut self.inward, &mut self.outward] {
            if let Some(pipe) = stream.pipe.take() {
                pipes.give(pipe);
            }
        }
    }
}

impl Stream {
    fn held(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::held)
    }

    fn is_delivered(&self) -> bool {
        self.finished && self.held() == 0
    }

    /// Moves bytes until one of the ends, or the budget, stops it.
    fn pump(&mut self, from: &mut Leg, to: &mut Leg, pipes: &mut Pipes, budget: &mut usize) {
        loop {
            let filled = self.fill(from, to, pipes, budget);
            let drained = self.drain(to);
            if !filled && !drained {
                break;
            }
        }
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0) {
            pipes.give(pipe);
        }
        if self.is_delivered() && !self.passed {
            self.passed = true;
            if from.failed.is_none() && to.failed.is_none() {
                to.socket.finish();
            }
        }
    }

    /// True if it got something.
    fn fill(
        &mut self,
        from: &mut Leg,
        to: &mut Leg,
        pipes: &mut Pipes,
        budget: &mut usize,
    ) -> bool {
        let room = PIPE_BYTES.saturating_sub(self.held()).min(*budget);
        if !from.readable || self.finished || to.failed.is_some() || room == 0 {
            return false;
        }
        if self.pipe.is_none() {
            match pipes.take() {
                Ok(pipe) => self.pipe = Some(pipe),
                // Flows that all waited for one another's pipes would wait for ever.
                Err(_) => return self.copy(from, to, pipes.buffer(), budget),
            }
        }
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        match pipe.fill(&from.socket, room) {
            Ok(0) => self.finished = true,
            Ok(moved) => {
                *budget -= moved;
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // With bytes in the pipe, its slots may be what is used up.
                if pipe.held() == 0 {
                    from.readable = false;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(error) => {
                from.fail(&error);
                self.finished = true;
            }
        }
        false
    }

    /// Moves bytes without a pipe: what the one end takes is then taken from the other,
    /// so that nothing needs to be kept. True if it moved something.
    fn copy(&mut self, from: &mut Leg, to: &mut Leg, room: &mut [u8], budget: &mut usize) -> bool {
        if !to.writable {
            return false;
        }
        let limit = room.len().min(*budget);
        let room = &mut room[..limit];
        let copied = match from.socket.peek(room) {
            Ok(0) => {
                self.finished = true;
                return false;
            }
            Ok(count) => to.socket.send(&room[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                from.readable = false;
                return false;
            }
            Err(error) => {
                from.fail(&error);
                self.finished = true;
                return false;
            }
        };
        match copied {
            Ok(count) => {
                // These bytes were just seen there.
                let _ = from.socket.receive(&mut room[..count]);
                self.moved += count as u64;
                *budget -= count;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                to.writable = false;
                false
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => {
                to.fail(&error);
                false
            }
        }
    }

    /// True if it got rid of something.
    fn drain(&mut self, to: &mut Leg) -> bool {
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) else {
            return false;
        };
        if to.failed.is_some() {
            // Nobody is there to take it.
            self.pipe = None;
            return false;
        }
        if !to.writable {
            return false;
        }
        match pipe.drain(&to.socket) {
            Ok(moved) => {
                self.moved += moved as u64;
                moved > 0
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                to.writable = false;
                false
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => {
                to.fail(&error);
                self.pipe = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
