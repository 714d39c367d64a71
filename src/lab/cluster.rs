//! A cluster that stands: nodes, pods, and what they are called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::error::LabError;
use super::namespace::Namespace;
use super::netlink;
use super::plan::{ClusterBuilder, NodeSpec, PodSpec, digits_as_ipv6};
use super::wiring;

/// A cluster that stands. It falls when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    pub(super) plan: ClusterBuilder,
    pub(super) switch: Namespace,
    pub(super) nodes: Vec<Node>,
}

impl Cluster {
    /// The nodes, in the order of the plan.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn node(&self, name: &str) -> &Node {
        match self.nodes.iter().find(|node| node.name() == name) {
            Some(node) => node,
            None => panic!("lab: no node {name}"),
        }
    }

    /// A pod by name, on whichever node it is.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        match self
            .nodes
            .iter()
            .flat_map(Node::pods)
            .find(|pod| pod.name() == name)
        {
            Some(pod) => pod,
            None => panic!("lab: no pod {name}"),
        }
    }

    /// Adds a pod to a node.
    ///
    /// # Errors
    ///
    /// [`LabError::Plan`] for a node that is not there or a name or address that
    /// is; else what the kernel refused.
    pub fn add_pod(&mut self, node: &str, pod: PodSpec) -> Result<&Pod, LabError> {
        let plan = self.plan.clone().pod(node, pod.clone());
        plan.check()?;
        self.plan = plan;
        let Some(node) = self.nodes.iter_mut().find(|found| found.name() == node) else {
            return Err(LabError::Plan(format!("no node {node}")));
        };
        let made = wiring::add_pod(&self.plan, &node.spec, &node.namespace, &pod)?;
        node.spec.pods.push(pod);
        node.pods.push(made);
        Ok(&node.pods[node.pods.len() - 1])
    }

    /// Takes a pod away: its interface vanishes from the node, its namespace
    /// with the last socket in it. Nothing happens when there is none.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn remove_pod(&mut self, name: &str) -> Result<(), LabError> {
        for spec in &mut self.plan.nodes {
            spec.pods.retain(|pod| pod.name != name);
        }
        for node in &mut self.nodes {
            node.spec.pods.retain(|pod| pod.name != name);
            if let Some(at) = node.pods.iter().position(|pod| pod.name() == name) {
                let pod = node.pods.remove(at);
                wiring::remove_pod(&node.namespace, pod.ipv4)?;
            }
        }
        Ok(())
    }

    /// The machine between the nodes, outside the cluster: it holds the nodes'
    /// default gateway and forwards nothing.
    pub fn outside(&self) -> &Namespace {
        &self.switch
    }

    /// The IPv4 service range.
    pub fn service_cidr(&self) -> Ipv4Net {
        self.plan.service_cidr
    }

    /// The IPv6 service range.
    pub fn service_cidr6(&self) -> Ipv6Net {
        self.plan.service_cidr6
    }

    /// Name of the vxlan device on the nodes.
    pub fn overlay(&self) -> &str {
        &self.plan.overlay
    }

    /// Name of the pods' bridge on the nodes.
    pub fn pod_bridge(&self) -> &str {
        &self.plan.pod_bridge
    }
}

/// A node that stands.
#[derive(Debug)]
pub struct Node {
    pub(super) spec: NodeSpec,
    pub(super) namespace: Namespace,
    pub(super) pod_bridge: String,
    pub(super) pods: Vec<Pod>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address between the nodes.
    pub fn address(&self) -> Ipv4Addr {
        self.spec.underlay
    }

    /// Its IPv6 address between the nodes.
    pub fn address6(&self) -> Ipv6Addr {
        digits_as_ipv6(self.spec.underlay)
    }

    /// Address of its vxlan device: the source of what it sends to pods of
    /// other nodes.
    pub fn overlay_address(&self) -> Ipv4Addr {
        self.spec.vtep()
    }

    /// IPv6 address of its vxlan device.
    pub fn overlay_address6(&self) -> Ipv6Addr {
        self.spec.vtep6()
    }

    /// Address of its bridge: the source of what it sends to its own pods.
    pub fn bridge_address(&self) -> Ipv4Addr {
        self.spec.gateway()
    }

    /// IPv6 address of its bridge.
    pub fn bridge_address6(&self) -> Ipv6Addr {
        self.spec.gateway6()
    }

    /// Its pods' network.
    pub fn pod_cidr(&self) -> Ipv4Net {
        self.spec.pod_cidr
    }

    /// Its pods, in the order they came.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Deletes one of its interfaces, as `ip link delete` would.
    ///
    /// # Errors
    ///
    /// What the kernel refused, as when there is none.
    pub fn delete_link(&self, name: &str) -> Result<(), LabError> {
        self.namespace.netlink(async |handle| {
            let requests = netlink::Requests::new(&self.namespace, handle);
            requests.delete_link(name).await
        })
    }

    /// Makes an address on this node's pod network to which packets vanish: it
    /// resolves to a link-layer address that nobody has. The node needs a pod,
    /// as without one it has no bridge.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn silence(&self, address: IpAddr) -> Result<(), LabError> {
        /// Locally administered, and not made by [`wiring`].
        const NOBODY: netlink::Mac = [0x06, 0, 0, 0, 0, 1];
        self.namespace.netlink(async |handle| {
            let requests = netlink::Requests::new(&self.namespace, handle);
            requests
                .add_neighbour(&self.pod_bridge, address, NOBODY)
                .await
        })
    }
}

/// A pod that stands.
#[derive(Debug)]
pub struct Pod {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// Its IPv6 address.
    pub fn address6(&self) -> Ipv6Addr {
        self.ipv6
    }
}
