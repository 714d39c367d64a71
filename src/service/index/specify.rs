//! From a service port to one virtual server: which of the lists of
//! [`categorize`] clients inside and outside get, and what they see while it is
//! empty.

use std::net::SocketAddr;

use crate::service::address::Family;
use crate::service::endpoint::Endpoint;
use crate::service::service_port::{Service, ServicePort, TrafficPolicy};
use crate::service::topology::{Categorized, Policy, Standing, ThisNode, categorize};
use crate::service::{Exposure, Protocol, VirtualAddress, VirtualServerSpec, WhenEmpty};

/// A service port at one of its addresses, with its endpoints sorted out.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    pub(super) address: VirtualAddress,
    pub(super) exposure: Exposure,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) categorized: Categorized,
    ipvs_compat: bool,
}

/// Which list a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Cluster,
    Local,
}

impl<'a> Selection<'a> {
    pub(super) fn new(
        (service, port): (&'a Service, &'a ServicePort),
        (address, exposure): (VirtualAddress, Exposure),
        endpoints: Vec<Endpoint>,
        node: &ThisNode,
        ipvs_compat: bool,
    ) -> Self {
        let policy = Policy {
            internal_local: service.internal_policy == TrafficPolicy::Local,
            external_local: service.external_policy == TrafficPolicy::Local,
            externally_accessible: service.externally_accessible(port, Family::of(address.ip)),
        };
        let categorized = categorize(&endpoints, policy, node);
        Self {
            service,
            port,
            address,
            exposure,
            endpoints,
            categorized,
            ipvs_compat,
        }
    }

    /// The traffic policy that is in force at this address.
    pub(super) fn policy(&self) -> TrafficPolicy {
        if self.exposure.is_external() {
            self.service.external_policy
        } else {
            self.service.internal_policy
        }
    }

    /// The list of clients inside, and of those outside if they get another one.
    ///
    /// As in kube-proxy's iptables and nftables modes: at an external address
    /// under policy Local, this node and its pods are short-circuited to all
    /// endpoints. In IPVS mode the list depends on the virtual server alone, and
    /// an empty local list gives way to the cluster list (kubernetes PR #97081),
    /// which is empty too for a Service without external addresses.
    pub(super) fn lists(&self) -> (List, Option<List>) {
        let is_local = self.policy() == TrafficPolicy::Local;
        if self.ipvs_compat {
            let some_local = self.categorized.local.iter().any(|s| s.is_in());
            let list = if is_local && some_local {
                List::Local
            } else {
                List::Cluster
            };
            (list, None)
        } else if !is_local {
            (List::Cluster, None)
        } else if self.exposure.is_external() {
            (List::Cluster, Some(List::Local))
        } else {
            (List::Local, None)
        }
    }

    /// Where each endpoint stands in a list.
    pub(super) fn standings(&self, list: List) -> &[Standing] {
        match list {
            List::Cluster => &self.categorized.cluster,
            List::Local => &self.categorized.local,
        }
    }

    /// Policy Local, no local endpoint, some elsewhere: what kube-proxy counts as
    /// `sync_proxy_rules_no_local_endpoints_total`.
    pub(super) fn lacks_local(&self) -> bool {
        self.policy() == TrafficPolicy::Local
            && self.categorized.has_any
            && !self.categorized.local.iter().any(|s| s.is_in())
    }

    pub(super) fn spec(&self) -> VirtualServerSpec {
        let (inside, outside) = self.lists();
        let service = self.service;
        let serving = self.endpoints.iter();
        let serving = serving.filter(|e| e.conditions.ready || e.conditions.serving);
        let mut serving: Vec<_> = serving.map(|e| e.address).collect();
        serving.sort_unstable();
        // Kept for as long as it is in force.
        serving.shrink_to_fit();
        let is_balancer = self.exposure == Exposure::LoadBalancerIp;
        let family = Family::of(self.address.ip);
        VirtualServerSpec {
            exposure: self.exposure,
            real_servers: self.chosen(inside),
            external: outside.map(|list| self.chosen(list)),
            serving,
            when_empty: self.when_empty(inside),
            external_when_empty: outside.map_or(WhenEmpty::Reject, |list| self.when_empty(list)),
            persistence: service.affinity,
            source_ranges: is_balancer
                .then(|| service.source_ranges_for(family))
                .flatten(),
            scheduler: service.scheduler,
            // A header that begins a stream.
            proxy_protocol: service
                .proxy_protocol
                .filter(|_| self.address.protocol == Protocol::Tcp),
            ..VirtualServerSpec::new(self.address, self.port.name.clone())
        }
    }

    fn chosen(&self, list: List) -> Vec<SocketAddr> {
        let all = self.endpoints.iter().zip(self.standings(list));
        let chosen = all.filter(|(_, standing)| standing.is_in());
        let mut chosen: Vec<_> = chosen.map(|(endpoint, _)| endpoint.address).collect();
        chosen.shrink_to_fit();
        chosen
    }

    /// An empty cluster list means that there are none at all, or in IPVS mode
    /// none that this Service may use: refused either way.
    fn when_empty(&self, list: List) -> WhenEmpty {
        if list == List::Local && self.categorized.has_any && !self.ipvs_compat {
            WhenEmpty::Drop
        } else {
            WhenEmpty::Reject
        }
    }
}
