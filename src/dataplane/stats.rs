//! Counters: one set a worker, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ipvs::{DropReason, RejectReason};

/// One worker's counters. Only that worker writes; anyone reads.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    dropped: [AtomicU64; DropReason::ALL.len()],
    rejected: [AtomicU64; RejectReason::ALL.len()],
    pub(crate) opened: AtomicU64,
    pub(crate) failovers: AtomicU64,
    pub(crate) tun_errors: AtomicU64,
    pub(crate) unlogged: AtomicU64,
    pub(crate) handed_over: AtomicU64,
}

impl WorkerStats {
    pub(crate) fn dropped(&self, reason: DropReason) {
        add(&self.dropped[reason as usize]);
    }

    pub(crate) fn reject(&self, reason: RejectReason) {
        add(&self.rejected[reason as usize]);
    }
}

/// Adds one; a single writer needs no atomic addition.
pub(crate) fn add(counter: &AtomicU64) {
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
    /// Takes in the counters of other workers, which share the flows and the memory
    /// that these count.
    pub fn include(&mut self, other: &Self) {
        for ((_, count), (_, more)) in self.dropped.iter_mut().zip(&other.dropped) {
            *count += more;
        }
        for ((_, count), (_, more)) in self.rejected.iter_mut().zip(&other.rejected) {
            *count += more;
        }
        self.opened += other.opened;
        self.failovers += other.failovers;
        self.tun_errors += other.tun_errors;
        self.unlogged += other.unlogged;
        self.handed_over += other.handed_over;
    }

    pub(crate) fn sum<'a>(workers: impl Iterator<Item = &'a WorkerStats> + Clone) -> Self {
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
