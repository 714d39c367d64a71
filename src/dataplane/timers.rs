//! When to look at a flow again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::flow_table::FlowId;

/// Timers of flows that are over are not worth looking for below this number.
const MANY: usize = 4096;

/// Timers of flows, lazily kept: a flow's deadline moves later with every packet,
/// and only when the armed time comes is it asked what it wants now. A flow has at
/// most one armed timer that counts; the caller remembers its time.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Instant, flow: FlowId) {
        self.heap.push(Reverse((at, flow)));
    }

    /// Forgets timers of flows that are over, once these are the most of them.
    pub(crate) fn tidy(&mut self, flows: usize, is_over: impl Fn(FlowId) -> bool) {
        if self.heap.len() > 4 * flows + MANY {
            self.heap.retain(|Reverse((_, flow))| !is_over(*flow));
        }
    }

    /// The next time at which [`Timers::due`] may give a flow.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// A flow whose armed time has come, with that time.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

#[cfg(test)]
mod tests;
