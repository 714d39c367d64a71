//! Where a client is, and whether it is let in.
//!
//! # Who is a pod
//!
//! `--pod-traffic` keeps pods out while NetworkPolicies would see this node in their
//! place. Nobody else is meant: what others do to reach a Service from outside is
//! masqueraded by kube-proxy as well. Who sends to a cluster IP is the node or a pod,
//! whatever its address, since nobody else is meant to know such addresses and pods
//! may have ones that no Node object tells (the CNI plugin gives them); so at a
//! cluster IP everybody counts as a pod but the node. At external and load balancer
//! IPs and node ports, pods are those in the networks of this node's pods
//! (`spec.podCIDRs`): pods of other nodes are carried by their own node. With
//! `--cluster-cidr` they are those in the networks of all the cluster's pods, as with
//! kube-proxy's detector of that name. Where no networks are known, everybody but the
//! node counts as a pod there too.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::service::{Exposure, NodeNetwork};

/// Where a client is, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientOrigin {
    /// This node itself.
    Node,
    /// A pod of this node.
    Pod,
    /// Anywhere else. Pods count as outside while the networks of this node's
    /// pods are not known, as for kube-proxy without a local-traffic detector.
    Outside,
}

impl ClientOrigin {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Outside => "outside",
        }
    }

    /// Where `client` of `virtual_ip` is; `is_node` says whether it has an
    /// address of this node.
    pub(super) fn of(
        client: IpAddr,
        virtual_ip: IpAddr,
        network: &NodeNetwork,
        is_node: impl FnOnce() -> bool,
    ) -> Self {
        // A virtual IP that is an address of the node as well is what the kernel
        // may choose as source towards itself.
        if client == virtual_ip || network.addresses.contains(&client) || is_node() {
            Self::Node
        } else if is_in(&network.pod_cidrs, client) {
            Self::Pod
        } else {
            Self::Outside
        }
    }
}

/// Whether `loadBalancerSourceRanges` let a client in: those in a range, and
/// the node if an address of it is in a range, whatever source its packets have
/// (`KUBE-FW` chains of kube-proxy).
pub(super) fn is_admitted(
    ranges: &[IpNet],
    client: IpAddr,
    origin: ClientOrigin,
    network: &NodeNetwork,
) -> bool {
    let is_node = origin == ClientOrigin::Node;
    is_in(ranges, client) || (is_node && network.addresses.iter().any(|ip| is_in(ranges, *ip)))
}

/// Whether a client that is not the node is to be taken for a pod where `exposure`
/// is what it sends to; the module says who is.
pub(super) fn counts_as_pod(client: IpAddr, exposure: Exposure, network: &NodeNetwork) -> bool {
    let of_family = |net: &&IpNet| net.addr().is_ipv4() == client.is_ipv4();
    let mut known = network.pod_cidrs.iter().filter(of_family).peekable();
    !exposure.is_external() || known.peek().is_none() || known.any(|net| net.contains(&client))
}

fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}
