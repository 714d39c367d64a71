//! When `--mode fallback` takes part: a decision from what was seen and when.
//!
//! | the kernel | for | this proxy |
//! | --- | --- | --- |
//! | carries | [`YIELD_AFTER`], twice as long after each time it did not last, at most [`YIELD_AT_MOST`] | leaves |
//! | carries nothing ([`Kernel::Absent`], [`Kernel::Empty`]) | [`TAKE_AFTER`] | takes part |
//! | has rules that nobody keeps ([`Kernel::Orphaned`]) | [`TAKE_OVER_AFTER`] | takes part |
//!
//! The first look decides at once. A kernel that carries again within
//! [`STEADY`] of the last change counts as one that does not last.
//!
//! Both at a time do no harm: what the kernel carries it takes before the routes are
//! looked at, by its local table (IPVS) or by rewriting the destination (netfilter).
//! Neither for a time loses services. So this proxy comes soon and leaves late.

use std::time::{Duration, Instant};

use super::kernel_proxy::Kernel;

/// How often one should look.
pub const LOOK: Duration = Duration::from_secs(1);

/// How long the kernel must carry nothing before this proxy takes part: two looks, so
/// that rules which are being written anew are not taken for missing ones.
pub const TAKE_AFTER: Duration = Duration::from_secs(2);

/// How long rules may be without a kube-proxy that is well: it restarts and is healthy
/// again within this, while what it left behind in the kernel goes on carrying.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

/// How long the kernel must carry before this proxy leaves: kube-proxy is well before
/// its first rules are written, which takes some seconds in a large cluster.
pub const YIELD_AFTER: Duration = Duration::from_secs(10);

/// The longest that becomes of it.
pub const YIELD_AT_MOST: Duration = Duration::from_secs(300);

/// After so long without a change, the next is taken for a new beginning.
pub const STEADY: Duration = Duration::from_secs(600);

/// Whether this proxy takes part, and how it came to that.
#[derive(Clone, Debug, Default)]
pub struct Fallback {
    state: Option<State>,
    /// How long the kernel must carry before the next leaving.
    yield_after: Duration,
}

#[derive(Clone, Copy, Debug)]
struct State {
    active: bool,
    /// The kernel as it was when that was decided.
    reason: Kernel,
    changed: Instant,
    /// Since when what is seen speaks against it, and what is seen.
    against: Option<(Kernel, Instant)>,
}

/// A decision that was not so before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether this proxy takes part.
    pub active: bool,
    /// Why.
    pub reason: Kernel,
}

impl Fallback {
    /// Takes what was seen; the answer is a decision that is new.
    pub fn seen(&mut self, kernel: Kernel, now: Instant) -> Option<Decision> {
        let active = !kernel.carries();
        let Some(state) = &mut self.state else {
            self.yield_after = YIELD_AFTER;
            return Some(self.decide(active, kernel, now));
        };
        if active == state.active {
            state.against = None;
            return None;
        }
        let since = match state.against {
            // Another way of not carrying has a time of its own.
            Some((before, since)) if before == kernel || kernel.carries() => since,
            Some(_) | None => {
                state.against = Some((kernel, now));
                now
            }
        };
        let wait = match kernel {
            Kernel::CarriesByIpvs | Kernel::CarriesByNetfilter => self.yield_after,
            Kernel::Absent | Kernel::Empty => TAKE_AFTER,
            Kernel::Orphaned => TAKE_OVER_AFTER,
        };
        if now.saturating_duration_since(since) < wait {
            return None;
        }
        let quick = now.saturating_duration_since(state.changed) < STEADY;
        if active {
            // It did not last.
            self.yield_after = if quick {
                (self.yield_after * 2).min(YIELD_AT_MOST)
            } else {
                YIELD_AFTER
            };
        }
        Some(self.decide(active, kernel, now))
    }

