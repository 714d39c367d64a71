//! What the workers share with each other and with the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use dashmap::DashMap;

use super::flow_table::FlowKey;
use super::stats::WorkerStats;
use super::view::FlowView;
use super::{DataplaneConfig, SharedTable};

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
    pub(crate) owners: Option<Owners>,
}

/// Which worker has a flow. Asked only for packets that match no flow of the worker
/// they came to: IP fragments, which the kernel steers by addresses alone, and
/// flows whose queue changed when another queue was attached.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) of: DashMap<FlowKey, usize, foldhash::fast::RandomState>,
    pub(crate) mailboxes: Vec<(SyncSender<Message>, Arc<mio::Waker>)>,
}

impl Shared {
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
    /// These are the settings from now on.
    Configure(Arc<DataplaneConfig>),
    /// Say that you are there.
    Ping(tokio::sync::oneshot::Sender<()>),
    /// Say which flows there are.
    Flows(tokio::sync::oneshot::Sender<Vec<FlowView>>),
    /// A packet of a flow that this worker owns, with its virtio-net header.
    Packet(Vec<u8>),
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
