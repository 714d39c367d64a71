//! How long changes take from the cluster to the table: kube-proxy's
//! `network_programming_duration_seconds`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Number of bounds.
const BOUNDS: usize = 1 + 1 + 59 + 12 + 7;

/// Upper bounds of the buckets in milliseconds: 0.25 s, 0.5 s, 1 to 59 s by 1,
/// 60 to 115 s by 5, 120 to 300 s by 30 (kubernetes `pkg/proxy/metrics`,
/// `NetworkProgrammingLatency`).
pub(super) const BUCKETS_MS: [u64; BOUNDS] = buckets();

const fn buckets() -> [u64; BOUNDS] {
    let mut all = [0; BOUNDS];
    all[0] = 250;
    all[1] = 500;
    let mut at = 2;
    while at < BOUNDS {
        let last = all[at - 1];
        all[at] = if last < 1_000 {
            1_000
        } else if last < 60_000 {
            last + 1_000
        } else if last < 120_000 {
            last + 5_000
        } else {
            last + 30_000
        };
        at += 1;
    }
    all
}

/// A histogram of programming latencies. Written by the control loop, read by
/// whoever shows it.
#[derive(Debug)]
pub(super) struct ProgrammingLatency {
    /// For each bound the latencies up to it and above the one before; the last
    /// is for those above all.
    counts: [AtomicU64; BOUNDS + 1],
    sum_ms: AtomicU64,
}

/// The histogram at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// How many latencies were up to the bound of the same position in
    /// [`BUCKETS_MS`].
    pub(super) cumulative: Vec<u64>,
    /// How many there were.
    pub(super) count: u64,
    /// All of them together, in milliseconds each.
    pub(super) sum: Duration,
}

impl Default for ProgrammingLatency {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BOUNDS + 1],
            sum_ms: AtomicU64::new(0),
        }
    }
}

impl ProgrammingLatency {
    /// Takes one latency.
    pub(super) fn observe(&self, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let at = BUCKETS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// The histogram now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(BOUNDS);
        for bucket in &self.counts {
            count += bucket.load(Ordering::Relaxed);
            cumulative.push(count);
        }
        cumulative.truncate(BOUNDS);
        Snapshot {
            cumulative,
            count,
            sum: Duration::from_millis(self.sum_ms.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_kube_proxys() {
        let seconds: Vec<f64> = BUCKETS_MS
            .iter()
            .map(|ms| Duration::from_millis(*ms).as_secs_f64())
            .collect();
        assert_eq!(seconds[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(seconds[60..64], [59.0, 60.0, 65.0, 70.0]);
        assert_eq!(
            seconds[71..],
            [
                110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0
            ]
        );
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let latency = ProgrammingLatency::default();
        for ms in [0, 250, 251, 500, 1_000, 300_000, 300_001] {
            latency.observe(Duration::from_millis(ms));
        }
        let Snapshot {
            cumulative,
            count,
            sum,
        } = latency.snapshot();
        assert_eq!(cumulative[..4], [2, 4, 5, 5]);
        assert_eq!(cumulative.last(), Some(&6));
        assert_eq!(count, 7);
        assert_eq!(sum, Duration::from_millis(602_002));
    }
}
