//! The examples of ipstack and netstack-smoltcp: userspace stacks behind a TUN.
//!
//! ipstack's `tun` takes 10.3.0.1 and dials one real server. netstack-smoltcp's
//! `forward` dials the address that the client dialled, bound to an interface:
//! the real server has the VIP as well, and a second route, through the vxlan
//! device, leads there.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use kube_tun_proxy::lab::{Cluster, Namespace};

use super::{Found, NODE, SERVER, VIP};
use crate::process::Process;
use crate::wiring::{Route, add_local_address, add_route, wait_for_interface};

/// The address that ipstack's example takes, written into it.
pub(super) const IPSTACK_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);

/// The device of netstack-smoltcp's examples.
const NETSTACK_TUN: &str = "utun8";

pub(super) fn start_ipstack(
    node: &Namespace,
    found: &Found,
    real_server: SocketAddr,
) -> Result<Process> {
    let real_server = real_server.to_string();
    let arguments = ["--server-addr", &real_server, "--verbosity", "error"];
    Process::start(node, &found.program, arguments)
}

/// Gives the VIP to the real server's pod and leads the other node's packets
/// there; to be done before the real server listens.
pub(super) fn lead_vip_to_real_server(cluster: &Cluster) -> Result<()> {
    let pod = cluster.pod(SERVER);
    add_local_address(pod.namespace(), VIP)?;
    let other = cluster.node("node2");
    let route = Route {
        via: Some(pod.address()),
        device: cluster.pod_bridge(),
        metric: 0,
    };
    add_route(other.namespace(), VIP, route)
}

pub(super) fn start_netstack(cluster: &Cluster, found: &Found) -> Result<Process> {
    let node = cluster.node(NODE).namespace();
    let device = cluster.overlay();
    let arguments = ["-i", device, "-n", NETSTACK_TUN, "--log-level", "ERROR"];
    let mut process = Process::start(node, &found.program, arguments)?;
    wait_for_interface(node, NETSTACK_TUN, &mut process)?;
    let into_tun = Route {
        via: None,
        device: NETSTACK_TUN,
        metric: 0,
    };
    add_route(node, VIP, into_tun)?;
    let out = Route {
        via: Some(cluster.node("node2").overlay_address()),
        device,
        metric: 100,
    };
    add_route(node, VIP, out)?;
    Ok(process)
}
