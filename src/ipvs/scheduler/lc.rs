//! Least connection, `ip_vs_lc.c`.

use super::{Candidates, Request, Scheduler, Update};
use crate::ipvs::RealServer;

/// Chooses the one with the least overhead; of equals the first in the list.
#[derive(Clone, Debug)]
pub(super) struct LeastConnection;

impl Scheduler for LeastConnection {
    fn changed(&mut self, _: &Update<'_>) {}

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        candidates
            .iter_usable()
            .min_by_key(|(_, server)| overhead(server))
            .map(|(index, _)| index)
    }
}

/// An active connection costs as much as 256 inactive ones
/// (`ip_vs_dest_conn_overhead`).
pub(super) fn overhead(server: &RealServer) -> u64 {
    (u64::from(server.active()) << 8) + u64::from(server.inactive())
}
