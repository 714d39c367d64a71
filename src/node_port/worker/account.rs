//! Bytes of open flows, counted on their real servers once in a while, as the data
//! plane does.

use std::time::{Duration, Instant};

use super::Worker;
use crate::dataplane::FlowId;

/// Between two counts.
const EVERY: Duration = Duration::from_secs(1);

/// Flows with bytes that their real servers do not count yet.
#[derive(Debug, Default)]
pub(super) struct Account {
    waiting: Vec<FlowId>,
    counted: Option<Instant>,
}

impl Account {
    /// When it is to be done next.
    pub(super) fn due(&self) -> Option<Instant> {
        let counted = self.counted?;
        (!self.waiting.is_empty()).then(|| counted + EVERY)
    }
}

impl Worker {
    /// The flow may have carried something. It is counted within a second, or when it
    /// ends; each flow waits in the list once at most.
    pub(super) fn notice_bytes(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && flow.is_unnoticed()
        {
            flow.unaccounted = true;
            self.account.waiting.push(id);
            self.account.counted.get_or_insert(self.now);
        }
    }

    pub(super) fn account_when_due(&mut self) {
        if self.account.due().is_some_and(|due| self.now >= due) {
            self.account.counted = Some(self.now);
            while let Some(id) = self.account.waiting.pop() {
                if let Some(flow) = self.flows.get_mut(id) {
                    flow.account();
                }
            }
        }
    }
}
