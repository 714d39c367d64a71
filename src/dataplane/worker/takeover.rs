//! A worker's part in a hand-over, on either side: see [`crate::dataplane::takeover`].

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::receive::Arrival;
use super::{Kind, QUEUE, Worker};
use crate::dataplane::flow_table::FlowKey;
use crate::dataplane::stats::add;
use crate::dataplane::takeover::{
    Former, HandedFlow, Received, Sent, receive, send_ended, send_frame,
};
use crate::ipvs::DropReason;

/// Messages taken from one socket before others have a turn.
const BATCH: usize = 256;

/// Packets that wait for one former worker while its socket is full, and their bytes:
/// more than a window of a flow. What does not fit is dropped, as in a full queue.
const BACKLOG: usize = 1024;
const BACKLOG_BYTES: usize = 4 << 20;

/// Tokens of flows have the highest bit clear; the queue and the mailbox are not among
/// these.
pub(super) const LINKS: usize = 1 << 63;
const SUCCESSOR: usize = LINKS | 1 << 32;

/// The other processes that this worker shares the device with.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Reads the queue instead of this worker.
    successor: Option<OwnedFd>,
    /// Has flows of before this process.
    former: Option<FormerLink>,
    /// The packet at hand has been returned by the former process.
    returned: bool,
}

#[derive(Debug)]
struct FormerLink {
    former: Arc<Former>,
    waiting: Vec<Waiting>,
    /// Sockets that this worker has seen closed.
    closed: usize,
}

/// Packets for a former worker whose socket is full.
#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
    closed: bool,
}

impl Worker {
    /// Reads the queue from now on.
    pub(super) fn begin_reading(&mut self) -> io::Result<()> {
        if !self.reading {
            let queue = self.queue.as_raw_fd();
            let registry = self.poll.registry();
            registry.register(&mut SourceFd(&queue), QUEUE, Interest::READABLE)?;
            self.reading = true;
            self.queue_ready = true;
        }
        Ok(())
    }

