//! Source ports beside those that the kernel hands out.
//!
//! A connection that we close first leaves its port in TIME_WAIT for a minute
//! (TCP_TIMEWAIT_LEN, linux/include/net/tcp.h), and unless net.ipv4.tcp_tw_reuse is 1
//! the kernel hands it out to no other connection to the same real server: 28,232
//! ports are 470 connections a second, and finding out that none is left takes 4.4 ms
//! (measured). A port that was bound by hand is another matter: connect(2) takes it in
//! spite of TIME_WAIT if the former connection had timestamps (tcp_twsk_unique() in
//! linux/net/ipv4/tcp_ipv4.c, `!twp`). Such ports are taken above the kernel's range,
//! where no other program's connections miss them.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::node::local_ports::local_ports;

/// Ports that are handed out to nobody who does not name them (ip-sysctl.rst).
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// How long the kernel is not asked again for a port to a real server once it had none:
/// asking in vain takes as long as some 40 connections.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Real servers of which that is remembered.
const REMEMBERED: usize = 1024;

/// Ports that may be bound by hand, and the real servers that need them.
#[derive(Debug, Default)]
pub(super) struct SparePorts {
    ports: Vec<u16>,
    next: usize,
    needed: HashMap<SocketAddr, Instant>,
}

impl SparePorts {
    /// The ports above `last`, without the `reserved` ones (as ip_local_reserved_ports
    /// shows them), from the one numbered `start` on.
    fn above(last: u16, reserved: &str, start: usize) -> Self {
        let reserved = spans(reserved);
        let ports: Vec<u16> = (last..=u16::MAX)
            .skip(1)
            .filter(|port| {
                !reserved
                    .iter()
                    .any(|&(low, high)| (low..=high).contains(port))
            })
            .collect();
        let next = start.checked_rem(ports.len()).unwrap_or(0);
        Self {
            ports,
            next,
            needed: HashMap::new(),
        }
    }

    /// Those above the kernel's range, as this network namespace has it.
    pub(super) fn of_node(start: usize) -> Self {
        // Without /proc/sys the kernel's ports have to do.
        let Ok(range) = local_ports() else {
            return Self::default();
        };
        let reserved = fs::read_to_string(RESERVED).unwrap_or_default();
        Self::above(*range.end(), &reserved, start)
    }

    /// The kernel has just had no port for a connection to `to`. False when there are
    /// none here either.
    pub(super) fn need(&mut self, to: SocketAddr, now: Instant) -> bool {
        if self.ports.is_empty() {
            return false;
        }
        if self.needed.len() >= REMEMBERED {
            self.needed.retain(|_, since| now < *since + ASK_AGAIN);
        }
        if self.needed.len() < REMEMBERED {
            self.needed.insert(to, now);
        }
        true
    }

    /// True while it need not be asked again.
    pub(super) fn is_needed(&self, to: SocketAddr, now: Instant) -> bool {
        !self.needed.is_empty()
            && self
                .needed
                .get(&to)
                .is_some_and(|since| now < *since + ASK_AGAIN)
    }

    /// The next port in turn.
    pub(super) fn take(&mut self) -> Option<u16> {
        let port = *self.ports.get(self.next)?;
        self.next = (self.next + 1) % self.ports.len();
        Some(port)
    }
}

/// "8080,9000-9010": what is no number is left out.
fn spans(text: &str) -> Vec<(u16, u16)> {
    text.trim()
        .split(',')
        .filter_map(|span| {
            let (low, high) = span.split_once('-').unwrap_or((span, span));
            Some((low.parse().ok()?, high.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_above_the_range_take_turns_without_the_reserved_ones() {
        let mut spare = SparePorts::above(65_530, "80,65532-65533,x\n", 5);
        let turns: Vec<_> = (0..4).filter_map(|_| spare.take()).collect();
        assert_eq!(turns, [65_535, 65_531, 65_534, 65_535]);
    }

    #[test]
    fn no_ports_above_and_nothing_to_read() {
        for mut spare in [SparePorts::above(u16::MAX, "", 7), SparePorts::default()] {
            assert_eq!(spare.take(), None);
            assert!(!spare.need("10.0.0.1:80".parse().unwrap(), Instant::now()));
        }
    }

    #[test]
    fn a_real_server_needs_them_for_a_second() {
        let mut spare = SparePorts::above(60_999, "", 0);
        let (to, other) = (
            "10.1.0.1:80".parse().unwrap(),
            "10.1.0.2:80".parse().unwrap(),
        );
        let now = Instant::now();
        assert!(!spare.is_needed(to, now));
        assert!(spare.need(to, now));
        assert!(spare.is_needed(to, now) && !spare.is_needed(other, now));
        assert!(!spare.is_needed(to, now + ASK_AGAIN));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut spare = SparePorts::above(60_999, "", 0);
        let now = Instant::now();
        for port in 0..2 * REMEMBERED as u16 {
            assert!(spare.need(SocketAddr::new([10, 0, 0, 1].into(), port), now));
        }
        assert_eq!(spare.needed.len(), REMEMBERED);
        let later = now + ASK_AGAIN;
        assert!(spare.need("10.0.0.2:1".parse().unwrap(), later));
        assert_eq!(spare.needed.len(), 1);
    }
}
