//! A worker: its queue of the TUN, its flows, and the loop that serves them.
//!
//! One turn of the loop: wait for readiness; take at most [`BATCH`] packets from the
//! queue and feed each to its flow; let each flow that anything happened to move
//! bytes and send once ([`super::tcp_flow`]); look after timers. Every step has a
//! budget, so no flow and no flood keeps the others waiting.
//!
//! An epoll instance of its own instead of a tokio runtime: one registration a
//! socket, edge-triggered, no task and no waker a flow, and the order of work within
//! a turn is ours to choose.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::DataplaneConfig;
use super::access_log::FlowRecord;
use super::busy_poll::BusyPoll;
use super::dialer::Dialer;
use super::ending::Ending;
use super::flow_table::{FlowId, FlowKey};
use super::flows::Flows;
use super::half_open::HalfOpen;
use super::local_addresses::LocalAddresses;
use super::shared::{Message, Shared, Sweep};
use super::sink::TunSink;
use super::stats::WorkerStats;
use super::workers::Inbox;
use crate::ipvs::{DropReason, RejectReason, VirtualServer};
use crate::netstack::{RingPool, Stack, StackConfig};
use crate::packet::{ErrorLimiter, ErrorLimits, FragmentLimits, FragmentStore};
use crate::tun::{MAX_FRAME_LEN, Queue};
use flow::{Dialing, Kind};
use takeover::{LINKS, Links};

mod change;
mod flow;
mod receive;
mod stray;
mod takeover;
mod tcp;
mod udp;

/// Packets taken from the queue before flows have their turn.
const BATCH: usize = 64;

/// Readiness events taken at a time.
const EVENTS: usize = 256;

/// Memory that a worker keeps in rings without a connection, at most. Fresh pages cost
/// a third of a short connection (4.7 k against 6.7 k connections/s in the prototype).
const KEEP_RINGS: usize = 64 << 20;

/// How old the list of the node's addresses may be when an unknown address asks: one
/// more look a second is cheap, and a new address of the node is served within it.
const ADDRESSES_MAX_AGE: Duration = Duration::from_secs(1);

/// Between two looks at fragments and connections in TIME_WAIT.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

const QUEUE: Token = Token(usize::MAX);
pub(super) const MAILBOX: Token = Token(usize::MAX - 1);

pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    config: Arc<DataplaneConfig>,
    stats: Arc<WorkerStats>,
    queue: Arc<Queue>,
    poll: Poll,
    mailbox: Receiver<Message>,
    sweep: Arc<Sweep>,
    log: SyncSender<FlowRecord>,
    flows: Flows<Kind>,
    /// UDP flows that have been answered, the longest ago first.
    answered: VecDeque<FlowId>,
    stack: Stack,
    sink: TunSink,
    rings: RingPool,
    dialer: Dialer,
    half_open: HalfOpen,
    local: LocalAddresses,
    limiter: ErrorLimiter,
    fragments: FragmentStore,
    /// A packet of our own being written.
    scratch: Vec<u8>,
    /// A datagram of an IPv6 real server.
    datagram: Vec<u8>,
    /// The packet that was read.
    frame: Box<[u8]>,
    /// Distinguishes datagrams that are cut into fragments.
    ident: u32,
    /// Other processes that have to do with this device, while there are any.
    links: Option<Links>,
    /// The queue is read here.
    reading: bool,
    queue_ready: bool,
    faulted: bool,
    housekept: Instant,
    now: Instant,
}

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) queue: Arc<Queue>,
    /// The queue is read from the start, and not only once the worker is told to.
    pub(super) reading: bool,
    pub(super) inbox: Inbox<Message>,
    pub(super) log: SyncSender<FlowRecord>,
    /// Seed of sequence numbers and identifiers.
    pub(super) seed: u64,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let queue = parts.queue;
        let config = Arc::clone(&parts.shared.config);
        // All workers' free rings together stay below an eighth of the ceiling.
        let keep = KEEP_RINGS.min(config.max_memory / 8 / parts.shared.stats.len().max(1));
        let stack = StackConfig {
            mtu: config.mtu,
            seed: parts.seed,
            keep_alive: super::server_socket::KEEP_ALIVE_IDLE,
            dead_after: super::server_socket::KEEP_ALIVE_IDLE * 6,
        };
        Self {
            index: parts.index,
            sink: TunSink::new(Arc::clone(&queue), Arc::clone(&parts.stats)),
            stack: Stack::new(stack, now),
            dialer: Dialer::new(config.masquerade.clone()),
            config,
            shared: parts.shared,
            stats: parts.stats,
            queue,
            poll: parts.inbox.poll,
            mailbox: parts.inbox.mailbox,
            sweep: parts.inbox.sweep,
            log: parts.log,
            flows: Flows::default(),
            answered: VecDeque::new(),
            rings: RingPool::new(keep),
            half_open: HalfOpen::default(),
            local: LocalAddresses::new(ADDRESSES_MAX_AGE),
            limiter: ErrorLimiter::new(ErrorLimits::default()),
            fragments: FragmentStore::new(FragmentLimits::default()),
            scratch: Vec::with_capacity(MAX_FRAME_LEN),
            datagram: Vec::new(),
            frame: vec![0; MAX_FRAME_LEN].into_boxed_slice(),
            ident: parts.seed as u32,
            links: None,
            reading: parts.reading,
            queue_ready: parts.reading,
            faulted: false,
            housekept: now,
            now,
        }
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the queue or epoll fails: the device was deleted.
    pub(super) fn run(mut self) -> io::Result<()> {
        if std::mem::take(&mut self.reading) {
            self.begin_reading()?;
        }
        let mut events = Events::with_capacity(EVENTS);
        let mut waiting = BusyPoll::new();
        loop {
            let timeout = self.timeout();
            // From the last look at the clock after a wait to here it was at work.
            self.stats.busy(self.now.elapsed());
            let waited = waiting.wait(&mut self.poll, &mut events, timeout, self.config.busy_poll);
            self.now = Instant::now();
            match waited {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                match event.token() {
                    QUEUE => self.queue_ready = true,
                    MAILBOX => {
                        if self.read_mailbox()? == Mail::Stop {
                            return Ok(());
                        }
                    }
                    Token(token) if token >= LINKS => self.link_ready(token, event)?,
                    Token(token) => self.socket_ready(FlowId::from_token(token), event),
                }
            }
            if self.queue_ready {
                self.read_queue()?;
            }
            self.look_after_timers();
            for id in self.flows.take_marked() {
                self.turn(id);
            }
            self.sink.flush();
        }
    }

    /// How long the worker may sleep.
    fn timeout(&self) -> Option<Duration> {
        if self.queue_ready || self.flows.has_marked() {
            return Some(Duration::ZERO);
        }
        let housekeeping = self.has_chores().then(|| self.housekept + HOUSEKEEPING);
        let next = [self.flows.next_timer(), housekeeping]
            .into_iter()
            .flatten()
            .min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn has_chores(&self) -> bool {
        !self.fragments.is_empty() || self.flows.has_time_wait() || self.flows.has_unaccounted()
    }

    fn read_queue(&mut self) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        let mut result = Ok(());
        for _ in 0..BATCH {
            match self.queue.read(&mut frame) {
                Ok(len) => self.receive(&frame[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue_ready = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.frame = frame;
        result
    }

    fn socket_ready(&mut self, id: FlowId, event: &Event) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        match &mut flow.kind {
            Kind::Dialing(_) => {
                self.dial_ready(id, event);
                // epoll tells of a change once: the event of a connection may be
                // that of its first bytes, or of its end, as well.
                self.server_ready(id, event);
            }
            Kind::Tcp(_) => self.server_ready(id, event),
            Kind::Udp(_) => self.udp_ready(id),
        }
    }

    fn server_ready(&mut self, id: FlowId, event: &Event) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Tcp(tcp) = &mut flow.kind
        {
            // Behind a short read there may be an end, an error, or, at the mark
            // of urgent data, more.
            let more = event.is_read_closed() || event.is_error() || event.is_priority();
            tcp.server_ready(event.is_readable() || more, event.is_writable(), more);
            self.flows.mark(id);
        }
    }

    fn look_after_timers(&mut self) {
        while let Some(id) = self.flows.due(self.now) {
            match self.flows.get(id).map(|flow| &flow.kind) {
                Some(Kind::Dialing(_)) => self.dial_timer(id),
                Some(Kind::Tcp(_)) => self.flows.mark(id),
                Some(Kind::Udp(_)) => self.udp_timer(id),
                None => {}
            }
        }
        if self.has_chores() && self.now >= self.housekept + HOUSEKEEPING {
            self.housekept = self.now;
            self.flows.expire_time_wait(self.now);
            self.flows.account();
            for _ in 0..self.fragments.expire(self.now) {
                self.stats.dropped(DropReason::FragmentTimeout);
            }
        }
    }

    fn read_mailbox(&mut self) -> io::Result<Mail> {
        if self.sweep.take() {
            self.sweep();
        }
        loop {
            match self.mailbox.try_recv() {
                Ok(Message::Configure(config)) => self.configure(config),
                // The asker may have gone.
                Ok(Message::Ping(reply)) => drop(reply.send(())),
                Ok(Message::Drain) => self.hasten_udp(),
                // The asker may have gone.
                Ok(Message::Used(nets, reply)) => drop(reply.send(self.used(&nets))),
                Ok(Message::Flows(reply)) => {
                    // The asker may have gone.
                    let _ = reply.send(self.flows.views(Instant::now(), &self.config));
                }
                Ok(Message::Packet(frame)) => self.receive_own(&frame),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => {
                    self.reset_all();
                    return Ok(Mail::Stop);
                }
                // The askers wait for the answer, and give up without one.
                Ok(Message::Suspend(socket, reply)) => {
                    let _ = reply.send(self.suspend(socket));
                }
                Ok(Message::Resume) => self.resume()?,
                Ok(Message::Follow(former, reply)) => {
                    let _ = reply.send(self.follow(former));
                }
                Ok(Message::Begin(reply)) => {
                    let _ = reply.send(self.begin_reading());
                }
                Err(TryRecvError::Empty) => return Ok(Mail::Read),
            }
        }
    }

    fn reset_all(&mut self) {
        self.now = Instant::now();
        for id in self.flows.ids() {
            if let Some(flow) = self.flows.get_mut(id)
                && let Kind::Tcp(tcp) = &mut flow.kind
            {
                // A fault here ends nothing that is not ending.
                let _ = tcp.abort(&mut self.stack, self.now, &mut self.sink);
            }
            self.finish(id, Ending::Stopped);
        }
        self.sink.flush();
    }

    /// Counts a new flow in, or says which limit forbids it.
    fn admit(&mut self) -> Result<(), RejectReason> {
        if self.shared.flows.load(Ordering::Relaxed) >= self.config.max_flows {
            self.make_room()?;
        }
        let config = &self.config;
        if self.shared.memory.load(Ordering::Relaxed) >= config.max_memory {
            // What free rings hold must not keep flows out.
            let held = self.rings.touched();
            self.rings.trim();
            self.shared.account(held, self.rings.touched());
        }
        if self.shared.memory.load(Ordering::Relaxed) >= config.max_memory {
            return Err(RejectReason::MemoryLimit);
        }
        Ok(())
    }

    fn insert(&mut self, key: FlowKey, server: Arc<VirtualServer>, kind: Kind) -> FlowId {
        self.shared.entered(key.protocol);
        if let Some(owners) = &self.shared.owners {
            owners.of.insert(key, self.index);
        }
        self.stats.opened(key.protocol);
        self.flows
            .insert(key, kind, Default::default(), server, self.now)
    }

    /// Takes a flow out and logs how it ended. Its sockets close here.
    fn finish(&mut self, id: FlowId, ending: Ending) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let key = flow.key;
        let time_wait = match &flow.kind {
            Kind::Tcp(tcp) if tcp.endpoint().state() == crate::netstack::TcpState::TimeWait => {
                tcp.endpoint().last_sent().map(|sent| (self.now, sent))
            }
            Kind::Tcp(_) | Kind::Dialing(_) | Kind::Udp(_) => None,
        };
        let Some(mut flow) = self.flows.remove(id, key, time_wait) else {
            return;
        };
        self.shared.left(key.protocol);
        if let Some(owners) = &self.shared.owners {
            owners.of.remove_if(&key, |_, owner| *owner == self.index);
        }
        if self.links.is_some() {
            self.tell_ended(&key);
        }
        if flow.own.half_open {
            self.half_open.leave(key.client.ip());
        }
        flow.ended(ending, self.now, &self.config, &self.stats, &self.log);
        let held = flow.held;
        let before = self.rings.touched();
        drop(flow);
        // What the connection's rings hold is the pool's now, unless it let go of it.
        self.shared.account(held + before, self.rings.touched());
    }
}

#[derive(PartialEq, Eq)]
enum Mail {
    Read,
    Stop,
}
