//! The real server, and the kernel socket between it and the flow.
//!
//! The socket behaves as Linux's does towards epoll with EPOLLET: an edge is told
//! once, when something changes, and a socket that was never found empty or full
//! tells nothing. Data that lies in it before the flow exists tells nothing either.

use std::cell::{RefCell, RefMut};
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{DOWN, UP};
use crate::dataplane::server_socket::ServerSocket;
use crate::dataplane::testing::{Random, check, fill};

/// What epoll reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Edges {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// EPOLLRDHUP, EPOLLHUP or EPOLLERR.
    pub(super) closed: bool,
}

/// How an end reads: so many bytes each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) bytes: u64,
    pub(super) every: Duration,
}

/// The socket's insides and the application behind it.
#[derive(Debug)]
pub(super) struct Inside {
    /// Bytes that the socket takes before the real server must read.
    send_buffer: u64,
    /// Bytes that the socket holds for the flow at most.
    receive_buffer: u64,
    /// Bytes that the flow has sent.
    pub(super) taken: u64,
    /// Bytes of those that the real server has read.
    pub(super) read: u64,
    /// Bytes that the real server wants to send, all told.
    pub(super) offered: u64,
    /// Bytes of those in the socket or through it.
    arrived: u64,
    /// Bytes that the flow has received.
    pub(super) given: u64,
    /// The real server finishes behind what it offered.
    finishing: bool,
    finished: bool,
    error: Option<ErrorKind>,
    /// The flow was told of the error.
    told: bool,
    /// The real server has closed both ways: what comes is answered with RST.
    deaf: bool,
    /// The flow found the socket full.
    full: bool,
    edges: Edges,
    pace: Option<Pace>,
    reads_at: Option<Instant>,
    /// Sends and receives are interrupted now and then.
    interrupts: Option<Random>,
    /// FIN from the flow.
    pub(super) client_finished: bool,
    pub(super) resets_on_close: bool,
    pub(super) keeps_alive: bool,
    /// The last acknowledgment of the handshake is held back.
    pub(super) owes_ack: bool,
    pub(super) closed: bool,
}

/// The test's handle.
#[derive(Clone, Debug)]
pub(super) struct Server(Rc<RefCell<Inside>>);

/// The flow's end.
#[derive(Debug)]
pub(super) struct Socket(Rc<RefCell<Inside>>);

impl Server {
    /// A connected real server behind a socket with buffers of this size.
    pub(super) fn new(send_buffer: u64, receive_buffer: u64) -> (Self, Socket) {
        let inside = Rc::new(RefCell::new(Inside {
            send_buffer,
            receive_buffer,
            taken: 0,
            read: 0,
            offered: 0,
            arrived: 0,
            given: 0,
            finishing: false,
            finished: false,
            error: None,
            told: false,
            deaf: false,
            full: false,
            edges: Edges::default(),
            pace: None,
            reads_at: None,
            interrupts: None,
            client_finished: false,
            resets_on_close: false,
            keeps_alive: false,
            owes_ack: false,
            closed: false,
        }));
        (Self(Rc::clone(&inside)), Socket(inside))
    }

    pub(super) fn look(&self) -> RefMut<'_, Inside> {
        self.0.borrow_mut()
    }

    /// Sends so many bytes more.
    pub(super) fn write(&self, bytes: u64) {
        let mut inside = self.0.borrow_mut();
        inside.offered += bytes;
        inside.arrive();
    }

    /// Sends FIN behind what it has written.
    pub(super) fn finish(&self) {
        let mut inside = self.0.borrow_mut();
        inside.finishing = true;
        inside.arrive();
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.0.borrow().finishing
    }

    /// Closes both ways: FIN, and RST to whatever still comes.
    pub(super) fn close(&self) {
        self.finish();
        self.0.borrow_mut().deaf = true;
    }

    /// Fails as after RST (ConnectionReset) or silence (TimedOut).
    pub(super) fn fail(&self, kind: ErrorKind) {
        self.0.borrow_mut().fail(kind);
    }

    /// Reads at this pace from now on; `None`: at once.
    pub(super) fn set_pace(&self, pace: Option<Pace>, now: Instant) {
        let mut inside = self.0.borrow_mut();
        inside.pace = pace;
        inside.reads_at = pace.map(|pace| now + pace.every);
    }

    pub(super) fn interrupt(&self, seed: u64) {
        self.0.borrow_mut().interrupts = Some(Random::new(seed));
    }

    /// The application reads. True if it did.
    pub(super) fn step(&self, now: Instant) -> bool {
        let mut inside = self.0.borrow_mut();
        let waiting = inside.taken - inside.read;
        let count = match inside.pace {
            None => waiting,
            Some(pace) if inside.reads_at.is_some_and(|at| at <= now) => {
                inside.reads_at = Some(now + pace.every);
                waiting.min(pace.bytes)
            }
            Some(_) => 0,
        };
        inside.read += count;
        // tcp_check_space: writable again when a third of the buffer is free.
        let held = inside.taken - inside.read;
        if inside.full && inside.send_buffer - held >= (inside.send_buffer / 3).max(1) {
            inside.full = false;
            inside.edges.writable = true;
        }
        count > 0
    }

    /// When the application reads next, if it has anything to read.
    pub(super) fn next(&self) -> Option<Instant> {
        let inside = self.0.borrow();
        (inside.taken > inside.read).then_some(inside.reads_at?)
    }

    /// The edges since the last call.
    pub(super) fn edges(&self) -> Option<Edges> {
        let edges = std::mem::take(&mut self.0.borrow_mut().edges);
        (edges != Edges::default()).then_some(edges)
    }
}

