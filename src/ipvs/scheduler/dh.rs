//! Destination hashing, `ip_vs_dh.c`.
//!
//! 256 buckets are dealt to the real servers in turn, in the order of the list;
//! the virtual IP names a bucket. A virtual server has one IP, so all its flows
//! go to one real server: the scheduler is meant for transparent caches.
//!
//! The kernel has no fall-back here. A fail-over takes the next bucket.

use super::hash::{fold, hash_8_bits};
use super::{Candidates, Request, Scheduler, Update};

/// `IP_VS_DH_TAB_SIZE`.
const BUCKETS: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct DestinationHash {
    /// Indices into the list; empty while the list is.
    buckets: Vec<usize>,
}

impl Scheduler for DestinationHash {
    fn changed(&mut self, update: &Update<'_>) {
        self.buckets = (0..update.servers.len()).cycle().take(BUCKETS).collect();
    }

    fn pick(&mut self, request: &Request, candidates: Candidates<'_>) -> Option<usize> {
        let hash = hash_8_bits(fold(request.virtual_ip));
        (0..BUCKETS)
            .filter_map(|offset| self.buckets.get((hash + offset) % BUCKETS))
            .copied()
            .find(|index| candidates.usable(*index))
    }
}
