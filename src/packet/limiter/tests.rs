use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::time::Duration;

use OriginatedError::{Icmp, Rst};

fn client(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a01_0000 + number))
}

fn small() -> ErrorLimits {
    ErrorLimits {
        icmp: Rate {
            per_second: 1,
            burst: 2,
        },
        rst: Rate {
            per_second: 10,
            burst: 3,
        },
        overall: Rate {
            per_second: 20,
            burst: 8,
        },
        clients: 4,
    }
}

/// How many of `count` are allowed at once.
fn allowed(
    limiter: &mut ErrorLimiter,
    now: Instant,
    client: IpAddr,
    kind: OriginatedError,
    count: usize,
) -> usize {
    (0..count)
        .filter(|_| limiter.allow(now, client, kind))
        .count()
}

#[test]
fn a_client_gets_its_burst_and_then_its_rate() {
    let mut limiter = ErrorLimiter::new(ErrorLimits::default());
    let start = Instant::now();
    assert_eq!(allowed(&mut limiter, start, client(1), Icmp, 1_000), 100);
    assert_eq!(allowed(&mut limiter, start, client(1), Rst, 5_000), 1_000);
    let later = start + Duration::from_millis(100);
    assert_eq!(allowed(&mut limiter, later, client(1), Icmp, 1_000), 10);
    assert_eq!(allowed(&mut limiter, later, client(1), Rst, 5_000), 100);
    // A second client does not suffer from the first.
    assert_eq!(allowed(&mut limiter, later, client(2), Icmp, 1_000), 100);
}

#[test]
fn all_clients_together_are_bounded() {
    let mut limiter = ErrorLimiter::new(ErrorLimits::default());
    let start = Instant::now();
    let sum: usize = (0..20)
        .map(|number| allowed(&mut limiter, start, client(number), Rst, 2_000))
        .sum();
    assert_eq!(sum, 10_000);
    assert!(!limiter.allow(start, client(99), Icmp));
    // What was refused used nothing of the client's own.
    let later = start + Duration::from_secs(1);
    assert_eq!(allowed(&mut limiter, later, client(99), Icmp, 1_000), 100);
}

#[test]
fn the_stalest_client_is_forgotten() {
    let mut limiter = ErrorLimiter::new(small());
    let mut now = Instant::now();
    for number in [1, 2, 3, 4, 1] {
        assert!(limiter.allow(now, client(number), Icmp));
    }
    // The fifth takes the place of 2, since 1 was heard of again.
    now += Duration::from_millis(200);
    assert!(limiter.allow(now, client(5), Icmp));
    assert_eq!(limiter.clients(), 4);
    assert!(!limiter.allow(now, client(1), Icmp), "1 is remembered");
    assert_eq!(
        allowed(&mut limiter, now, client(2), Icmp, 5),
        2,
        "2 starts anew"
    );
}

#[test]
fn a_clock_that_runs_backwards_gives_nothing() {
    let mut limiter = ErrorLimiter::new(small());
    let start = Instant::now() + Duration::from_secs(60);
    assert_eq!(allowed(&mut limiter, start, client(1), Icmp, 5), 2);
    let earlier = start - Duration::from_secs(30);
    assert_eq!(allowed(&mut limiter, earlier, client(1), Icmp, 5), 0);
    assert_eq!(allowed(&mut limiter, start, client(1), Icmp, 5), 0);
}

#[test]
fn a_burst_of_zero_forbids() {
    let limits = ErrorLimits {
        icmp: Rate {
            per_second: 5,
            burst: 0,
        },
        ..small()
    };
    let mut limiter = ErrorLimiter::new(limits);
    let start = Instant::now();
    assert!(!limiter.allow(start, client(1), Icmp));
    assert!(!limiter.allow(start + Duration::from_secs(9), client(1), Icmp));
    assert!(limiter.allow(start, client(1), Rst));
}

proptest! {
    /// Against buckets that are replayed from the start for every question.
    #[test]
    fn keeps_to_the_rates(
        steps in prop::collection::vec((0u64..400, 0u32..3, prop::bool::ANY), 1..200)
    ) {
        let limits = small();
        let mut limiter = ErrorLimiter::new(limits);
        let start = Instant::now();
        let mut at = 0;
        let mut model = Model::default();
        for (wait, number, rst) in steps {
            at += wait;
            let kind = if rst { Rst } else { Icmp };
            let now = start + Duration::from_millis(at);
            let expected = model.allow(at, number, rst, limits);
            prop_assert_eq!(limiter.allow(now, client(number), kind), expected, "at {} ms", at);
        }
    }
}

/// Remembers everything that was sent and replays each bucket from the start, in thousandths of
/// a token.
#[derive(Default)]
struct Model {
    sent: Vec<(u64, u32, bool)>,
}

impl Model {
    fn allow(&mut self, now: u64, client: u32, rst: bool, limits: ErrorLimits) -> bool {
        let own = if rst { limits.rst } else { limits.icmp };
        let may = self.level(now, limits.overall, |_, _| true) >= 1_000
            && self.level(now, own, |who, what| who == client && what == rst) >= 1_000;
        if may {
            self.sent.push((now, client, rst));
        }
        may
    }

    fn level(&self, now: u64, rate: Rate, counts: impl Fn(u32, bool) -> bool) -> u64 {
        let full = u64::from(rate.burst) * 1_000;
        let (mut level, mut filled) = (full, 0);
        for &(at, _, _) in self
            .sent
            .iter()
            .filter(|&&(_, who, what)| counts(who, what))
        {
            level = full.min(level + (at - filled) * u64::from(rate.per_second)) - 1_000;
            filled = at;
        }
        full.min(level + (now - filled) * u64::from(rate.per_second))
    }
}
