//! What changes for flows that are open: settings, and real servers that retire.

use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use crate::dataplane::{DataplaneConfig, Ending};

impl Worker {
    /// Follows other settings from now on. Every flow has a look at its time.
    pub(super) fn configure(&mut self, config: Arc<DataplaneConfig>) {
        self.dialer.follow(&config.masquerade);
        self.config = config;
        self.now = Instant::now();
        let timeout = self.shared.udp_timeout(&self.config);
        for id in self.flows.reconsider(timeout, self.now) {
            self.finish(id, Ending::Idle);
        }
    }

    /// The process ends: UDP flows that are silent are over sooner.
    pub(super) fn hasten_udp(&mut self) {
        let timeout = self.shared.udp_timeout(&self.config);
        self.flows.hasten_udp(timeout);
    }

    /// Ends UDP flows whose real server no longer serves.
    pub(super) fn sweep(&mut self) {
        for id in self.flows.retired() {
            self.finish(id, Ending::EndpointRemoved);
        }
    }
}
