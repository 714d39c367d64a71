//! What becomes of a new flow, and why: index and table asked together, for
//! `explain`. Nothing moves by it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Instant;

use crate::admin::api;
use crate::dataplane::{Dataplane, interface_addresses};
use crate::ipvs::{ClientOrigin, DropReason, RejectReason, Table, Verdict, VirtualServer};
use crate::service::address::Family;
use crate::service::index::{self, Index};
use crate::service::service_port::TrafficPolicy;
use crate::service::topology::Topology;
use crate::service::{Protocol, VirtualAddress};

/// Explains flows.
#[derive(Debug)]
pub(super) struct Explainer {
    pub(super) index: Arc<RwLock<Index>>,
    pub(super) table: Arc<Table>,
    /// Weak, since a connection that lingers must not keep the workers alive.
    pub(super) dataplane: Weak<Dataplane>,
    /// Where this node's own connections to services come from.
    pub(super) tun_addresses: Vec<IpAddr>,
}

/// What is known of this node.
struct Here<'a> {
    /// All addresses of its interfaces.
    own: HashSet<IpAddr>,
    tun_addresses: &'a [IpAddr],
    serves_pods: bool,
}

impl Explainer {
    /// What becomes of a new flow.
    pub(super) fn explain(&self, question: &api::Question) -> api::Explanation {
        let dataplane = self.dataplane.upgrade();
        let here = Here {
            own: interface_addresses(None),
            tun_addresses: &self.tun_addresses,
            serves_pods: dataplane.is_none_or(|dataplane| dataplane.serves_pods()),
        };
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        explain(question, &index, &self.table, &here, Instant::now())
    }
}

fn explain(
    question: &api::Question,
    index: &Index,
    table: &Table,
    here: &Here<'_>,
    now: Instant,
) -> api::Explanation {
    let to = question.address;
    let protocol = match question.protocol {
        api::Protocol::Tcp => Protocol::Tcp,
        api::Protocol::Udp => Protocol::Udp,
        api::Protocol::Sctp => Protocol::Sctp,
    };
    let (ip, port) = (to.ip(), to.port());
    let mut address = VirtualAddress { ip, port, protocol };
    let is_own = ip.is_unspecified() || here.is_own(ip);
    let is_node_port = is_own && index.explain(&address).is_none();
    if is_node_port {
        address = VirtualAddress::node_port(Family::of(ip), port, protocol);
    }
    let client = question.from.unwrap_or_else(|| here.address_towards(ip));
    let is_node = || here.is_own(client);
    let verdict = if is_node_port {
        table.node_port(to, protocol, client, is_node)
    } else {
        table.verdict(address, client, is_node)
    };
    let origin = table.origin(client, ip, is_node);
    let is_served = |server: &VirtualServer| {
        origin == ClientOrigin::Node
            || here.serves_pods
            || is_node_port
            || !table.counts_as_pod(client, server.exposure)
    };
    let verdict = match verdict {
        Verdict::Forward(server) if !is_served(&server) => Verdict::Drop(DropReason::PodTraffic),
        verdict @ (Verdict::Forward(_) | Verdict::Reject(_) | Verdict::Drop(_)) => verdict,
    };
    let explained = index.explain(&address);
    let others = match &explained {
        None => index
            .virtual_servers_at(address.ip)
            .iter()
            .map(|spec| spec.address.to_string())
            .collect(),
        Some(_) => Vec::new(),
    };
    api::Explanation {
        address: to,
        protocol: question.protocol,
        client,
        client_is: origin.as_str().to_owned(),
        outcome: outcome(&verdict, protocol, client, now),
        virtual_server: explained.as_ref().map(|e| virtual_server(e, table)),
        others,
    }
}

impl Here<'_> {
    fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.own.contains(&ip)
    }

    /// The source of this node's own connections to an address.
    fn address_towards(&self, ip: IpAddr) -> IpAddr {
        if self.is_own(ip) {
            return ip;
        }
        let mut tun = self.tun_addresses.iter();
        tun.find(|tun| tun.is_ipv4() == ip.is_ipv4())
            .copied()
            .unwrap_or(ip)
    }
}