impl Socket {
    /// What epoll says together with the connection itself.
    pub(super) fn at_first(&self) -> Edges {
        let inside = self.0.borrow();
        let closed = inside.finished || inside.error.is_some();
        Edges {
            readable: inside.arrived > inside.given || closed,
            writable: true,
            closed,
        }
    }
}

impl Inside {
    /// Bytes move from the real server into the socket.
    fn arrive(&mut self) {
        if self.error.is_some() {
            return;
        }
        let room = self.receive_buffer - (self.arrived - self.given);
        let count = room.min(self.offered - self.arrived);
        if count > 0 {
            self.arrived += count;
            self.edges.readable = true;
        }
        if self.finishing && !self.finished && self.arrived == self.offered {
            self.finished = true;
            self.edges.readable = true;
            self.edges.closed = true;
        }
    }

    fn fail(&mut self, kind: ErrorKind) {
        if self.error.is_none() {
            self.error = Some(kind);
            self.edges = Edges {
                readable: true,
                writable: true,
                closed: true,
            };
        }
    }

    /// The pending error, once (sk_err).
    fn take_error(&mut self) -> Option<io::Error> {
        let kind = self.error?;
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(kind.into())
    }

    fn interrupted(&mut self) -> io::Result<()> {
        let interrupted = self
            .interrupts
            .as_mut()
            .is_some_and(|random| random.chance(100));
        if interrupted {
            return Err(ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

impl ServerSocket for Socket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inside = self.0.borrow_mut();
        inside.interrupted()?;
        assert!(!inside.client_finished, "data behind FIN");
        if let Some(error) = inside.take_error() {
            return Err(error);
        }
        if inside.error.is_some() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = inside.send_buffer - (inside.taken - inside.read);
        let count = room.min(bytes.len() as u64);
        if count < bytes.len() as u64 {
            inside.full = true;
        }
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        check(UP, inside.taken, &bytes[..count as usize]);
        inside.taken += count;
        inside.owes_ack = false;
        if inside.deaf {
            inside.fail(ErrorKind::ConnectionReset);
        }
        Ok(count as usize)
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut inside = self.0.borrow_mut();
        inside.interrupted()?;
        assert!(!room.is_empty(), "a receive that cannot succeed");
        let waiting = inside.arrived - inside.given;
        if waiting > 0 {
            let count = waiting.min(room.len() as u64) as usize;
            fill(DOWN, inside.given, &mut room[..count]);
            inside.given += count as u64;
            inside.arrive();
            return Ok(count);
        }
        if let Some(error) = inside.take_error() {
            return Err(error);
        }
        if inside.finished || inside.error.is_some() {
            return Ok(0);
        }
        Err(ErrorKind::WouldBlock.into())
    }

    fn finish(&mut self) {
        let mut inside = self.0.borrow_mut();
        assert!(!inside.client_finished, "FIN twice");
        inside.client_finished = true;
    }

    fn reset_on_close(&mut self) {
        self.0.borrow_mut().resets_on_close = true;
    }

    fn owes_ack(&self) -> bool {
        self.0.borrow().owes_ack
    }

    fn acknowledge(&mut self) {
        self.0.borrow_mut().owes_ack = false;
    }

    fn keep_alive(&mut self) {
        self.0.borrow_mut().keeps_alive = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut inside = self.0.borrow_mut();
        inside.closed = true;
        // close(2) sends the FIN that nobody has sent.
        inside.client_finished |= !inside.resets_on_close;
    }
}
