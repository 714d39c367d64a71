//! What the control loop does, counted for kube-proxy's `sync_proxy_rules` metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::service::object::{Event, ObjectKind};

/// Bounds of the time to program a batch, in microseconds: 1 ms, doubled 14 times
/// (kubernetes `pkg/proxy/metrics`, `SyncProxyRulesLatency`).
const BUCKETS_US: [u64; 15] = {
    let mut all = [1_000; 15];
    let mut at = 1;
    while at < all.len() {
        all[at] = all[at - 1] * 2;
        at += 1;
    }
    all
};

/// Counts of the control loop, which alone writes; locked for a moment a batch.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    inner: Mutex<SyncCounts>,
}

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SyncCounts {
    /// Batches that took up to each of [`BUCKETS_US`] and longer than the bound before,
    /// and last, longer than all.
    counts: [u64; BUCKETS_US.len() + 1],
    time: Duration,
    pub(super) last: Option<SystemTime>,
    pub(super) queued: Option<SystemTime>,
    pub(super) pending: Changes,
    pub(super) total: Changes,
}

/// Objects that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) services: u64,
    pub(super) endpoint_slices: u64,
}

impl Changes {
    /// Those among the events.
    pub(super) fn of(events: &[Event]) -> Self {
        let mut changes = Self::default();
        for event in events {
            let kind = match event {
                Event::Apply { object, .. } => object.kind(),
                Event::Delete(key) => key.kind,
            };
            match kind {
                ObjectKind::Service => changes.services += 1,
                ObjectKind::EndpointSlice => changes.endpoint_slices += 1,
                ObjectKind::Node | ObjectKind::Namespace => {}
            }
        }
        changes
    }
}

impl Syncs {
    /// A batch has come and is going to be programmed.
    pub(super) fn queued(&self, changes: Changes, now: SystemTime) {
        let mut counts = self.lock();
        counts.queued = Some(now);
        counts.pending = changes;
        counts.total.services += changes.services;
        counts.total.endpoint_slices += changes.endpoint_slices;
    }

    /// It is programmed, after so long.
    pub(super) fn programmed(&self, took: Duration, now: SystemTime) {
        let mut counts = self.lock();
        counts.pending = Changes::default();
        counts.last = Some(now);
        counts.time += took;
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = counts.counts.get_mut(at) {
            *count += 1;
        }
    }

    pub(super) fn counts(&self) -> SyncCounts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, SyncCounts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SyncCounts {
    /// Bounds in seconds with their counts, the last one infinite.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BUCKETS_US.iter().map(|us| *us as f64 / 1e6);
        bounds.chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// The time of all batches.
    pub(super) fn time(&self) -> Duration {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_kube_proxys() {
        let counts = SyncCounts::default();
        let bounds: Vec<f64> = counts.buckets().iter().map(|(bound, _)| *bound).collect();
        assert_eq!(bounds[..3], [0.001, 0.002, 0.004]);
        assert_eq!(bounds[14..], [16.384, f64::INFINITY]);
    }

    #[test]
    fn changes_are_pending_until_they_are_programmed() {
        let (syncs, now) = (Syncs::default(), SystemTime::now());
        let changes = Changes {
            services: 1,
            endpoint_slices: 3,
        };
        syncs.queued(changes, now);
        let counts = syncs.counts();
        assert_eq!((counts.pending, counts.total), (changes, changes));
        assert_eq!((counts.queued, counts.last), (Some(now), None));
        syncs.programmed(Duration::from_millis(1), now);
        let counts = syncs.counts();
        assert_eq!(
            (counts.pending, counts.last),
            (Changes::default(), Some(now))
        );
        assert_eq!(
            (counts.buckets()[0].1, counts.time()),
            (1, Duration::from_millis(1))
        );
    }
}
