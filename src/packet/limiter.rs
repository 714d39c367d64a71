//! How many errors and resets we originate.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

/// A token is counted in billionths, so that a rate per second adds whole numbers per
/// nanosecond.
const TOKEN: u64 = 1_000_000_000;

/// A token bucket's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages a second in the long run; 0 forbids them all once `burst` is used up.
    pub per_second: u32,
    /// Messages at once after a pause; 0 forbids them all.
    pub burst: u32,
}

/// Bounds of an [`ErrorLimiter`].
///
/// Linux allows one ICMP error a second to a destination (`net.ipv4.icmp_ratelimit` 1000 ms,
/// six at once: XRLIM_BURST_FACTOR in net/ipv4/inetpeer.c) and 1,000 a second to all
/// (`net.ipv4.icmp_msgs_per_sec`, 50 at once), and does not limit resets for closed ports.
/// There an error is a hint; here it is the contract that a client with nobody to talk to is
/// refused and need not wait for a timeout. One client is a node or a pod with many processes,
/// or a resolver that asks a service without endpoints hundreds of times a second. So a client
/// gets much more, and resets get ten times the share of ICMP, as each ends a `connect` that
/// would otherwise be repeated for two minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorLimits {
    /// ICMP errors to one client. 100 a second, 100 at once.
    pub icmp: Rate,
    /// Resets to one client. 1,000 a second, 1,000 at once: a port scan by one pod costs at most
    /// a few milliseconds of a worker's second.
    pub rst: Rate,
    /// Both, to all clients together. 10,000 a second, 10,000 at once: with a few microseconds
    /// for each write, a flood from forged sources takes less than a tenth of a worker.
    pub overall: Rate,
    /// Clients remembered at a time. 4,096, under 1 MiB; beyond that the one not heard of for
    /// longest is forgotten, and starts with full buckets when it comes back.
    pub clients: usize,
}

impl Default for ErrorLimits {
    fn default() -> Self {
        Self {
            icmp: Rate {
                per_second: 100,
                burst: 100,
            },
            rst: Rate {
                per_second: 1_000,
                burst: 1_000,
            },
            overall: Rate {
                per_second: 10_000,
                burst: 10_000,
            },
            clients: 4_096,
        }
    }
}

/// A message that we would originate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OriginatedError {
    /// A TCP reset for a segment that no connection wants.
    Rst,
    /// An ICMP or ICMPv6 error.
    Icmp,
}

/// Token buckets per client and for all of them. Each worker owns one, so that the bounds hold
/// per worker.
#[derive(Debug)]
pub struct ErrorLimiter {
    limits: ErrorLimits,
    overall: Option<Bucket>,
    clients: HashMap<IpAddr, Client>,
    /// Clients by when they were last heard of, counted in calls.
    by_use: BTreeMap<u64, IpAddr>,
    calls: u64,
}

#[derive(Debug)]
struct Client {
    rst: Bucket,
    icmp: Bucket,
    last_use: u64,
}

impl ErrorLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: ErrorLimits) -> Self {
        Self {
            limits,
            overall: None,
            clients: HashMap::new(),
            by_use: BTreeMap::new(),
            calls: 0,
        }
    }

    /// Whether a message of `kind` may be sent to `client` at `now`; if so, it is counted as
    /// sent. What is refused uses nothing up.
    pub fn allow(&mut self, now: Instant, client: IpAddr, kind: OriginatedError) -> bool {
        let limits = self.limits;
        let overall = self
            .overall
            .get_or_insert_with(|| Bucket::full(limits.overall, now));
        overall.fill(limits.overall, now);
        let may = overall.has_token();

        self.calls += 1;
        if let Some(known) = self.clients.get_mut(&client) {
            self.by_use.remove(&known.last_use);
            known.last_use = self.calls;
        } else if self.clients.len() >= limits.clients.max(1)
            && let Some((_, stalest)) = self.by_use.pop_first()
        {
            self.clients.remove(&stalest);
        }
        self.by_use.insert(self.calls, client);
        let known = self.clients.entry(client).or_insert_with(|| Client {
            rst: Bucket::full(limits.rst, now),
            icmp: Bucket::full(limits.icmp, now),
            last_use: self.calls,
        });
        let (bucket, rate) = match kind {
            OriginatedError::Rst => (&mut known.rst, limits.rst),
            OriginatedError::Icmp => (&mut known.icmp, limits.icmp),
        };
        bucket.fill(rate, now);
        let may = may && bucket.has_token();
        if may {
            bucket.take();
            overall.take();
        }
        may
    }

    /// Clients remembered.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }
}

/// Tokens in billionths, as of `filled`.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: u64::from(rate.burst) * TOKEN,
            filled: now,
        }
    }

    /// Adds what has come together since the last call; a clock that runs backwards adds
    /// nothing.
    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        // More than a century fits; whatever is longer fills the bucket anyway.
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let added = elapsed.saturating_mul(u64::from(rate.per_second));
        self.tokens = self
            .tokens
            .saturating_add(added)
            .min(u64::from(rate.burst) * TOKEN);
        self.filled = self.filled.max(now);
    }

    fn has_token(&self) -> bool {
        self.tokens >= TOKEN
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(TOKEN);
    }
}

#[cfg(test)]
mod tests;
