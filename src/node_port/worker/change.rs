//! What changes for flows that are open: settings, and real servers that retire.

use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use crate::dataplane::{DataplaneConfig, Dialer, Ending, FlowId, retired};

impl Worker {
    /// Follows other settings from now on. Every flow has a look at its time.
    pub(super) fn configure(&mut self, config: Arc<DataplaneConfig>) {
        if config.masquerade != self.config.masquerade {
            self.dialer = Dialer::new(config.masquerade.clone());
        }
        self.config = config;
        self.now = Instant::now();
        let all: Vec<FlowId> = self.flows.iter_mut().map(|(id, _)| id).collect();
        for id in all {
            self.mark(id);
            self.udp_timer(id);
        }
    }

    /// Ends UDP flows whose real server no longer serves.
    pub(super) fn sweep(&mut self) {
        for id in retired(&mut self.flows) {
            self.finish(id, Ending::EndpointRemoved);
        }
    }
}