fn outcome(verdict: &Verdict, protocol: Protocol, client: IpAddr, now: Instant) -> api::Outcome {
    let refused = match protocol {
        Protocol::Tcp | Protocol::Sctp => "connection refused (RST)",
        Protocol::Udp => "ICMP port unreachable",
    };
    let (word, reason, words) = match verdict {
        Verdict::Forward(_) => ("forward", None, "carried to a real server".to_owned()),
        Verdict::Reject(reason) => {
            let words = format!("{refused}: {}", why_rejected(*reason));
            ("reject", Some(reason.as_str()), words)
        }
        Verdict::Drop(reason) => {
            let words = format!("no answer: {}", why_dropped(*reason));
            ("drop", Some(reason.as_str()), words)
        }
    };
    let forecast = match verdict {
        // The port counts for mh alone; a client's next one is not known.
        Verdict::Forward(server) => Some(server.forecast(Some(SocketAddr::new(client, 0)), now)),
        Verdict::Reject(_) | Verdict::Drop(_) => None,
    };
    let persistent = forecast.as_ref().and_then(|forecast| forecast.persistent);
    api::Outcome {
        verdict: word.to_owned(),
        reason: reason.map(str::to_owned),
        words,
        affinity: persistent.map(|(real_server, left)| api::Affinity {
            real_server,
            seconds: left.as_secs(),
        }),
        next: forecast.and_then(|forecast| forecast.next),
    }
}

fn why_rejected(reason: RejectReason) -> &'static str {
    if reason == RejectReason::UnknownPort {
        "the address has services, but none on this port"
    } else if reason == RejectReason::NoEndpoints {
        "the service has no usable endpoint"
    } else {
        reason.as_str()
    }
}

fn why_dropped(reason: DropReason) -> &'static str {
    /// Those that a verdict on a new flow has.
    const WORDS: &[(DropReason, &str)] = &[
        (
            DropReason::NotSynced,
            "the first full state is not programmed yet",
        ),
        (DropReason::Draining, "the proxy is stopping"),
        (DropReason::UnknownAddress, "no service has this address"),
        (
            DropReason::NoLocalEndpoint,
            "the policy is Local, and all endpoints are on other nodes",
        ),
        (
            DropReason::SourceRange,
            "the client is outside loadBalancerSourceRanges",
        ),
        (
            DropReason::PodTraffic,
            "the client counts as a pod, and pods are not served (--pod-traffic)",
        ),
        (DropReason::Sctp, "SCTP is not carried"),
    ];
    let words = WORDS.iter().find(|(known, _)| *known == reason);
    words.map_or(reason.as_str(), |(_, words)| words)
}

fn virtual_server(explanation: &index::Explanation, table: &Table) -> api::ExplainedVirtualServer {
    let spec = &explanation.spec;
    let scheduler = spec.scheduler.unwrap_or_else(|| table.scheduler());
    let ranges = spec.source_ranges.as_ref();
    let policy = |policy: TrafficPolicy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    };
    let topology = match explanation.topology {
        Topology::Off => "none",
        Topology::SameZone => "zone",
        Topology::SameNode => "node",
    };
    api::ExplainedVirtualServer {
        service: spec.service.to_string(),
        origin: explanation.origin.as_ref().map(ToString::to_string),
        exposure: spec.exposure.to_string(),
        internal_traffic_policy: policy(explanation.internal_policy),
        external_traffic_policy: policy(explanation.external_policy),
        topology: topology.to_owned(),
        scheduler: scheduler.to_string(),
        persistence_seconds: spec.persistence.map(|time| time.as_secs()),
        source_ranges: ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        proxy_protocol: spec
            .proxy_protocol
            .map(|version| version.as_str().to_owned()),
        endpoints: explanation.endpoints.iter().map(endpoint).collect(),
    }
}

fn endpoint(endpoint: &index::ExplainedEndpoint) -> api::ExplainedEndpoint {
    let placing = |placing: &index::Placing| api::Placing {
        is_in: placing.is_in,
        reason: placing.reason.clone(),
    };
    api::ExplainedEndpoint {
        address: endpoint.address,
        node: endpoint.node.as_deref().map(str::to_owned),
        inside: placing(&endpoint.inside),
        outside: endpoint.outside.as_ref().map(placing),
    }
}

#[cfg(test)]
mod tests;