    fn decide(&mut self, active: bool, reason: Kernel, now: Instant) -> Decision {
        self.state = Some(State {
            active,
            reason,
            changed: now,
            against: None,
        });
        Decision { active, reason }
    }

    /// The decision that holds; `None` before the first look.
    pub fn decision(&self) -> Option<Decision> {
        self.state
            .map(|State { active, reason, .. }| Decision { active, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kernel::{Absent, CarriesByIpvs, CarriesByNetfilter, Empty, Orphaned};

    /// What is seen from which second on, and the decisions with their seconds, looked
    /// at each second up to `until`.
    fn decisions(seen: &[(u64, Kernel)], until: u64) -> Vec<(u64, bool)> {
        let start = Instant::now();
        let mut fallback = Fallback::default();
        let mut found = Vec::new();
        for second in 0..=until {
            let kernel = seen.iter().rfind(|(from, _)| *from <= second).unwrap().1;
            let now = start + Duration::from_secs(second);
            if let Some(decision) = fallback.seen(kernel, now) {
                assert_eq!(decision.reason, kernel);
                assert_eq!(fallback.decision(), Some(decision));
                found.push((second, decision.active));
            }
        }
        found
    }

    #[test]
    fn each_change_waits_its_time() {
        for (name, seen, expected) in [
            ("nothing there", &[(0, Absent)][..], &[(0, true)][..]),
            (
                "carried from the start",
                &[(0, CarriesByIpvs)],
                &[(0, false)],
            ),
            (
                "it comes",
                &[(0, Absent), (5, CarriesByIpvs)],
                &[(0, true), (15, false)],
            ),
            (
                "it comes and goes too soon",
                &[(0, Absent), (5, CarriesByIpvs), (14, Absent)],
                &[(0, true)],
            ),
            (
                "it goes",
                &[(0, CarriesByNetfilter), (5, Absent)],
                &[(0, false), (7, true)],
            ),
            (
                "rules are written anew",
                &[(0, CarriesByNetfilter), (5, Empty), (6, CarriesByNetfilter)],
                &[(0, false)],
            ),
            (
                "kube-proxy restarts",
                &[(0, CarriesByIpvs), (5, Orphaned), (30, CarriesByIpvs)],
                &[(0, false)],
            ),
            (
                "kube-proxy ends and leaves its rules",
                &[(0, CarriesByIpvs), (5, Orphaned)],
                &[(0, false), (35, true)],
            ),
            (
                "and then they go too",
                &[(0, CarriesByIpvs), (5, Orphaned), (20, Absent)],
                &[(0, false), (22, true)],
            ),
            (
                "one way of carrying follows another",
                &[(0, Absent), (5, CarriesByNetfilter), (10, CarriesByIpvs)],
                &[(0, true), (15, false)],
            ),
        ] {
            assert_eq!(decisions(seen, 100), expected, "{name}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_last_is_believed_later_each_time() {
        // Carries for 40 s, then does not for 20 s, and so on.
        let seen: Vec<(u64, Kernel)> = (0..20)
            .map(|turn| {
                let kernel = if turn % 2 == 0 { Absent } else { CarriesByIpvs };
                (turn / 2 * 60 + if turn % 2 == 0 { 0 } else { 20 }, kernel)
            })
            .collect();
        assert_eq!(
            decisions(&seen, 590),
            [
                (0, true),
                (30, false),
                (62, true),
                (100, false),
                (122, true),
                // 40 s and more: it never lasts so long.
            ]
        );
    }

    #[test]
    fn after_a_steady_time_it_is_believed_as_at_first() {
        let seen = [
            (0, Absent),
            (10, CarriesByIpvs),
            (40, Absent),
            (50, CarriesByIpvs),
            (800, Absent),
            (810, CarriesByIpvs),
        ];
        assert_eq!(
            decisions(&seen, 900),
            [
                (0, true),
                (20, false),
                (42, true),
                (70, false),
                (802, true),
                (820, false)
            ]
        );
    }
}
