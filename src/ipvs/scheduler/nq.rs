//! Never queue, `ip_vs_nq.c`.

use super::{Candidates, Request, Scheduler, Update, sed::delay, wlc::least_for_weight};

/// Chooses the first in the list without an active connection; if all have some,
/// as shortest expected delay does.
#[derive(Clone, Debug)]
pub(super) struct NeverQueue;

impl Scheduler for NeverQueue {
    fn changed(&mut self, _: &Update<'_>) {}

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        candidates
            .iter_usable()
            .find(|(_, server)| server.active() == 0)
            .map(|(index, _)| index)
            .or_else(|| least_for_weight(candidates, delay))
    }
}
