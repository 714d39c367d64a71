//! What became of requests to the API server, counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Bounds of the time to an answer in milliseconds: client-go's
/// (`component-base/metrics/prometheus/restclient`).
pub const BUCKETS_MS: [u64; 12] = [
    5, 25, 100, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000,
];

/// Requests, by method and outcome. Locked for a moment at each; requests are rare.
#[derive(Debug, Default)]
pub struct Requests {
    inner: Mutex<RequestCounts>,
}

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestCounts {
    /// How many there were of each method and status; no status is no answer.
    pub outcomes: BTreeMap<(String, Option<u16>), u64>,
    /// How many answers took up to each of [`BUCKETS_MS`] and longer than the bound
    /// before, and last, longer than all.
    pub durations: [u64; BUCKETS_MS.len() + 1],
    /// The time of all answers.
    pub time: Duration,
    /// Whether the last one was answered; none before the first.
    pub reachable: Option<bool>,
    /// When the last answer came.
    pub answered: Option<SystemTime>,
}

impl Requests {
    /// The counts now.
    pub fn counts(&self) -> RequestCounts {
        self.lock().clone()
    }

    pub(super) fn answered(&self, method: &str, status: u16, took: Duration, now: SystemTime) {
        let mut counts = self.lock();
        counts.count(method, Some(status));
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let at = BUCKETS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = counts.durations.get_mut(at) {
            *count += 1;
        }
        counts.time += took;
        counts.reachable = Some(true);
        counts.answered = Some(now);
    }

    pub(super) fn unanswered(&self, method: &str) {
        let mut counts = self.lock();
        counts.count(method, None);
        counts.reachable = Some(false);
    }

    fn lock(&self) -> MutexGuard<'_, RequestCounts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestCounts {
    fn count(&mut self, method: &str, status: Option<u16>) {
        *self
            .outcomes
            .entry((method.to_owned(), status))
            .or_default() += 1;
    }
}

/// One request: without an answer when dropped, unless there was one.
pub(super) struct Sent<'a> {
    pub(super) requests: &'a Requests,
    pub(super) method: String,
    pub(super) is_answered: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.requests.unanswered(&self.method);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_silence_are_told_apart() {
        let requests = Requests::default();
        assert_eq!(requests.counts(), RequestCounts::default());
        let now = SystemTime::now();
        requests.answered("GET", 200, Duration::from_millis(25), now);
        requests.answered("GET", 410, Duration::from_secs(61), now);
        let counts = requests.counts();
        assert_eq!((counts.reachable, counts.answered), (Some(true), Some(now)));
        assert_eq!((counts.durations[1], counts.durations[12]), (1, 1));
        drop(Sent {
            requests: &requests,
            method: "GET".to_owned(),
            is_answered: false,
        });
        let counts = requests.counts();
        assert_eq!(counts.reachable, Some(false));
        let outcomes: Vec<_> = counts.outcomes.into_iter().collect();
        let of = |status, count| (("GET".to_owned(), status), count);
        assert_eq!(outcomes, [of(None, 1), of(Some(200), 1), of(Some(410), 1)]);
    }
}
