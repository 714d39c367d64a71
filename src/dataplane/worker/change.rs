//! What changes for flows that are open: settings, and real servers that retire.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::Worker;
use crate::dataplane::DataplaneConfig;
use crate::dataplane::ending::Ending;

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

    /// The virtual IPs in these networks that have open flows, a former process's too.
    pub(super) fn used(&mut self, nets: &[IpNet]) -> BTreeSet<IpAddr> {
        let mut ips = self.former_virtual_ips();
        let flows = self.flows.iter_mut();
        ips.extend(flows.map(|(_, flow)| flow.key.virtual_server.ip()));
        ips.retain(|ip| nets.iter().any(|net| net.contains(ip)));
        ips
    }

    /// Ends UDP flows whose real server no longer serves.
    pub(super) fn sweep(&mut self) {
        for id in self.flows.retired() {
            self.finish(id, Ending::EndpointRemoved);
        }
    }
}
