//! Counters: one set a worker, added up when somebody asks.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::dial_failure::DialFailure;
use super::ending::Ending;
use super::histogram::{DIAL_US, DURATION_US, Histogram, WorkerHistogram};
use crate::ipvs::{DropReason, Protocol, RejectReason};

/// One worker's counters. Only that worker writes; anyone reads. Aligned to two cache
/// lines, which CPUs fetch together, so that no two workers write to the same.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerStats {
    dropped: [AtomicU64; DropReason::ALL.len()],
    rejected: [AtomicU64; RejectReason::ALL.len()],
    ended: [AtomicU64; Ending::ALL.len()],
    dial_failures: [AtomicU64; DialFailure::ALL.len()],
    opened: AtomicU64,
    opened_udp: AtomicU64,
    dial_time: WorkerHistogram,
    duration: WorkerHistogram,
    busy_ns: AtomicU64,
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

    pub(crate) fn opened(&self, protocol: Protocol) {
        add(&self.opened);
        if protocol == Protocol::Udp {
            add(&self.opened_udp);
        }
    }

    pub(crate) fn attempt_failed(&self, error: &io::Error) {
        add(&self.dial_failures[DialFailure::of(error) as usize]);
    }

    /// A real server has accepted a connection so long after the client asked.
    pub(crate) fn dialed(&self, time: Duration) {
        self.dial_time.observe(&DIAL_US, time);
    }

    pub(crate) fn ended(&self, ending: Ending, duration: Duration) {
        add(&self.ended[ending as usize]);
        self.duration.observe(&DURATION_US, duration);
    }

    /// The worker was at work for so long.
    pub(crate) fn busy(&self, time: Duration) {
        let more = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let sum = self.busy_ns.load(Ordering::Relaxed).wrapping_add(more);
        self.busy_ns.store(sum, Ordering::Relaxed);
    }
}

/// Adds one; a single writer needs no atomic addition.
pub(crate) fn add(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// All workers' counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets dropped, by reason, in the order of [`DropReason::ALL`].
    pub dropped: Vec<(DropReason, u64)>,
    /// New flows refused, by reason, in the order of [`RejectReason::ALL`].
    pub rejected: Vec<(RejectReason, u64)>,
    /// Flows that ended, by how, in the order of [`Ending::ALL`].
    pub ended: Vec<(Ending, u64)>,
    /// Attempts to connect to a real server that failed, by why, in the order of
    /// [`DialFailure::ALL`].
    pub dial_failures: Vec<(DialFailure, u64)>,
    /// Flows that were opened.
    pub opened: u64,
    /// UDP flows among them.
    pub opened_udp: u64,
    /// From a client's first packet to the accepted connection, for TCP.
    pub dial_time: Histogram,
    /// From first packet to end, for flows that ended.
    pub duration: Histogram,
    /// How long each worker was at work, in the order of their numbers.
    pub busy: Vec<Duration>,
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

impl Default for Counters {
    fn default() -> Self {
        Self::sum(std::iter::empty::<&WorkerStats>())
    }
}

impl Counters {
    /// Takes in the counters of other workers, which share the flows and the memory
    /// that these count. The others' [`busy`](Self::busy) is left out, since they
    /// have numbers of their own.
    pub fn include(&mut self, other: &Self) {
        include(&mut self.dropped, &other.dropped);
        include(&mut self.rejected, &other.rejected);
        include(&mut self.ended, &other.ended);
        include(&mut self.dial_failures, &other.dial_failures);
        self.opened += other.opened;
        self.opened_udp += other.opened_udp;
        self.dial_time.include(&other.dial_time);
        self.duration.include(&other.duration);
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
        let histogram = |bounds, get: &dyn Fn(&WorkerStats) -> &WorkerHistogram| {
            let mut histogram = Histogram::empty(bounds);
            workers.clone().for_each(|stats| histogram.add(get(stats)));
            histogram
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
            ended: Ending::ALL
                .iter()
                .map(|&ending| (ending, sum(&|stats| &stats.ended[ending as usize])))
                .collect(),
            dial_failures: DialFailure::ALL
                .iter()
                .map(|&why| (why, sum(&|stats| &stats.dial_failures[why as usize])))
                .collect(),
            opened: sum(&|stats| &stats.opened),
            opened_udp: sum(&|stats| &stats.opened_udp),
            dial_time: histogram(&DIAL_US, &|stats| &stats.dial_time),
            duration: histogram(&DURATION_US, &|stats| &stats.duration),
            busy: workers
                .clone()
                .map(|stats| Duration::from_nanos(stats.busy_ns.load(Ordering::Relaxed)))
                .collect(),
            failovers: sum(&|stats| &stats.failovers),
            tun_errors: sum(&|stats| &stats.tun_errors),
            unlogged: sum(&|stats| &stats.unlogged),
            handed_over: sum(&|stats| &stats.handed_over),
            flows: 0,
            memory: 0,
        }
    }
}

/// Both lists are in the order of all reasons.
fn include<R>(counts: &mut [(R, u64)], others: &[(R, u64)]) {
    for ((_, count), (_, more)) in counts.iter_mut().zip(others) {
        *count += more;
    }
}
