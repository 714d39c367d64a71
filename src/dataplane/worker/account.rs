//! Bytes of open flows, counted on their real servers once in a while: a count that
//! all workers share must not be touched for each packet.

use super::Worker;
use crate::dataplane::flow_table::FlowId;

impl Worker {
    /// The flow may have carried something. It is counted with the next housekeeping,
    /// or when it ends; each flow waits in the list once at most.
    pub(super) fn notice_bytes(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && flow.is_unnoticed()
        {
            flow.unaccounted = true;
            self.unaccounted.push(id);
        }
    }

    /// Counts what has been carried since the last time.
    pub(super) fn account_all(&mut self) {
        while let Some(id) = self.unaccounted.pop() {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.account();
            }
        }
    }
}
