//! Round robin, `ip_vs_rr.c`.
//!
//! The pointer stands on the real server that was chosen last, or on the head of
//! the list before the first choice. The next choice is the first usable one
//! after it, wrapping once. New real servers come in at the head
//! (`ip_vs_new_dest` adds with `list_add_rcu`); when the one the pointer stands
//! on goes, the pointer moves to its predecessor (`ip_vs_rr_del_dest`), so the
//! rotation goes on where it was.

use super::{Candidates, Request, Scheduler, Update};

#[derive(Clone, Debug, Default)]
pub(super) struct RoundRobin {
    /// Index of the last choice; none for the head of the list, which stands
    /// before the first.
    last: Option<usize>,
}

impl Scheduler for RoundRobin {
    fn changed(&mut self, update: &Update<'_>) {
        let Some(last) = self.last else {
            return;
        };
        // The pointer stands on itself if it stayed, else on the nearest one
        // before it that did: either way on the last of those counted here.
        let kept = update
            .kept
            .iter()
            .take(last + 1)
            .filter(|kept| **kept)
            .count();
        self.last = (update.added + kept).checked_sub(1);
    }

    fn position(&self) -> Vec<u32> {
        self.last.map(|last| last as u32).into_iter().collect()
    }

    fn resume(&mut self, position: &[u32], len: usize) {
        let last = position.first().map(|last| *last as usize);
        self.last = last.filter(|last| *last < len);
    }

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        let start = self.last.map_or(0, |last| last + 1);
        let picked = (start..candidates.len())
            .chain(0..start)
            .find(|index| candidates.usable(*index))?;
        self.last = Some(picked);
        Some(picked)
    }
}
