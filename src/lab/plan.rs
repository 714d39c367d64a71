//! What a cluster is to be: names, addresses, numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::cluster::Cluster;
use super::error::LabError;
use super::wiring;

/// What a cluster is to be. [`ClusterBuilder::new`] has no nodes yet,
/// [`ClusterBuilder::seed`] is the cluster of the article this project began
/// with.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    pub(super) service_cidr: Ipv4Net,
    pub(super) service_cidr6: Ipv6Net,
    pub(super) underlay: Ipv4Net,
    pub(super) underlay_mtu: u32,
    pub(super) overlay: String,
    pub(super) overlay_vni: u32,
    pub(super) overlay_port: u16,
    pub(super) pod_mtu: u32,
    pub(super) pod_bridge: String,
    pub(super) sysctls: Vec<(String, String)>,
    pub(super) nodes: Vec<NodeSpec>,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ClusterBuilder {
    /// A cluster without nodes, with the seed's names and numbers.
    pub fn new() -> Self {
        Self {
            service_cidr: ipv4_net([10, 0, 0, 0], 16),
            service_cidr6: ipv6_net(Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0), 112),
            underlay: ipv4_net([172, 100, 101, 0], 24),
            underlay_mtu: 1500,
            overlay: "flannel.1".to_owned(),
            overlay_vni: 1,
            // flannel's default port on Linux (backend/vxlan, the kernel's own
            // default before IANA's 4789).
            overlay_port: 8472,
            // 1500 less the 50 bytes of outer Ethernet, IPv4, UDP and VXLAN.
            pod_mtu: 1450,
            pod_bridge: "cni0".to_owned(),
            sysctls: vec![
                // A namespace inherits the machine's default, which may be one
                // that behaves oddly at the microseconds of a veth (BBR). reno
                // is the one that may be set in every namespace.
                (
                    "net.ipv4.tcp_congestion_control".to_owned(),
                    "reno".to_owned(),
                ),
            ],
            nodes: Vec::new(),
        }
    }

    /// The seed's cluster: `master` (172.100.101.192, flannel.1 10.1.15.0) with
    /// one pod `client` at 10.1.15.7, and `node2` (172.100.101.193, flannel.1
    /// 10.1.65.0) with the pods `pod-5`, `pod-6`, `pod-7` at 10.1.65.5 to .7.
    pub fn seed() -> Self {
        let master = Ipv4Addr::new(172, 100, 101, 192);
        let node2 = Ipv4Addr::new(172, 100, 101, 193);
        Self::new()
            .node(
                NodeSpec::new("master", master, ipv4_net([10, 1, 15, 0], 24))
                    .pod(PodSpec::new("client", 7)),
            )
            .node(
                NodeSpec::new("node2", node2, ipv4_net([10, 1, 65, 0], 24))
                    .pod(PodSpec::new("pod-5", 5))
                    .pod(PodSpec::new("pod-6", 6))
                    .pod(PodSpec::new("pod-7", 7)),
            )
    }

    /// Adds a node.
    pub fn node(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// Adds a pod to a node that is already in the plan; [`Self::build`] says so
    /// when it is not.
    pub fn pod(mut self, node: &str, pod: PodSpec) -> Self {
        match self.nodes.iter_mut().find(|spec| spec.name == node) {
            Some(spec) => spec.pods.push(pod),
            // A node without an address is what build() refuses.
            None => self
                .nodes
                .push(NodeSpec::new(node, Ipv4Addr::UNSPECIFIED, Ipv4Net::default()).pod(pod)),
        }
        self
    }

    /// The service ranges. The lab routes neither: that is the proxy's work.
    pub fn service_cidrs(mut self, ipv4: Ipv4Net, ipv6: Ipv6Net) -> Self {
        (self.service_cidr, self.service_cidr6) = (ipv4, ipv6);
        self
    }

    /// The network between the nodes; its first address is the gateway's.
    pub fn underlay(mut self, network: Ipv4Net) -> Self {
        self.underlay = network;
        self
    }

    /// The vxlan device: its name on the nodes, its identifier, its UDP port.
    pub fn overlay(mut self, name: &str, vni: u32, port: u16) -> Self {
        (self.overlay, self.overlay_vni, self.overlay_port) = (name.to_owned(), vni, port);
        self
    }

    /// MTUs in bytes: between the nodes, and of overlay, bridge and pods.
    pub fn mtus(mut self, underlay: u32, pods: u32) -> Self {
        (self.underlay_mtu, self.pod_mtu) = (underlay, pods);
        self
    }

    /// Name of the pods' bridge on the nodes.
    pub fn pod_bridge(mut self, name: &str) -> Self {
        name.clone_into(&mut self.pod_bridge);
        self
    }

    /// TCP congestion control of every namespace; `reno` unless said otherwise.
    pub fn congestion_control(self, name: &str) -> Self {
        self.sysctl("net.ipv4.tcp_congestion_control", name)
    }

    /// A setting of every namespace, after the lab's own.
    pub fn sysctl(mut self, key: &str, value: &str) -> Self {
        self.sysctls.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Makes the cluster. When it returns, every address is usable.
    ///
    /// # Errors
    ///
    /// [`LabError::Plan`] for two of a name or address, or an address outside
    /// its network; else what the kernel refused.
    pub fn build(self) -> Result<Cluster, LabError> {
        self.check()?;
        wiring::build(self)
    }

    pub(super) fn check(&self) -> Result<(), LabError> {
        let mut names = Vec::new();
        let mut addresses = Vec::new();
        for node in &self.nodes {
            names.push(node.name.as_str());
            addresses.extend([node.underlay, node.vtep(), node.gateway()]);
            if !self.underlay.contains(&node.underlay) {
                return Err(LabError::Plan(format!(
                    "node {}: address {} is not in the underlay {}",
                    node.name, node.underlay, self.underlay
                )));
            }
            for pod in &node.pods {
                names.push(pod.name.as_str());
                let (address, _) = node.addresses_of(pod);
                addresses.push(address);
                if !node.pod_cidr.contains(&address) {
                    return Err(LabError::Plan(format!(
                        "pod {}: address {address} is not in {} of node {}",
                        pod.name, node.pod_cidr, node.name
                    )));
                }
            }
        }
        refuse_twice("name", names)?;
        refuse_twice("address", addresses)
    }
}

/// What a node is to be.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) underlay: Ipv4Addr,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) pod_cidr6: Ipv6Net,
    pub(super) interface: String,
    pub(super) pods: Vec<PodSpec>,
}

