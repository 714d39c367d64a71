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
    pub(crate) config: DataplaneConfig,
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

/// What a worker can be told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Real servers may have retired: end UDP flows to them.
    Sweep,
    /// Say which flows there are.
    Flows(tokio::sync::oneshot::Sender<Vec<FlowView>>),
    /// A packet of a flow that this worker owns, with its virtio-net header.
    Packet(Vec<u8>),
    /// Reset all flows and end.
    Stop,
}
