//! From a plan to interfaces, addresses and routes.
//!
//! ```text
//!  outside: br-underlay 172.100.101.1 ─┬─ node1 ═ eth0 in master (172.100.101.192)
//!                                      └─ node2 ═ eth0 in node2  (172.100.101.193)
//!  node: flannel.1 (vxlan over eth0) · cni0 ─ vethN ═ eth0 in a pod
//! ```

use std::net::{IpAddr, Ipv4Addr};

use super::cluster::{Cluster, Node, Pod};
use super::error::LabError;
use super::namespace::Namespace;
use super::netlink::{Mac, Requests, VethPeer, Vxlan, wait_until_ready};
use super::plan::{ClusterBuilder, NodeSpec, PodSpec, digits_as_ipv6, nth};

/// The bridge between the nodes.
const UNDERLAY_BRIDGE: &str = "br-underlay";

/// The interface in a pod.
const POD_INTERFACE: &str = "eth0";

/// Prefix of the IPv6 networks, between the nodes too.
const IPV6_PREFIX: u8 = 64;

/// Settings of every namespace.
const SYSCTLS: [(&str, &str); 11] = [
    // An address that may be used at once; nobody advertises routers.
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.dad_transmits", "0"),
    ("net.ipv6.conf.all.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    // Inherited from the machine, which may have either.
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    // ICMP sockets for group 0, the only one sure to exist in here.
    ("net.ipv4.ping_group_range", "0 0"),
];

/// Settings of a node besides.
const NODE_SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
];

/// Makes everything that the plan names.
pub(super) fn build(plan: ClusterBuilder) -> Result<Cluster, LabError> {
    let switch = new_namespace(&plan, "outside")?;
    let gateway = nth(plan.underlay, 1);
    switch.netlink(async |handle| {
        let requests = Requests::new(&switch, handle);
        requests
            .add_bridge(UNDERLAY_BRIDGE, plan.underlay_mtu, mac_of(0x02, gateway))
            .await?;
        requests
            .add_address(UNDERLAY_BRIDGE, gateway.into(), plan.underlay.prefix_len())
            .await?;
        let gateway6 = digits_as_ipv6(gateway).into();
        requests
            .add_address(UNDERLAY_BRIDGE, gateway6, IPV6_PREFIX)
            .await?;
        requests.up(UNDERLAY_BRIDGE).await
    })?;
    let mut nodes = Vec::with_capacity(plan.nodes.len());
    for (number, spec) in plan.nodes.iter().enumerate() {
        nodes.push(build_node(&plan, &switch, spec, number + 1)?);
    }
    for namespace in nodes.iter().map(Node::namespace).chain([&switch]) {
        wait_until_ready(namespace)?;
    }
    Ok(Cluster {
        plan,
        switch,
        nodes,
    })
}

fn build_node(
    plan: &ClusterBuilder,
    switch: &Namespace,
    spec: &NodeSpec,
    number: usize,
) -> Result<Node, LabError> {
    let namespace = new_namespace(plan, &spec.name)?;
    namespace.set_sysctls(&NODE_SYSCTLS)?;
    switch.netlink(async |handle| {
        let requests = Requests::new(switch, handle);
        let port = format!("node{number}");
        let peer = VethPeer {
            name: &spec.interface,
            namespace: &namespace,
            mac: Some(mac_of(0x02, spec.underlay)),
        };
        requests.add_veth(&port, plan.underlay_mtu, peer).await?;
        requests.join_bridge(&port, UNDERLAY_BRIDGE).await?;
        requests.up(&port).await
    })?;
    namespace.netlink(async |handle| {
        let requests = Requests::new(&namespace, handle);
        connect_underlay(&requests, plan, spec).await?;
        connect_overlay(&requests, plan, spec).await
    })?;
    let mut pods = Vec::with_capacity(spec.pods.len());
    for pod in &spec.pods {
        pods.push(add_pod(plan, spec, &namespace, pod)?);
    }
    Ok(Node {
        spec: spec.clone(),
        namespace,
        pod_bridge: plan.pod_bridge.clone(),
        pods,
    })
}

async fn connect_underlay(
    requests: &Requests<'_>,
    plan: &ClusterBuilder,
    spec: &NodeSpec,
) -> Result<(), LabError> {
    let interface = spec.interface.as_str();
    requests
        .add_address(interface, spec.underlay.into(), plan.underlay.prefix_len())
        .await?;
    requests
        .add_address(interface, digits_as_ipv6(spec.underlay).into(), IPV6_PREFIX)
        .await?;
    requests.up(interface).await?;
    let gateway = nth(plan.underlay, 1);
    requests
        .add_default_route(interface, gateway.into())
        .await?;
    requests
        .add_default_route(interface, digits_as_ipv6(gateway).into())
        .await
}