    /// Leaves the queue to another process, whose packets for us come by `socket`.
    /// Returns the flows that are here.
    pub(super) fn suspend(&mut self, socket: OwnedFd) -> io::Result<Vec<HandedFlow>> {
        let fd = socket.as_raw_fd();
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd), Token(SUCCESSOR), Interest::READABLE)?;
        if self.reading {
            let queue = self.queue.as_raw_fd();
            registry.deregister(&mut SourceFd(&queue))?;
            self.reading = false;
            self.queue_ready = false;
        }
        let mut links = self.links.take().unwrap_or_default();
        let worker = self.index;
        let mut handed: Vec<_> = self
            .flows
            .iter_mut()
            .map(|(_, flow)| {
                let active = matches!(&flow.kind, Kind::Tcp(tcp) if !tcp.is_closing());
                HandedFlow::new(&flow.key, flow.connection.as_ref(), active, worker)
            })
            .collect();
        if let Some(link) = &links.former
            && worker == 0
        {
            handed.extend(link.former.handed(worker));
        }
        links.successor = Some(socket);
        self.links = Some(links);
        Ok(handed)
    }

    /// The successor has not come, or is gone: this worker reads the queue again.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        if let Some(links) = &mut self.links {
            links.successor = None;
            if links.former.is_none() {
                self.links = None;
            }
        }
        self.begin_reading()
    }

    /// Packets of the former process's flows go there from now on.
    pub(super) fn follow(&mut self, former: Arc<Former>) -> io::Result<()> {
        let reader = |socket: usize| socket % self.shared.stats.len() == self.index;
        for (number, socket) in former.sockets.iter().enumerate() {
            let fd = socket.as_raw_fd();
            let interest = if reader(number) {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::WRITABLE
            };
            let token = Token(LINKS | number);
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), token, interest)?;
        }
        let waiting = former.sockets.iter().map(|_| Waiting::default()).collect();
        let link = FormerLink {
            former,
            waiting,
            closed: 0,
        };
        self.links.get_or_insert_default().former = Some(link);
        Ok(())
    }

    /// One of the sockets can be read or written.
    pub(super) fn link_ready(&mut self, token: usize, event: &Event) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        let done = if token == SUCCESSOR {
            self.successor_ready(&mut frame)
        } else {
            self.former_ready(token & !LINKS, event, &mut frame)
        };
        self.frame = frame;
        done
    }

    fn successor_ready(&mut self, frame: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(socket) = self
                .links
                .as_ref()
                .and_then(|links| links.successor.as_ref())
            else {
                return Ok(());
            };
            match receive(socket, frame) {
                Received::Frame(len) => self.receive_own(&frame[..len]),
                Received::Ended(_) | Received::Unknown => {}
                Received::Nothing => return Ok(()),
                Received::Gone => {
                    tracing::warn!(
                        worker = self.index,
                        "the new process is gone: this one serves the flows it still has"
                    );
                    return self.resume();
                }
            }
        }
        let fd = self
            .links
            .as_ref()
            .and_then(|links| Some(links.successor.as_ref()?.as_raw_fd()));
        fd.map_or(Ok(()), |fd| {
            let registry = self.poll.registry();
            registry.reregister(&mut SourceFd(&fd), Token(SUCCESSOR), Interest::READABLE)
        })
    }

    fn former_ready(&mut self, number: usize, event: &Event, frame: &mut [u8]) -> io::Result<()> {
        let Some(former) = self.former() else {
            return Ok(());
        };
        let Some(socket) = former.sockets.get(number) else {
            return Ok(());
        };
        if event.is_writable() {
            self.flush(number);
        }
        if number % self.shared.stats.len() != self.index {
            if event.is_read_closed() || event.is_write_closed() {
                self.former_closed(&former, number, false);
            }
            return Ok(());
        }
        for _ in 0..BATCH {
            match receive(socket, frame) {
                Received::Frame(len) => {
                    self.set_returned(true);
                    self.receive_own(&frame[..len]);
                    self.set_returned(false);
                }
                Received::Ended(key) => {
                    former.forget(&key);
                    // Whoever follows us has it from us.
                    self.tell_ended(&key);
                }
                Received::Unknown => {}
                Received::Nothing => return Ok(()),
                Received::Gone => {
                    self.former_closed(&former, number, true);
                    return Ok(());
                }
            }
        }
        let fd = socket.as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = Token(LINKS | number);
        self.poll
            .registry()
            .reregister(&mut SourceFd(&fd), token, interest)
    }

    /// The virtual IPs of the former process's flows.
    pub(super) fn former_virtual_ips(&self) -> BTreeSet<IpAddr> {
        let former = self.former();
        former.map_or_else(BTreeSet::new, |former| former.virtual_ips())
    }

    fn former(&self) -> Option<Arc<Former>> {
        let link = self.links.as_ref()?.former.as_ref()?;
        Some(Arc::clone(&link.former))
    }

    fn set_returned(&mut self, returned: bool) {
        if let Some(links) = &mut self.links {
            links.returned = returned;
        }
    }

    fn former_closed(&mut self, former: &Former, number: usize, reader: bool) {
        if reader && former.closed() {
            self.shared.formers.fetch_sub(1, Ordering::Relaxed);
            tracing::info!("the former process has ended");
        }
        let Some(links) = &mut self.links else { return };
        if let Some(link) = &mut links.former
            && let Some(waiting) = link.waiting.get_mut(number)
            && !waiting.closed
        {
            *waiting = Waiting {
                closed: true,
                ..Waiting::default()
            };
            link.closed += 1;
            if link.closed == link.waiting.len() {
                links.former = None;
            }
        }
        if links.former.is_none() && links.successor.is_none() {
            self.links = None;
        }
    }

    fn flush(&mut self, number: usize) {
        let Some(links) = &mut self.links else { return };
        let Some(link) = &mut links.former else {
            return;
        };
        let (Some(waiting), Some(socket)) = (
            link.waiting.get_mut(number),
            link.former.sockets.get(number),
        ) else {
            return;
        };
        while let Some(frame) = waiting.frames.front() {
            if send_frame(socket, frame) == Sent::Full {
                return;
            }
            waiting.bytes -= frame.len();
            waiting.frames.pop_front();
        }
    }

    /// Passes the packet of a flow that is not here to the process that has it. False if
    /// none has.
    #[cold]
    pub(super) fn pass_to_process(&mut self, arrival: &Arrival<'_>, key: &FlowKey) -> bool {
        let Some(links) = &mut self.links else {
            return false;
        };
        if let Some(link) = &links.former {
            if links.returned {
                // Should its end not have been heard of.
                link.former.forget(key);
            } else if let Some(worker) = link.former.worker_of(key) {
                let former = Arc::clone(&link.former);
                if self.send_to_former(worker, arrival.frame()) {
                    return true;
                }
                former.forget(key);
                return false;
            }
        }
        let Some(successor) = self
            .links
            .as_ref()
            .and_then(|links| links.successor.as_ref())
        else {
            return false;
        };
        match send_frame(successor, arrival.frame()) {
            Sent::Yes => add(&self.stats.handed_over),
            Sent::Full | Sent::Gone => self.discard(DropReason::QueueFull),
        }
        true
    }

    /// Passes a segment that belongs to no flow to the former process, which may
    /// remember its connection in TIME_WAIT. False if there is none.
    pub(super) fn pass_stray(&mut self, arrival: &Arrival<'_>) -> bool {
        let Some(links) = &self.links else {
            return false;
        };
        let Some(link) = &links.former else {
            return false;
        };
        if links.returned || arrival.is_own() {
            return false;
        }
        // The kernel's steering has not changed: the same queue, the same worker.
        let worker = self.index % link.former.sockets.len().max(1);
        self.send_to_former(worker, arrival.frame())
    }

    fn send_to_former(&mut self, worker: usize, frame: &[u8]) -> bool {
        let Some(link) = self.links.as_mut().and_then(|links| links.former.as_mut()) else {
            return false;
        };
        let (Some(waiting), Some(socket)) = (
            link.waiting.get_mut(worker),
            link.former.sockets.get(worker),
        ) else {
            return false;
        };
        if waiting.closed {
            return false;
        }
        if waiting.frames.is_empty() {
            match send_frame(socket, frame) {
                Sent::Yes => {
                    add(&self.stats.handed_over);
                    return true;
                }
                Sent::Gone => return false,
                Sent::Full => {}
            }
        }
        if waiting.frames.len() >= BACKLOG || waiting.bytes + frame.len() > BACKLOG_BYTES {
            self.discard(DropReason::QueueFull);
            return true;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame.into());
        add(&self.stats.handed_over);
        true
    }

    /// Tells the process that reads the queue that this one has a flow no more.
    #[cold]
    pub(super) fn tell_ended(&self, key: &FlowKey) {
        if let Some(links) = &self.links
            && let Some(successor) = &links.successor
        {
            let _ = send_ended(successor, key);
        }
    }
}
