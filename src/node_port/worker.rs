//! A worker of the node ports: its listeners, its flows, and the loop that serves them.
//!
//! One turn of the loop: wait for readiness; accept and receive what listeners have,
//! within a budget; let each flow that anything happened to move bytes once; look after
//! timers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use tokio::sync::oneshot;

use super::flow::{Kind, Own};
use super::listener::{Listen, ListenAddress, Listener};
use super::pipe::Pipes;
use super::relay::{Readiness, Side};
use super::takeover::Lent;
use super::token::{MAILBOX, Owner};
use super::unreachable::{RawSockets, Told, Unreachables};
use crate::dataplane::{
    BusyPoll, DataplaneConfig, Dialer, Ending, FlowId, FlowKey, FlowRecord, FlowView, Flows, Inbox,
    LocalAddresses, MAX_UDP_PAYLOAD, Shared, Sweep, WorkerStats,
};
use crate::ipvs::{DropReason, EchoVerdict, Protocol, RejectReason, Verdict, VirtualServer};
use crate::packet::Unreachable;

mod change;
mod listeners;
mod takeover;
mod tcp;
mod udp;

/// Readiness events taken at a time.
const EVENTS: usize = 256;

/// How old the list of the node's addresses may be when one that is not in it asks.
/// Changes are told ([`Message::Addresses`]); this is for the time in between.
const ADDRESSES_MAX_AGE: Duration = Duration::from_secs(5);

/// Between two counts of the bytes of open flows.
const ACCOUNT: Duration = Duration::from_secs(1);

/// What a worker can be told.
#[derive(Debug)]
pub(super) enum Message {
    /// Listen there; whoever was listened for at that address before is replaced.
    Open(Listen),
    /// Listen there no more. UDP flows that came through it end.
    Close(ListenAddress),
    /// The process ends, or nobody serves: take no new flows there. A UDP listener stays
    /// open until the last flow that answers through it has ended.
    Drain(ListenAddress),
    /// The process ends: UDP flows that are silent are over sooner.
    Hasten,
    /// Leave the listeners to another process, and say which there are.
    Lend(oneshot::Sender<io::Result<Lent>>),
    /// That process has not come.
    Reclaim,
    /// That process has them: close them here.
    Release,
    /// Go on with what another process had.
    Inherit(Lent),
    /// Addresses of the node have changed.
    Addresses,
    /// These are the settings from now on.
    Configure(Arc<DataplaneConfig>),
    /// Say which flows there are.
    Flows(oneshot::Sender<Vec<FlowView>>),
    /// Say once that everything told before is done.
    Settled(oneshot::Sender<()>),
    /// Reset all flows and end.
    Stop,
}

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) inbox: Inbox<Message>,
    pub(super) log: SyncSender<FlowRecord>,
    pub(super) raw: Arc<RawSockets>,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    config: Arc<DataplaneConfig>,
    stats: Arc<WorkerStats>,
    poll: Poll,
    mailbox: Receiver<Message>,
    sweep: Arc<Sweep>,
    log: SyncSender<FlowRecord>,
    /// By number.
    listeners: BTreeMap<u32, Listener>,
    numbers: BTreeMap<ListenAddress, u32>,
    next_number: u32,
    /// Those that wait for their port, or for descriptors.
    waiting: BTreeSet<u32>,
    /// UDP listeners that take no new flows and close with their last one.
    lingering: BTreeSet<u32>,
    /// Listeners that have something to take.
    ready: Vec<u32>,
    /// Another process takes from the listeners, or is about to.
    lent: bool,
    /// Connections that have ended and that it counts, to be told.
    untold: Vec<FlowKey>,
    /// What another process had, until it is taken up.
    inherited: Lent,
    flows: Flows<Kind>,
    /// When bytes of open flows were counted last.
    accounted: Instant,
    pipes: Pipes,
    dialer: Dialer,
    own: LocalAddresses,
    unreachables: Unreachables,
    /// A datagram.
    datagram: Box<[u8]>,
    now: Instant,
}

