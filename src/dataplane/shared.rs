//! What the workers share with each other and with the control plane.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::flow_table::FlowKey;
use super::stats::WorkerStats;
use super::takeover::{Former, HandedFlow, Sent, send_ended};
use super::view::FlowView;
use super::workers::Mailbox;
use super::{DataplaneConfig, SharedTable};
use crate::ipvs::Protocol;

/// Shared by all workers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: SharedTable,
    /// The settings at the start. Each worker has its own, which
    /// [`Message::Configure`] replaces.
    pub(crate) config: Arc<DataplaneConfig>,
    /// Whether pods are served.
    pub(crate) pod_traffic: AtomicBool,
    pub(crate) stats: Vec<Arc<WorkerStats>>,
    /// Flows open now, of all protocols.
    pub(crate) flows: AtomicUsize,
    /// TCP flows among them, those being opened included.
    pub(crate) tcp_flows: AtomicUsize,
    /// Bytes of memory behind buffers, at most.
    pub(crate) memory: AtomicUsize,
    /// Former processes that still have flows of this device: none or one.
    pub(crate) formers: AtomicUsize,
    /// Where the process that reads the queues instead of this one is told of flows that
    /// end and do not come through the TUN.
    pub(crate) successor: Mutex<Option<OwnedFd>>,
    /// The process ends: see [`Shared::udp_timeout`].
    pub(crate) draining: AtomicBool,
    pub(crate) owners: Option<Owners>,
}

/// Which worker has a flow. Asked only for packets that match no flow of the worker
/// they came to: IP fragments, which the kernel steers by addresses alone, and
/// flows whose queue changed when another queue was attached.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) of: DashMap<FlowKey, usize, foldhash::fast::RandomState>,
    pub(crate) mailboxes: Vec<Mailbox<Message>>,
}

/// While the process ends, a UDP flow is over after this much silence: UDP has no end
/// of its own, and a resolver repeats a question after 5 s (resolv.conf(5), timeout).
const DRAINING_UDP_TIMEOUT: Duration = Duration::from_secs(5);

impl Shared {
    /// The silence after which a UDP flow that has seen a reply is over, by the settings
    /// of the worker that asks.
    pub(crate) fn udp_timeout(&self, config: &DataplaneConfig) -> Duration {
        let timeout = config.udp_timeout;
        if self.draining.load(Ordering::Relaxed) {
            timeout.min(DRAINING_UDP_TIMEOUT)
        } else {
            timeout
        }
    }

    /// Who is told of the ends of flows through listeners, if anybody.
    pub(crate) fn set_successor(&self, socket: Option<OwnedFd>) {
        *self
            .successor
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Tells the process that has taken over of the end of a flow through a listener.
    /// False if it is to be tried again.
    pub(crate) fn tell_successor(&self, key: &FlowKey) -> bool {
        let successor = self.successor.lock();
        match &*successor.unwrap_or_else(PoisonError::into_inner) {
            Some(socket) => send_ended(socket, key) != Sent::Full,
            None => false,
        }
    }

    /// Counts a flow that begins.
    pub(crate) fn entered(&self, protocol: Protocol) {
        self.flows.fetch_add(1, Ordering::Relaxed);
        if protocol == Protocol::Tcp {
            self.tcp_flows.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a flow that has ended off the count.
    pub(crate) fn left(&self, protocol: Protocol) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
        if protocol == Protocol::Tcp {
            self.tcp_flows.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Adjusts the bytes in use.
    pub(crate) fn account(&self, before: usize, after: usize) {
        if after > before {
            self.memory.fetch_add(after - before, Ordering::Relaxed);
        } else if before > after {
            self.memory.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// Asks a worker to end UDP flows to real servers that have retired. However often
/// it is asked for before the worker gets to it, it is one sweep: so it has no place
/// in the mailbox, and who asks never waits.
#[derive(Debug, Default)]
pub(crate) struct Sweep(AtomicBool);

impl Sweep {
    /// Asks. The answer is whether the worker must be woken for it.
    pub(crate) fn ask(&self) -> bool {
        // Release: whoever takes it sees the table as it is now.
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Whether it was asked for, once.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// What a worker can be told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The process ends: UDP flows that are silent are over sooner.
    Drain,
    /// These are the settings from now on.
    Configure(Arc<DataplaneConfig>),
    /// Say that you are there.
    Ping(oneshot::Sender<()>),
    /// Say which flows there are.
    Flows(oneshot::Sender<Vec<FlowView>>),
    /// Say which virtual IPs in these networks have open flows.
    Used(Arc<[IpNet]>, oneshot::Sender<BTreeSet<IpAddr>>),
    /// A packet of a flow that this worker owns, with its virtio-net header.
    Packet(Vec<u8>),
    /// Leave the queue to another process, which is at the other end of the socket, and
    /// say which flows there are.
    Suspend(OwnedFd, oneshot::Sender<io::Result<Vec<HandedFlow>>>),
    /// That other process has not come: read the queue again.
    Resume,
    /// Pass packets of the former process's flows on to it.
    Follow(Arc<Former>, oneshot::Sender<io::Result<()>>),
    /// Read the queue from now on.
    Begin(oneshot::Sender<io::Result<()>>),
    /// Reset all flows and end.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_is_asked_for_often_is_one() {
        let sweep = Sweep::default();
        assert!(!sweep.take());
        assert!(sweep.ask());
        for _ in 0..5000 {
            assert!(!sweep.ask());
        }
        assert!(sweep.take());
        assert!(!sweep.take());
        // The next one wakes the worker again.
        assert!(sweep.ask());
    }
}
