//! Counters: one set a worker, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ipvs::{DropReason, RejectReason};

/// One worker's counters. Only that worker writes; anyone reads.
#[derive(Debug, Default)]
pub(super) struct WorkerStats {
    dropped: [AtomicU64; DropReason::ALL.len()],
    rejected: [AtomicU64; RejectReason::ALL.len()],
    pub(super) opened: AtomicU64,
    pub(super) failovers: AtomicU64,
    pub(super) tun_errors: AtomicU64,
    pub(super) unlogged: AtomicU64,
    pub(super) handed_over: AtomicU64,
}

impl WorkerStats {
    pub(super) fn dropped(&self, reason: DropReason) {
        add(&self.dropped[reason as usize]);
    }

    pub(super) fn reject(&self, reason: RejectReason) {
        add(&self.rejected[reason as usize]);
    }
}

/// Adds one; a single writer needs no atomic addition.
pub(super) fn add(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// All workers' counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets dropped, by reason, in the order of [`DropReason::ALL`].
    pub dropped: Vec<(DropReason, u64)>,
    /// New flows refused, by reason, in the order of [`RejectReason::ALL`].
    pub rejected: Vec<(RejectReason, u64)>,
    /// Flows that were opened.
    pub opened: u64,
    /// Real servers stepped over because they refused or stayed silent.
    pub failovers: u64,
    /// Packets that the TUN did not take.
    pub tun_errors: u64,
    /// Flows whose access event was lost because the log was too slow.
    pub unlogged: u64,
    /// Packets that came to another worker's queue and were handed over.
    pub handed_over: u64,
    /// Flows open now.
    pub flows: usize,
    /// Bytes of flow buffers in use now, at most.
    pub memory: usize,
}

impl Counters {
    pub(super) fn sum<'a>(workers: impl Iterator<Item = &'a WorkerStats> + Clone) -> Self {
        let sum = |get: &dyn Fn(&WorkerStats) -> &AtomicU64| -> u64 {
            workers
                .clone()
                .map(|stats| get(stats).load(Ordering::Relaxed))
                .sum()
        };
        Self {
            dropped: DropReason::ALL
                .iter()
                .map(|&reason| (reason, sum(&|stats| &stats.dropped[reason as usize])))
                .collect(),
            rejected: RejectReason::ALL
                .iter()
                .map(|&reason| (reason, sum(&|stats| &stats.rejected[reason as usize])))
                .collect(),
            opened: sum(&|stats| &stats.opened),
            failovers: sum(&|stats| &stats.failovers),
            tun_errors: sum(&|stats| &stats.tun_errors),
            unlogged: sum(&|stats| &stats.unlogged),
            handed_over: sum(&|stats| &stats.handed_over),
            flows: 0,
            memory: 0,
        }
    }
}
