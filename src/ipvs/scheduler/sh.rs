//! Source hashing, `ip_vs_sh.c`, without the flag `sh-port` as kube-proxy sets it
//! up.
//!
//! 256 buckets are dealt to the real servers in the order of the list, as many in
//! a row as a real server weighs; the client's address names a bucket. Beyond 256
//! real servers the rest get none, as in the kernel.
//!
//! A fail-over walks on through the buckets as the kernel does with the flag
//! `sh-fallback`: it starts at an offset that is again the hash, so clients of one
//! dead real server spread over the others.

use super::hash::{fold, hash_8_bits};
use super::{Candidates, Request, Scheduler, Update};

/// `IP_VS_SH_TAB_SIZE`.
const BUCKETS: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct SourceHash {
    /// Indices into the list; empty while the list is.
    buckets: Vec<usize>,
}

impl Scheduler for SourceHash {
    fn changed(&mut self, update: &Update<'_>) {
        let turns = update
            .servers
            .iter()
            .enumerate()
            .flat_map(|(index, server)| {
                // At least one, whatever the weight (`ip_vs_sh_reassign`).
                std::iter::repeat_n(index, server.weight().max(1) as usize)
            });
        self.buckets = turns.cycle().take(BUCKETS).collect();
    }

    fn pick(&mut self, request: &Request, candidates: Candidates<'_>) -> Option<usize> {
        let hash = hash_8_bits(fold(request.client.ip()));
        let usable = |bucket: usize| {
            let index = *self.buckets.get(bucket % BUCKETS)?;
            candidates.usable(index).then_some(index)
        };
        usable(hash).or_else(|| (0..BUCKETS).find_map(|offset| usable(offset + hash + hash)))
    }
}
