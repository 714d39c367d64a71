//! Why a virtual server is as it is, in words.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::specify::{List, Selection};
use super::{Index, Stored};
use crate::service::endpoint::Endpoint;
use crate::service::object::Origin;
use crate::service::service_port::TrafficPolicy;
use crate::service::topology::{Standing, ThisNode, Topology};
use crate::service::{VirtualAddress, VirtualServerSpec};

/// All that decides about one virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is programmed.
    pub spec: VirtualServerSpec,
    /// Where the Service stands, if in a file.
    pub origin: Option<Origin>,
    /// The Service's internalTrafficPolicy.
    pub internal_policy: TrafficPolicy,
    /// Its externalTrafficPolicy.
    pub external_policy: TrafficPolicy,
    /// Which topology hints are followed where any endpoint may be used.
    pub topology: Topology,
    /// Every endpoint of the service port in this family, in kube-proxy's order.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// One endpoint and why it is in or out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The node it is on, as far as its slice says.
    pub node: Option<Arc<str>>,
    /// For clients on this node and its pods; for all, if
    /// [`outside`](Self::outside) is none.
    pub inside: Placing,
    /// For clients from outside, if they get other endpoints.
    pub outside: Option<Placing>,
}

/// Whether an endpoint gets new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Whether it is in the rotation.
    pub is_in: bool,
    /// Why, or why not.
    pub reason: String,
}

impl Index {
    /// Why a virtual server is as it is. `None` if no Service has that address.
    pub fn explain(&self, address: &VirtualAddress) -> Option<Explanation> {
        let emitted = self.emitted.get(address)?;
        let selection = self.select(*address)?;
        let (Stored { service, origin }, ..) = self.owner(address)?;
        let endpoints = 0..selection.endpoints.len();
        Some(Explanation {
            spec: emitted.spec(),
            origin: origin.clone(),
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            topology: selection.categorized.topology,
            endpoints: endpoints
                .map(|position| explained(&selection, position, &self.node))
                .collect(),
        })
    }

    /// The virtual servers at an address, whatever their port.
    pub fn virtual_servers_at(&self, ip: IpAddr) -> Vec<VirtualServerSpec> {
        let mut all = self.virtual_servers();
        all.retain(|spec| spec.address.ip == ip);
        all
    }
}

fn explained(selection: &Selection<'_>, position: usize, node: &ThisNode) -> ExplainedEndpoint {
    let endpoint = &selection.endpoints[position];
    let placing = |list: List| {
        let standing = selection.standings(list)[position];
        Placing {
            is_in: standing.is_in(),
            reason: reason(
                standing,
                list,
                endpoint,
                selection.categorized.topology,
                node,
            ),
        }
    };
    let (inside, outside) = selection.lists();
    ExplainedEndpoint {
        address: endpoint.address,
        node: endpoint.node.clone(),
        inside: placing(inside),
        outside: outside.map(placing),
    }
}

fn reason(
    standing: Standing,
    list: List,
    endpoint: &Endpoint,
    topology: Topology,
    node: &ThisNode,
) -> String {
    let hints = endpoint.hints.as_deref();
    let zone = node.zone.as_deref().unwrap_or_default();
    match (standing, topology) {
        (Standing::Ready, Topology::SameZone) if list == List::Cluster => {
            format!("ready, and hinted for this node's zone {zone}")
        }
        (Standing::Ready, Topology::SameNode) if list == List::Cluster => {
            "ready, and hinted for this node".to_owned()
        }
        (Standing::Ready, _) if list == List::Local => "ready, on this node".to_owned(),
        (Standing::LastResort, _) => {
            "terminating but serving, and none that could be used is ready".to_owned()
        }
        (Standing::NotReady, _) if endpoint.conditions.terminating => {
            "terminating, and serves no more".to_owned()
        }
        (Standing::Terminating, _) => {
            "terminating: still serves, but is not needed while others are ready".to_owned()
        }
        (Standing::Remote, _) => match &endpoint.node {
            Some(other) => format!("on node {other}, and the policy is Local"),
            None => "on no known node, and the policy is Local".to_owned(),
        },
        (Standing::OtherZone, _) => {
            let zones = hints.map(|hints| hints.zones.join(", "));
            let zones = zones.unwrap_or_default();
            format!("hinted for zone {zones}; this node is in zone {zone}")
        }
        (Standing::OtherNode, _) => {
            let nodes = hints.map(|hints| hints.nodes.join(", "));
            format!("hinted for node {}", nodes.unwrap_or_default())
        }
        (Standing::Unused, _) => {
            "the policy is Local, and the service has no external address".to_owned()
        }
        (Standing::Ready | Standing::NotReady, _) => standing.as_str().to_owned(),
    }
}
