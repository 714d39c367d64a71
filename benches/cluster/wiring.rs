//! Addresses and routes that some systems need besides the lab's own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube_tun_proxy::lab::{LabError, Namespace};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use rtnetlink::RouteMessageBuilder;

use crate::process::Process;

/// Loopback has index 1 in every network namespace (net/core/dev.c).
const LOOPBACK_INDEX: u32 = 1;

/// How long a peer may take to make its interface.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// The way to a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    /// The next hop, on the link even if no address says so.
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) device: &'a str,
    /// The least wins.
    pub(crate) metric: u32,
}

/// Makes an address the namespace's own.
pub(crate) fn add_local_address(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    namespace.netlink(async |handle| {
        handle
            .address()
            .add(LOOPBACK_INDEX, IpAddr::V4(address), 32)
            .execute()
            .await
            .map_err(|cause| LabError::Netlink {
                name: namespace.name().to_owned(),
                step: format!("address add {address}/32 dev lo"),
                cause,
            })
    })?;
    Ok(())
}

/// Adds a route to a host.
pub(crate) fn add_route(namespace: &Namespace, to: Ipv4Addr, route: Route<'_>) -> Result<()> {
    let index = namespace.run(|| if_nametoindex(route.device))?;
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to, 32)
        .output_interface(index)
        .priority(route.metric);
    if let Some(via) = route.via {
        message = message.gateway(via).onlink();
    }
    let message = message.build();
    namespace.netlink(async |handle| {
        let added = handle.route().add(message).execute().await;
        added.map_err(|cause| LabError::Netlink {
            name: namespace.name().to_owned(),
            step: format!("route add {to} {route:?}"),
            cause,
        })
    })?;
    Ok(())
}

/// Waits until a peer has made its interface and set it up: no route leads into one
/// that is down.
pub(crate) fn wait_for_interface(
    namespace: &Namespace,
    name: &str,
    peer: &mut Process,
) -> Result<()> {
    wait(peer, &format!("interface {name}"), || {
        namespace.run(|| {
            let is_it = |one: InterfaceAddress| {
                one.interface_name == name && one.flags.contains(InterfaceFlags::IFF_UP)
            };
            getifaddrs().is_ok_and(|mut all| all.any(is_it))
        })
    })
}

/// Waits until a namespace has a default route.
pub(crate) fn wait_for_default_route(namespace: &Namespace, peer: &mut Process) -> Result<()> {
    wait(peer, "default route", || {
        // Destination 0 (fib_route in net/ipv4/fib_trie.c), behind the interface.
        let routes = namespace.run(|| fs::read_to_string("/proc/thread-self/net/route"));
        routes.is_ok_and(|text| {
            let destinations = text.lines().skip(1);
            destinations
                .filter_map(|line| line.split_whitespace().nth(1))
                .any(|destination| destination == "00000000")
        })
    })
}

fn wait(peer: &mut Process, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    while !done() {
        if peer.has_ended() || Instant::now() > deadline {
            bail!("no {what}; {}", peer.log().trim());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
