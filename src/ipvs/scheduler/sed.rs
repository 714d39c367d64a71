//! Shortest expected delay, `ip_vs_sed.c`.

use super::{Candidates, Request, Scheduler, Update, wlc::least_for_weight};
use crate::ipvs::RealServer;

/// Chooses the one with the least `(active + 1) / weight`; of equals the first in
/// the list.
#[derive(Clone, Debug)]
pub(super) struct ShortestExpectedDelay;

impl Scheduler for ShortestExpectedDelay {
    fn changed(&mut self, _: &Update<'_>) {}

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        least_for_weight(candidates, delay)
    }
}

/// Only active connections count, and the one to come (`ip_vs_sed_dest_overhead`,
/// `ip_vs_nq_dest_overhead`).
pub(super) fn delay(server: &RealServer) -> u64 {
    u64::from(server.active()) + 1
}