/// The vxlan device and, for every other node, what flannel's daemon sets: a
/// route to its pods, the neighbour it goes through, where that one's frames go.
async fn connect_overlay(
    requests: &Requests<'_>,
    plan: &ClusterBuilder,
    spec: &NodeSpec,
) -> Result<(), LabError> {
    let overlay = plan.overlay.as_str();
    let vxlan = Vxlan {
        vni: plan.overlay_vni,
        port: plan.overlay_port,
        device: &spec.interface,
        local: spec.underlay,
        mtu: plan.pod_mtu,
        mac: mac_of(0x0e, spec.vtep()),
    };
    requests.add_vxlan(overlay, vxlan).await?;
    requests
        .add_address(overlay, spec.vtep().into(), 32)
        .await?;
    requests
        .add_address(overlay, spec.vtep6().into(), 128)
        .await?;
    requests.up(overlay).await?;
    for other in plan.nodes.iter().filter(|other| other.name != spec.name) {
        let mac = mac_of(0x0e, other.vtep());
        requests
            .add_forwarding(overlay, mac, other.underlay)
            .await?;
        let ways: [(IpAddr, u8); 2] = [
            (other.vtep().into(), other.pod_cidr.prefix_len()),
            (other.vtep6().into(), other.pod_cidr6.prefix_len()),
        ];
        for (via, prefix) in ways {
            requests.add_neighbour(overlay, via, mac).await?;
            requests.add_route(via, prefix, via, overlay, true).await?;
        }
    }
    Ok(())
}

/// Makes a pod on a node, and the node's bridge if it is the first.
pub(super) fn add_pod(
    plan: &ClusterBuilder,
    spec: &NodeSpec,
    node: &Namespace,
    pod: &PodSpec,
) -> Result<Pod, LabError> {
    let namespace = new_namespace(plan, &pod.name)?;
    let (ipv4, ipv6) = spec.addresses_of(pod);
    let bridge = plan.pod_bridge.as_str();
    node.netlink(async |handle| {
        let requests = Requests::new(node, handle);
        if nix::net::if_::if_nametoindex(bridge).is_err() {
            requests
                .add_bridge(bridge, plan.pod_mtu, mac_of(0x0a, spec.gateway()))
                .await?;
            let (prefix, prefix6) = (spec.pod_cidr.prefix_len(), spec.pod_cidr6.prefix_len());
            requests
                .add_address(bridge, spec.gateway().into(), prefix)
                .await?;
            requests
                .add_address(bridge, spec.gateway6().into(), prefix6)
                .await?;
            requests.up(bridge).await?;
        }
        let port = pod_port(ipv4);
        let peer = VethPeer {
            name: POD_INTERFACE,
            namespace: &namespace,
            mac: Some(mac_of(0x0a, ipv4)),
        };
        requests.add_veth(&port, plan.pod_mtu, peer).await?;
        requests.join_bridge(&port, bridge).await?;
        requests.up(&port).await
    })?;
    namespace.netlink(async |handle| {
        let requests = Requests::new(&namespace, handle);
        requests
            .add_address(POD_INTERFACE, ipv4.into(), spec.pod_cidr.prefix_len())
            .await?;
        requests
            .add_address(POD_INTERFACE, ipv6.into(), spec.pod_cidr6.prefix_len())
            .await?;
        requests.up(POD_INTERFACE).await?;
        requests
            .add_default_route(POD_INTERFACE, spec.gateway().into())
            .await?;
        requests
            .add_default_route(POD_INTERFACE, spec.gateway6().into())
            .await
    })?;
    wait_until_ready(&namespace)?;
    wait_until_ready(node)?;
    Ok(Pod {
        name: pod.name.clone(),
        namespace,
        ipv4,
        ipv6,
    })
}

/// Takes the node's end of a pod's veth away, and the pod's with it.
pub(super) fn remove_pod(node: &Namespace, pod: Ipv4Addr) -> Result<(), LabError> {
    node.netlink(async |handle| {
        Requests::new(node, handle)
            .delete_link(&pod_port(pod))
            .await
    })
}

/// A pod's interface on its node: unique there, and below the 15 characters
/// that a name may have.
fn pod_port(pod: Ipv4Addr) -> String {
    format!("veth{:08x}", u32::from(pod))
}

fn new_namespace(plan: &ClusterBuilder, name: &str) -> Result<Namespace, LabError> {
    let namespace = Namespace::new(name)?;
    let own = plan
        .sysctls
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let all: Vec<(&str, &str)> = SYSCTLS.into_iter().chain(own).collect();
    namespace.set_sysctls(&all)?;
    Ok(namespace)
}

/// A unicast link-layer address of the given kind (locally administered), from
/// the IPv4 address: readable in a capture, and unique in its segment.
fn mac_of(kind: u8, address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [kind, 0x58, a, b, c, d]
}
