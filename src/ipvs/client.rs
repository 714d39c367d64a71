//! Where a client is, and whether it is let in.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::service::NodeNetwork;

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

fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}