#[derive(PartialEq, Eq)]
enum Mail {
    Read,
    Stop,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            dialer: Dialer::new(parts.shared.config.masquerade.clone()),
            config: Arc::clone(&parts.shared.config),
            shared: parts.shared,
            stats: parts.stats,
            poll: parts.inbox.poll,
            mailbox: parts.inbox.mailbox,
            sweep: parts.inbox.sweep,
            log: parts.log,
            listeners: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            waiting: BTreeSet::new(),
            lingering: BTreeSet::new(),
            ready: Vec::new(),
            lent: false,
            untold: Vec::new(),
            inherited: Lent::default(),
            flows: Flows::default(),
            accounted: now,
            pipes: Pipes::default(),
            own: LocalAddresses::new(ADDRESSES_MAX_AGE),
            unreachables: Unreachables::new(parts.raw),
            datagram: vec![0; MAX_UDP_PAYLOAD].into_boxed_slice(),
            now,
        }
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When epoll fails.
    pub(super) fn run(mut self) -> io::Result<()> {
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
                if event.token() == MAILBOX {
                    if self.read_mailbox() == Mail::Stop {
                        return Ok(());
                    }
                    continue;
                }
                match Owner::of(event.token()) {
                    Owner::Listener(number) => self.listener_ready(number),
                    Owner::Flow(id, side) => self.socket_ready(id, side, event),
                }
            }
            self.look_after_listeners();
            for number in std::mem::take(&mut self.ready) {
                self.take_from(number);
            }
            self.look_after_timers();
            self.account_when_due();
            for id in self.flows.take_marked() {
                self.turn_of(id);
            }
            self.tell_ends();
        }
    }

    /// How long the worker may sleep.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.flows.has_marked() {
            return Some(Duration::ZERO);
        }
        let waits = [
            self.flows.next_timer(),
            self.next_wait(),
            self.next_account(),
        ];
        let next = waits.into_iter().chain([self.next_telling()]);
        let next = next.flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn read_mailbox(&mut self) -> Mail {
        loop {
            match self.mailbox.try_recv() {
                Ok(Message::Open(listen)) => self.open(listen),
                Ok(Message::Close(at)) => self.close(at),
                Ok(Message::Drain(at)) => self.drain(at),
                Ok(Message::Lend(reply)) => drop(reply.send(self.lend())),
                Ok(Message::Reclaim) => self.reclaim(),
                Ok(Message::Release) => self.release(),
                Ok(Message::Inherit(lent)) => self.inherit(lent),
                Ok(Message::Hasten) => self.hasten_udp(),
                Ok(Message::Addresses) => self.own.forget(),
                Ok(Message::Configure(config)) => self.configure(config),
                // The askers may have gone.
                Ok(Message::Flows(reply)) => {
                    drop(reply.send(self.flows.views(Instant::now(), &self.config)))
                }
                Ok(Message::Settled(reply)) => drop(reply.send(())),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => {
                    self.reset_all();
                    return Mail::Stop;
                }
                Err(TryRecvError::Empty) => break,
            }
        }
        // Afterwards: a listener that lingers and is opened again does not close with its
        // last flow, and what waits there is not lost.
        if self.sweep.take() {
            self.sweep();
        }
        Mail::Read
    }

    fn socket_ready(&mut self, id: FlowId, side: Side, event: &Event) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let readiness = Readiness {
            readable: event.is_readable() || event.is_read_closed(),
            writable: event.is_writable(),
            failed: event.is_error(),
        };
        match &mut flow.kind {
            Kind::Dialing(dialing) => match side {
                Side::Server => self.dial_ready(id),
                Side::Client => {
                    if let Some(client) = &mut dialing.client {
                        client.ready(readiness);
                        if client.has_failed() {
                            self.finish(id, Ending::Abandoned);
                        }
                    }
                }
            },
            Kind::Tcp(relay) => {
                relay.ready(side, readiness);
                self.flows.mark(id);
            }
            Kind::Udp { .. } => self.udp_ready(id),
        }
    }

    fn turn_of(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        flow.dirty = false;
        match flow.kind {
            Kind::Tcp(_) => self.turn(id),
            Kind::Udp { .. } => self.udp_ready(id),
            Kind::Dialing(_) => {}
        }
    }

    fn look_after_timers(&mut self) {
        while let Some(id) = self.flows.due(self.now) {
            match self.flows.get(id).map(|flow| &flow.kind) {
                Some(Kind::Dialing(_)) => self.dial_timer(id),
                Some(Kind::Tcp(_)) => self.flows.mark(id),
                Some(Kind::Udp { .. }) => self.udp_timer(id),
                None => {}
            }
        }
    }

    /// When bytes of open flows are to be counted next.
    fn next_account(&self) -> Option<Instant> {
        self.flows
            .has_unaccounted()
            .then(|| self.accounted + ACCOUNT)
    }

    fn account_when_due(&mut self) {
        if self.next_account().is_some_and(|due| self.now >= due) {
            self.accounted = self.now;
            self.flows.account();
        }
    }

    fn reset_all(&mut self) {
        self.now = Instant::now();
        for id in self.flows.ids() {
            if let Some(flow) = self.flows.get_mut(id) {
                match &mut flow.kind {
                    Kind::Tcp(relay) => relay.abort(),
                    Kind::Dialing(dialing) => {
                        if let Some(client) = &mut dialing.client {
                            client.reset_on_close();
                        }
                    }
                    Kind::Udp { .. } => {}
                }
            }
            self.finish(id, Ending::Stopped);
        }
    }

    /// What the table says of a new flow, and then the limits.
    fn verdict(&mut self, listen: &Listen, local: SocketAddr, client: SocketAddr) -> Verdict {
        let protocol = listen.at.protocol;
        let (own, now) = (&mut self.own, self.now);
        let is_node = || own.contains(client.ip(), now);
        let table = &self.shared.table;
        let verdict = if listen.server.ip.is_unspecified() {
            table.node_port(local, protocol, client.ip(), is_node)
        } else {
            table.verdict(listen.server, client.ip(), is_node)
        };
        if matches!(verdict, Verdict::Forward(_)) {
            let config = &self.config;
            if self.shared.flows.load(Ordering::Relaxed) >= config.max_flows {
                return Verdict::Reject(RejectReason::FlowLimit);
            }
            if self.shared.memory.load(Ordering::Relaxed) >= config.max_memory {
                return Verdict::Reject(RejectReason::MemoryLimit);
            }
        }
        verdict
    }

    /// Counts what was refused.
    fn count(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Reject(reason) => self.stats.reject(*reason),
            Verdict::Drop(reason) => self.stats.dropped(*reason),
            Verdict::Forward(_) => {}
        }
    }

    /// Tells a client of UDP that its datagram came to nobody.
    fn tell_unreachable(&mut self, key: &FlowKey, payload_len: usize, what: Unreachable) {
        let (client, local) = (key.client, key.virtual_server);
        let told = self
            .unreachables
            .tell(self.now, client, local, payload_len, what);
        match told {
            Told::Limited => self.discard(DropReason::RateLimited),
            Told::Sent | Told::Unable => {}
        }
    }

    /// Whether a real server's address would lead back to this proxy, for ever: a
    /// virtual IP, or a socket of ours, which is this worker's since the port is.
    fn leads_back(&mut self, to: SocketAddr, protocol: Protocol) -> bool {
        if self.shared.table.echo(to.ip()) == EchoVerdict::Answer {
            return true;
        }
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let here = |address| {
            self.numbers
                .contains_key(&ListenAddress { protocol, address })
        };
        here(to) || here(SocketAddr::new(any, to.port())) && self.own.contains(to.ip(), self.now)
    }

    fn insert(
        &mut self,
        key: FlowKey,
        server: Arc<VirtualServer>,
        listener: u32,
        kind: Kind,
    ) -> FlowId {
        self.shared.entered(key.protocol);
        self.stats.opened(key.protocol);
        self.flows
            .insert(key, kind, Own { listener }, server, self.now)
    }

    /// Takes a flow out and logs how it ended. Its sockets close here.
    fn finish(&mut self, id: FlowId, ending: Ending) {
        let Some(key) = self.flows.get_mut(id).map(|flow| flow.key) else {
            return;
        };
        let Some(mut flow) = self.flows.remove(id, key, None) else {
            return;
        };
        self.shared.left(key.protocol);
        self.shared.account(flow.held, 0);
        flow.ended(ending, self.now, &self.config, &self.stats, &self.log);
        let listener = flow.own.listener;
        drop(flow);
        self.relayed_ended(key);
        if !self.lingering.is_empty() {
            self.close_lingering(listener);
        }
    }

    fn watch(&self, fd: &impl AsRawFd, owner: Owner, interest: Interest) -> io::Result<()> {
        register(&self.poll, fd, owner, interest)
    }

    fn discard(&self, reason: DropReason) {
        self.stats.dropped(reason);
    }
}

fn register(poll: &Poll, fd: &impl AsRawFd, owner: Owner, interest: Interest) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    poll.registry()
        .register(&mut SourceFd(&fd), owner.token(), interest)
}
