//! The clock that smoltcp sees.

use std::time::{Duration, Instant};

/// How many times faster than real time smoltcp's clock runs.
///
/// smoltcp 0.14 takes RFC 6298's minimum and initial retransmission timeout of
/// 1 s as constants. On paths of tens of microseconds that stalls a flow for a
/// second after one lost burst. A clock five times as fast makes it 200 ms, which
/// is Linux's own minimum (`TCP_RTO_MIN`, include/net/tcp.h).
pub const SPEED: u32 = 5;

/// Translates between the machine's monotonic clock and smoltcp's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    /// A clock that starts at `base`; no later call may give an earlier time.
    pub fn new(base: Instant) -> Self {
        Self { base }
    }

    /// smoltcp's time at `now`.
    #[inline]
    pub fn to_stack(self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.base);
        // One second more than zero: smoltcp starts its challenge-ACK limiter at 0 s.
        smoltcp::time::Instant::from_micros(
            elapsed.as_micros() as i64 * i64::from(SPEED) + 1_000_000,
        )
    }

    /// The machine's time at smoltcp's time `at`, rounded up so that a timer that
    /// fires then is due.
    #[inline]
    pub fn from_stack(self, at: smoltcp::time::Instant) -> Instant {
        let micros = (at.total_micros() - 1_000_000).max(0) as u64;
        self.base + Duration::from_micros(micros.div_ceil(u64::from(SPEED)))
    }

    /// A span of real time as a span of smoltcp's time.
    pub fn span(real: Duration) -> smoltcp::time::Duration {
        smoltcp::time::Duration::from_micros(real.as_micros() as u64 * u64::from(SPEED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_second_is_five_of_the_stack_and_back() {
        let base = Instant::now();
        let clock = Clock::new(base);
        let later = base + Duration::from_secs(1);
        let span = clock.to_stack(later) - clock.to_stack(base);
        assert_eq!(span.total_millis(), 5_000);
        assert_eq!(clock.from_stack(clock.to_stack(later)), later);
    }

    #[test]
    fn a_timer_is_due_when_it_fires() {
        let base = Instant::now();
        let clock = Clock::new(base);
        for micros in 0..20 {
            let at = clock.to_stack(base) + smoltcp::time::Duration::from_micros(micros);
            assert!(clock.to_stack(clock.from_stack(at)) >= at);
        }
    }
}
