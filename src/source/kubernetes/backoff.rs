//! How long to wait before the API server is asked again.

use std::time::Duration;

/// Numbers that decide how patient the source is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time for the head of an answer, and between two parts of a list. 60 s: the
    /// API server gives up a request of its own after that
    /// (`--request-timeout`).
    pub answer: Duration,
    /// Silence after which a watch counts as dead. 3 min: bookmarks come once a
    /// minute (`defaultBookmarkFrequency` in the API server's cacher), so three
    /// of them have failed to come. A server that sends none costs one short
    /// request each time.
    pub silence: Duration,
    /// Least time a watch is asked for; each asks for up to twice that, so that
    /// not all end together. 5 min, as client-go does (`minWatchTimeout`).
    pub watch: Duration,
    /// A watch that lived this long was a good one: the count of failures starts
    /// again.
    pub steady: Duration,
    /// Wait after the first failure; it doubles with each further one. 500 ms.
    pub first: Duration,
    /// Longest wait while the server answers with errors: it is overloaded or
    /// denies us. 30 s, as client-go's reflector.
    pub most: Duration,
    /// Longest wait while the server cannot be reached. 10 s: an attempt costs it
    /// nothing, and the first after its return should come soon.
    pub most_away: Duration,
    /// Longest Retry-After that is obeyed.
    pub most_asked: Duration,
    /// Longest wait before something optional that was forbidden or missing is tried
    /// again; that begins with `first` and doubles too. As a rule only a person changes
    /// it, but an API server that has just started denies what it allows until it has
    /// read its roles, for some seconds (seen with 1.36 under RBAC).
    pub unavailable: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            silence: Duration::from_secs(180),
            watch: Duration::from_secs(300),
            steady: Duration::from_secs(30),
            first: Duration::from_millis(500),
            most: Duration::from_secs(30),
            most_away: Duration::from_secs(10),
            most_asked: Duration::from_secs(300),
            unavailable: Duration::from_secs(300),
        }
    }
}

/// What the next attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    No,
    /// The time that goes with so many failures in a row, or longer if the server
    /// said so (Retry-After).
    Backoff {
        /// At least one.
        failures: u32,
        /// The server cannot be reached.
        away: bool,
        /// What the server asked for.
        asked: Option<Duration>,
    },
    /// Until the server, or a person, may have changed something.
    Unavailable {
        /// How often in a row it has failed, at least once.
        failures: u32,
    },
}

impl Timing {
    /// The wait in time. `random`, from 0 to 1, keeps many nodes that failed
    /// together from coming back together: it decides about half of a wait of our
    /// own, and adds up to a tenth to one that the server asked for.
    pub(super) fn delay(&self, wait: Wait, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        match wait {
            Wait::No => Duration::ZERO,
            Wait::Backoff {
                failures,
                away,
                asked,
            } => {
                let most = if away { self.most_away } else { self.most };
                let ours = self.doubled(failures, most, random);
                let asked = asked.unwrap_or_default().min(self.most_asked);
                ours.max(asked.mul_f64(1.0 + random / 10.0))
            }
            Wait::Unavailable { failures } => self.doubled(failures, self.unavailable, random),
        }
    }

    fn doubled(&self, failures: u32, most: Duration, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(most);
        full.mul_f64(0.5 + random / 2.0)
    }

    /// How long a watch is asked for.
    pub(super) fn watch_for(&self, random: f64) -> Duration {
        self.watch.mul_f64(1.0 + random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(failures: u32, away: bool, asked: Option<u64>) -> Wait {
        Wait::Backoff {
            failures,
            away,
            asked: asked.map(Duration::from_secs),
        }
    }

    fn milliseconds(wait: Wait, random: f64) -> u128 {
        Timing::default().delay(wait, random).as_millis()
    }

    #[test]
    fn waits_double_up_to_a_bound() {
        let full: Vec<_> = (1..10)
            .map(|n| milliseconds(backoff(n, false, None), 1.0))
            .collect();
        let expected = [
            500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000,
        ];
        assert_eq!(full, expected);
        assert_eq!(milliseconds(backoff(u32::MAX, false, None), 1.0), 30_000);
        assert_eq!(milliseconds(backoff(u32::MAX, true, None), 1.0), 10_000);
        assert_eq!(milliseconds(Wait::No, 1.0), 0);
    }

    #[test]
    fn what_is_denied_is_asked_for_soon_and_then_seldom() {
        let denied = |failures| milliseconds(Wait::Unavailable { failures }, 1.0);
        let full: Vec<_> = (1..12).map(denied).collect();
        let expected = [
            500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000,
        ];
        assert_eq!(full, expected);
    }

    #[test]
    fn chance_decides_about_half() {
        assert_eq!(milliseconds(backoff(3, false, None), 0.0), 1_000);
        assert_eq!(milliseconds(backoff(3, false, None), 0.5), 1_500);
        assert_eq!(milliseconds(backoff(3, false, None), 7.0), 2_000);
    }

    #[test]
    fn what_the_server_asks_for_is_obeyed_within_reason() {
        assert_eq!(milliseconds(backoff(1, false, Some(7)), 0.0), 7_000);
        assert_eq!(milliseconds(backoff(1, false, Some(7)), 1.0), 7_700);
        assert_eq!(milliseconds(backoff(9, false, Some(1)), 0.0), 15_000);
        assert_eq!(milliseconds(backoff(1, false, Some(86_400)), 0.0), 300_000);
    }
}
