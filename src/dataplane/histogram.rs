//! Histograms with fixed bounds: one a worker, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Number of bounds of every histogram here.
const BOUNDS: usize = 15;

/// Bounds of the time to connect to a real server, in microseconds: from a node of
/// the same rack to a real server that needed a repeated SYN, each step about double.
pub(crate) const DIAL_US: [u64; BOUNDS] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000,
];

/// Bounds of a flow's duration, in microseconds: 1 ms to one day.
pub(crate) const DURATION_US: [u64; BOUNDS] = [
    1_000,
    10_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    14_400_000_000,
    86_400_000_000,
];

/// One worker's histogram. Only that worker writes; anyone reads.
#[derive(Debug, Default)]
pub(crate) struct WorkerHistogram {
    /// Those up to the bound of the same position and above the one before; the
    /// last is for those above all.
    counts: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

impl WorkerHistogram {
    /// Takes one value. A single writer needs no atomic addition.
    pub(crate) fn observe(&self, bounds: &[u64; BOUNDS], value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let at = bounds.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(at) {
            add_to(count, 1);
        }
        add_to(&self.sum_us, us);
    }
}

fn add_to(counter: &AtomicU64, more: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(sum, Ordering::Relaxed);
}

/// The histograms of several workers at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Upper bounds in microseconds; a value that equals one belongs to it.
    pub bounds_us: &'static [u64; BOUNDS],
    /// How many there were of each bound and above the one before, and last of those
    /// above all.
    pub counts: [u64; BOUNDS + 1],
    /// All values together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Without a value.
    pub fn empty(bounds_us: &'static [u64; BOUNDS]) -> Self {
        Self {
            bounds_us,
            counts: [0; BOUNDS + 1],
            sum_us: 0,
        }
    }

    /// Takes in another one of the same bounds.
    pub fn include(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn add(&mut self, worker: &WorkerHistogram) {
        for (count, more) in self.counts.iter_mut().zip(&worker.counts) {
            *count += more.load(Ordering::Relaxed);
        }
        let more = worker.sum_us.load(Ordering::Relaxed);
        self.sum_us = self.sum_us.wrapping_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_workers_add_up() {
        let (one, two) = (WorkerHistogram::default(), WorkerHistogram::default());
        for us in [0, 100, 101, 5_000_000, 5_000_001] {
            one.observe(&DIAL_US, Duration::from_micros(us));
        }
        two.observe(&DIAL_US, Duration::from_micros(100));
        let mut sum = Histogram::empty(&DIAL_US);
        sum.add(&one);
        sum.add(&two);
        assert_eq!(sum.counts[..3], [3, 1, 0]);
        assert_eq!(sum.counts[14..], [1, 1]);
        assert_eq!((sum.count(), sum.sum_us), (6, 10_000_302));
        let mut twice = sum.clone();
        twice.include(&sum);
        assert_eq!((twice.count(), twice.counts[0]), (12, 6));
    }

    #[test]
    fn bounds_rise() {
        for bounds in [DIAL_US, DURATION_US] {
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
