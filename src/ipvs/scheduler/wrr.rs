//! Weighted round robin, `ip_vs_wrr.c`.
//!
//! The list is walked in rounds, each with a threshold: the first with the
//! largest weight, each next one lower by the greatest common divisor of all
//! weights, then from the top again. A round chooses those whose weight reaches
//! the threshold, so a real server of weight w is chosen w times (over the
//! divisor) in a full sequence. When the list changes, the walk starts again at
//! its head with the threshold it had, if that still fits
//! (`ip_vs_wrr_dest_changed`).

use super::{Candidates, Request, Scheduler, Update, hash::gcd};

#[derive(Clone, Debug, Default)]
pub(super) struct WeightedRoundRobin {
    /// Index of the last choice; none for the head of the list.
    last: Option<usize>,
    /// `cw`: the weight that is needed in this round.
    threshold: u32,
    /// `mw`: the threshold of the first round.
    max: u32,
    /// `di`: how much lower each round is.
    step: u32,
}

impl Scheduler for WeightedRoundRobin {
    fn changed(&mut self, update: &Update<'_>) {
        let weights = || update.servers.iter().map(|server| server.weight());
        self.last = None;
        self.step = weights().fold(0, gcd).max(1);
        // Lower by step - 1, so that the last round asks for weight 1 and finds
        // one whose weight has sunk below the step meanwhile.
        self.max = weights().max().unwrap_or(0).saturating_sub(self.step - 1);
        if self.threshold > self.max || self.threshold == 0 {
            self.threshold = self.max;
        } else if self.step > 1 {
            self.threshold = self.threshold / self.step * self.step + 1;
        }
    }

    fn position(&self) -> Vec<u32> {
        let last = self.last.map(|last| last as u32);
        last.map_or_else(Vec::new, |last| vec![last, self.threshold])
    }

    fn resume(&mut self, position: &[u32], len: usize) {
        if let &[last, threshold] = position
            && (last as usize) < len
            && (1..=self.max).contains(&threshold)
        {
            self.last = Some(last as usize);
            self.threshold = threshold;
        }
    }

    fn pick(&mut self, _: &Request, candidates: Candidates<'_>) -> Option<usize> {
        if self.max == 0 {
            return None;
        }
        let began = self.last;
        let mut from = began.map_or(0, |last| last + 1);
        let mut stop = None;
        let (mut last_round, mut restarted) = (false, false);
        loop {
            for index in from..candidates.len() {
                if candidates.usable(index) && candidates.servers[index].weight() >= self.threshold
                {
                    self.last = Some(index);
                    return Some(index);
                }
                if Some(index) == stop {
                    self.last = stop;
                    return None;
                }
            }
            from = 0;
            self.threshold = self.threshold.saturating_sub(self.step);
            if self.threshold == 0 {
                self.threshold = self.max;
                if last_round || began.is_none() {
                    self.last = None;
                    return None;
                }
                restarted = true;
            }
            last_round = self.threshold <= self.step;
            if last_round && restarted {
                // The first walk for weight 1 saw only those after the pointer;
                // this one ends with it.
                stop = began;
            }
        }
    }
}