impl NodeSpec {
    /// A node with its address between the nodes and its pods' network.
    ///
    /// As flannel has it, the network's own address becomes the vxlan device's.
    /// IPv6 networks follow the IPv4 ones, digit for digit: beside 10.1.65.0/24
    /// stands fd00:10:1:65::/64.
    pub fn new(name: &str, underlay: Ipv4Addr, pod_cidr: Ipv4Net) -> Self {
        let pod_cidr = pod_cidr.trunc();
        Self {
            name: name.to_owned(),
            underlay,
            pod_cidr,
            pod_cidr6: ipv6_net(digits_as_ipv6(pod_cidr.network()), 64),
            interface: "eth0".to_owned(),
            pods: Vec::new(),
        }
    }

    /// The pods' IPv6 network, where it should not follow the IPv4 one.
    pub fn pod_cidr6(mut self, network: Ipv6Net) -> Self {
        self.pod_cidr6 = network.trunc();
        self
    }

    /// Name of the interface between the nodes, `eth0` unless said otherwise.
    pub fn interface(mut self, name: &str) -> Self {
        name.clone_into(&mut self.interface);
        self
    }

    /// Adds a pod.
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Address of the node's vxlan device.
    pub(super) fn vtep(&self) -> Ipv4Addr {
        self.pod_cidr.network()
    }

    /// IPv6 address of the node's vxlan device.
    pub(super) fn vtep6(&self) -> Ipv6Addr {
        self.pod_cidr6.network()
    }

    /// The pods' default gateway, on the bridge.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        nth(self.pod_cidr, 1)
    }

    /// The pods' IPv6 default gateway, on the bridge.
    pub(super) fn gateway6(&self) -> Ipv6Addr {
        nth6(self.pod_cidr6, 1)
    }

    pub(super) fn addresses_of(&self, pod: &PodSpec) -> (Ipv4Addr, Ipv6Addr) {
        let ipv4 = nth(self.pod_cidr, pod.host);
        // Digit for digit again: host 10 is ::10, as one would write it.
        let digits = digits_as_hex(pod.host);
        (ipv4, nth6(self.pod_cidr6, digits))
    }
}

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(super) name: String,
    pub(super) host: u32,
}

impl PodSpec {
    /// A pod by its number in the node's pod network: 5 is 10.1.65.5 and
    /// fd00:10:1:65::5.
    pub fn new(name: &str, host: u32) -> Self {
        Self {
            name: name.to_owned(),
            host,
        }
    }
}

fn refuse_twice<T: Ord + std::fmt::Display>(what: &str, mut all: Vec<T>) -> Result<(), LabError> {
    all.sort();
    match all.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LabError::Plan(format!("{what} {} is used twice", pair[0]))),
        None => Ok(()),
    }
}

/// 10.1.65.5 as fd00:10:1:65::5: each decimal number written in hexadecimal
/// digits, so that a person reads the same in both families.
pub(super) fn digits_as_ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(|octet| {
        u16::try_from(digits_as_hex(octet.into())).unwrap_or_default() // at most 0x255
    });
    Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, d)
}

/// 65 as 0x65.
fn digits_as_hex(number: u32) -> u32 {
    if number == 0 {
        0
    } else {
        digits_as_hex(number / 10) * 16 + number % 10
    }
}

/// The address with this number in the network.
pub(super) fn nth(network: Ipv4Net, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).wrapping_add(host))
}

fn nth6(network: Ipv6Net, host: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network.network()).wrapping_add(host.into()))
}

fn ipv4_net(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(octets.into(), prefix)
}

fn ipv6_net(address: Ipv6Addr, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(address, prefix).trunc()
}

#[cfg(test)]
mod tests;
