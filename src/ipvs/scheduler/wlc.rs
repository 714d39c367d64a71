//! Weighted least connection, `ip_vs_wlc.c`.

use super::{Candidates, Request, Scheduler, Update, lc::overhead};
use crate::ipvs::RealServer;

/// Chooses the one with the least overhead for its weight; of equals the first in
/// the list.
#[derive(Clone, Debug)]
pub(super) struct WeightedLeastConnection;

impl Scheduler for WeightedLeastConnection {
    fn changed(&mut self, _: &Update<'_>) {}

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        least_for_weight(candidates, overhead)
    }
}

/// The usable one with the least `load / weight`, compared without fractions as
/// the kernel does: a/v > b/w as a*w > b*v. Of equals the first in the list.
pub(super) fn least_for_weight(
    candidates: Candidates<'_>,
    load: impl Fn(&RealServer) -> u64,
) -> Option<usize> {
    let mut usable = candidates.iter_usable();
    let mut least = usable
        .next()
        .map(|(index, server)| (index, server, load(server)))?;
    for (index, server) in usable {
        let its = load(server);
        let (_, least_server, least_load) = least;
        let least_scaled = u128::from(least_load) * u128::from(server.weight());
        let its_scaled = u128::from(its) * u128::from(least_server.weight());
        if least_scaled > its_scaled {
            least = (index, server, its);
        }
    }
    Some(least.0)
}
