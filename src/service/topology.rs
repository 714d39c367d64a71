//! Which endpoints of a service port take which traffic: kube-proxy's
//! `CategorizeEndpoints` (`pkg/proxy/topology.go`), with a reason for each
//! endpoint so that it can be explained.
//!
//! There are two lists. *Cluster* is for traffic under policy Cluster and
//! follows topology hints; *local* is for traffic under policy Local and holds
//! endpoints of this node only. A service port may use one or both.

use std::sync::Arc;

use super::endpoint::{Endpoint, Hints};

/// What of a service port decides about its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// internalTrafficPolicy is Local.
    pub internal_local: bool,
    /// externalTrafficPolicy is Local.
    pub external_local: bool,
    /// It has a node port, a load balancer IP or an external IP.
    pub externally_accessible: bool,
}

impl Policy {
    /// Is there traffic that may go to any endpoint? External traffic under
    /// policy Local counts: from inside the cluster it is short-circuited.
    pub fn uses_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    /// Is there traffic that must stay on this node?
    pub fn uses_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThisNode {
    /// Its name.
    pub name: Arc<str>,
    /// Its zone, if it has one.
    pub zone: Option<Arc<str>>,
}

/// Which hints are followed in the cluster list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// None: some ready endpoint lacks hints, or none is meant for this place.
    Off,
    /// Endpoints meant for this zone.
    SameZone,
    /// Endpoints meant for this node.
    SameNode,
}

/// Where an endpoint stands with regard to one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In: ready.
    Ready,
    /// In: terminating but serving, and no endpoint is ready.
    LastResort,
    /// Out: no traffic uses this list.
    Unused,
    /// Out: not ready, and not serving while it terminates either.
    NotReady,
    /// Out: terminating, and others are ready.
    Terminating,
    /// Out: on another node.
    Remote,
    /// Out: meant for other zones.
    OtherZone,
    /// Out: meant for other nodes.
    OtherNode,
}

impl Standing {
    /// Is the endpoint in the list?
    pub fn is_in(self) -> bool {
        matches!(self, Self::Ready | Self::LastResort)
    }

    /// The reason in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::LastResort => "terminating but serving, and no endpoint is ready",
            Self::Unused => "no traffic uses this list",
            Self::NotReady => "not ready",
            Self::Terminating => "terminating, and others are ready",
            Self::Remote => "on another node",
            Self::OtherZone => "meant for other zones",
            Self::OtherNode => "meant for other nodes",
        }
    }
}

/// The endpoints of a service port, sorted out. Positions are those of the
/// endpoints given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Categorized {
    /// Standing in the cluster list.
    pub cluster: Vec<Standing>,
    /// Standing in the local list.
    pub local: Vec<Standing>,
    /// Hints that are followed.
    pub topology: Topology,
    /// Could any endpoint anywhere take traffic, even if not from here? Decides
    /// between reject and drop while a list is empty.
    pub has_any: bool,
}

impl Categorized {
    /// Is the endpoint at this position in either list?
    pub fn reachable(&self, position: usize) -> bool {
        let is_in = |list: &[Standing]| list.get(position).is_some_and(|s| s.is_in());
        is_in(&self.cluster) || is_in(&self.local)
    }
}

/// Sorts out the endpoints of a service port, all of one family.
pub fn categorize(endpoints: &[Endpoint], policy: Policy, node: &ThisNode) -> Categorized {
    let topology = if policy.uses_cluster() {
        topology(endpoints, node)
    } else {
        Topology::Off
    };
    let cluster = if policy.uses_cluster() {
        list(endpoints, |endpoint| misplaced(endpoint, topology, node))
    } else {
        vec![Standing::Unused; endpoints.len()]
    };
    let local = if policy.uses_local() {
        list(endpoints, |e| (!e.local).then_some(Standing::Remote))
    } else {
        vec![Standing::Unused; endpoints.len()]
    };
    Categorized {
        cluster,
        local,
        topology,
        has_any: endpoints.iter().any(|e| is_ready(e) || is_last_resort(e)),
    }
}

/// One list: the ready ones in place; if there is none, those that terminate
/// but serve. Which of those count as out of place differs: a Local list never
/// leaves the node, topology does not bind the last resort.
fn list(
    endpoints: &[Endpoint],
    misplaced: impl Fn(&Endpoint) -> Option<Standing>,
) -> Vec<Standing> {
    let placed: Vec<Option<Standing>> = endpoints.iter().map(misplaced).collect();
    let any_ready = endpoints
        .iter()
        .zip(&placed)
        .any(|(e, p)| is_ready(e) && p.is_none());
    let standing = |(endpoint, misplaced): (&Endpoint, &Option<Standing>)| match misplaced {
        Some(Standing::Remote) => Standing::Remote,
        Some(elsewhere) if is_ready(endpoint) => *elsewhere,
        _ if is_ready(endpoint) => Standing::Ready,
        _ if !is_last_resort(endpoint) => Standing::NotReady,
        _ if any_ready => Standing::Terminating,
        _ => Standing::LastResort,
    };
    endpoints.iter().zip(&placed).map(standing).collect()
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions;
    !conditions.ready && conditions.serving && conditions.terminating
}

fn misplaced(endpoint: &Endpoint, topology: Topology, node: &ThisNode) -> Option<Standing> {
    match topology {
        Topology::Off => None,
        Topology::SameNode => (!hints_node(endpoint, node)).then_some(Standing::OtherNode),
        Topology::SameZone => (!hints_zone(endpoint, node)).then_some(Standing::OtherZone),
    }
}

/// Only ready endpoints decide, and one without a hint switches that kind of
/// hint off for all.
fn topology(endpoints: &[Endpoint], node: &ThisNode) -> Topology {
    let ready = || endpoints.iter().filter(|e| is_ready(e));
    let all = |has: fn(&Hints) -> bool| ready().all(|e| e.hints.as_deref().is_some_and(has));
    if all(|h| !h.nodes.is_empty()) && ready().any(|e| hints_node(e, node)) {
        Topology::SameNode
    } else if all(|h| !h.zones.is_empty()) && ready().any(|e| hints_zone(e, node)) {
        Topology::SameZone
    } else {
        Topology::Off
    }
}

fn hints_node(endpoint: &Endpoint, node: &ThisNode) -> bool {
    let hints = endpoint.hints.as_ref();
    hints.is_some_and(|h| h.nodes.iter().any(|n| **n == *node.name))
}

fn hints_zone(endpoint: &Endpoint, node: &ThisNode) -> bool {
    let (Some(hints), Some(zone)) = (&endpoint.hints, &node.zone) else {
        return false;
    };
    hints.zones.iter().any(|z| **z == **zone)
}

#[cfg(test)]
mod tests;
