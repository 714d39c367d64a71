//! The few netlink requests that a cluster is made of.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
};

use super::error::LabError;
use super::namespace::Namespace;

/// A link-layer address.
pub(super) type Mac = [u8; 6];

/// Loopback has index 1 in every network namespace (net/core/dev.c).
const LOOPBACK_INDEX: u32 = 1;

/// How long interfaces may take to come up; they take milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Runs `work` with a netlink handle of the calling thread's namespace.
pub(super) fn with_handle<T>(work: impl AsyncFnOnce(Handle) -> T) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let done = work(handle).await;
        connection.abort();
        Ok(done)
    })
}

/// Brings up loopback in the calling thread's namespace.
pub(super) fn loopback_up() -> io::Result<()> {
    with_handle(async |handle| {
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        handle.link().set(up).execute().await
    })?
    .map_err(io::Error::other)
}

/// Netlink requests in one namespace; every error names the request. To be used
/// on the thread that made it.
pub(super) struct Requests<'a> {
    namespace: &'a Namespace,
    handle: Handle,
}

impl<'a> Requests<'a> {
    pub(super) fn new(namespace: &'a Namespace, handle: Handle) -> Self {
        Self { namespace, handle }
    }

    /// Adds a veth pair: `name` here, `peer.name` in the peer's namespace.
    pub(super) async fn add_veth(
        &self,
        name: &str,
        mtu: u32,
        peer: VethPeer<'_>,
    ) -> Result<(), LabError> {
        let mut there = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer.name)
            .mtu(mtu)
            .setns_by_fd(peer.namespace.as_fd().as_raw_fd());
        if let Some(mac) = peer.mac {
            there = there.address(mac.to_vec());
        }
        let there = there.build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, peer.name)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(there)))
            .build();
        self.add_link(
            message,
            &format!("link add {name} type veth peer {}", peer.name),
        )
        .await
    }

    pub(super) async fn add_bridge(&self, name: &str, mtu: u32, mac: Mac) -> Result<(), LabError> {
        // Without snooping nothing depends on a multicast querier, which the
        // bridges of the lab do not have: neighbour discovery just works.
        let message = LinkBridge::new(name)
            .mtu(mtu)
            .address(mac.to_vec())
            .mcast_snooping(false)
            .build();
        self.add_link(message, &format!("link add {name} type bridge"))
            .await
    }

    pub(super) async fn add_vxlan(&self, name: &str, vxlan: Vxlan<'_>) -> Result<(), LabError> {
        let message = LinkVxlan::new(name, vxlan.vni)
            .dev(self.index(vxlan.device)?)
            .local(vxlan.local)
            .port(vxlan.port)
            .learning(false)
            .mtu(vxlan.mtu)
            .address(vxlan.mac.to_vec())
            .build();
        self.add_link(
            message,
            &format!("link add {name} type vxlan id {}", vxlan.vni),
        )
        .await
    }

    pub(super) async fn join_bridge(&self, name: &str, bridge: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(name)?)
            .controller(self.index(bridge)?)
            .build();
        self.set_link(message, &format!("link set {name} master {bridge}"))
            .await
    }

    pub(super) async fn up(&self, name: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(name)?).up().build();
        self.set_link(message, &format!("link set {name} up")).await
    }

    pub(super) async fn add_address(
        &self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), LabError> {
        let mut request = self
            .handle
            .address()
            .add(self.index(name)?, address, prefix);
        if address.is_ipv6() {
            // Duplicate address detection takes a second, and there is nobody
            // to collide with.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.named(request.execute().await, || {
            format!("addr add {address}/{prefix} dev {name}")
        })
    }

    pub(super) async fn add_default_route(
        &self,
        name: &str,
        gateway: IpAddr,
    ) -> Result<(), LabError> {
        self.add_route(any(gateway), 0, gateway, name, false).await
    }

    /// `ip route add DESTINATION/PREFIX via GATEWAY dev NAME [onlink]`.
    pub(super) async fn add_route(
        &self,
        destination: IpAddr,
        prefix: u8,
        gateway: IpAddr,
        name: &str,
        onlink: bool,
    ) -> Result<(), LabError> {
        let step = || format!("route add {destination}/{prefix} via {gateway} dev {name}");
        let built = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(self.index(name)?)
            .destination_prefix(destination, prefix)
            .and_then(|route| route.gateway(gateway));
        let route = built.map_err(|error| LabError::Plan(format!("{}: {error}", step())))?;
        let route = if onlink { route.onlink() } else { route };
        self.named(self.handle.route().add(route.build()).execute().await, step)
    }

    /// A neighbour that needs no question asked, as flannel's daemon sets it.
    pub(super) async fn add_neighbour(
        &self,
        name: &str,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), LabError> {
        let request = self.handle.neighbours().add(self.index(name)?, address);
        self.named(request.link_layer_address(&mac).execute().await, || {
            format!("neigh add {address} dev {name} nud permanent")
        })
    }

    /// Where the vxlan sends frames for `mac`, as flannel's daemon sets it.
    pub(super) async fn add_forwarding(
        &self,
        name: &str,
        mac: Mac,
        remote: Ipv4Addr,
    ) -> Result<(), LabError> {
        let request = self.handle.neighbours().add_bridge(self.index(name)?, &mac);
        let request = request
            .destination(remote.into())
            .flags(NeighbourFlags::Own);
        self.named(request.execute().await, || {
            format!("bridge fdb add dev {name} dst {remote}")
        })
    }

    /// Takes an interface away; its veth peer goes with it.
    pub(super) async fn delete_link(&self, name: &str) -> Result<(), LabError> {
        let result = self.handle.link().del(self.index(name)?).execute().await;
        self.named(result, || format!("link del {name}"))
    }

    async fn add_link(&self, message: LinkMessage, step: &str) -> Result<(), LabError> {
        self.named(self.handle.link().add(message).execute().await, || {
            step.to_owned()
        })
    }

    async fn set_link(&self, message: LinkMessage, step: &str) -> Result<(), LabError> {
        self.named(self.handle.link().set(message).execute().await, || {
            step.to_owned()
        })
    }

    fn index(&self, name: &str) -> Result<u32, LabError> {
        if_nametoindex(name).map_err(|errno| LabError::Namespace {
            name: format!("{}, interface {name}", self.namespace.name()),
            step: "cannot find it",
            cause: errno.into(),
        })
    }

    fn named<T>(
        &self,
        result: Result<T, rtnetlink::Error>,
        step: impl FnOnce() -> String,
    ) -> Result<T, LabError> {
        result.map_err(|cause| LabError::Netlink {
            name: self.namespace.name().to_owned(),
            step: step(),
            cause,
        })
    }
}

/// The far end of a veth pair.
pub(super) struct VethPeer<'a> {
    /// Its name there.
    pub(super) name: &'a str,
    /// Where it lives.
    pub(super) namespace: &'a Namespace,
    /// Its address; the kernel's choice when None.
    pub(super) mac: Option<Mac>,
}

/// A vxlan device as flannel makes it.
pub(super) struct Vxlan<'a> {
    /// VXLAN network identifier.
    pub(super) vni: u32,
    /// UDP port.
    pub(super) port: u16,
    /// The device that carries it.
    pub(super) device: &'a str,
    /// The source address on that device.
    pub(super) local: Ipv4Addr,
    /// MTU of the overlay.
    pub(super) mtu: u32,
    /// Its own address.
    pub(super) mac: Mac,
}

/// Waits until every IPv6 address of the namespace may be used: until an
/// interface's carrier is noticed, its addresses are tentative.
pub(super) fn wait_until_ready(namespace: &Namespace) -> Result<(), LabError> {
    let deadline = Instant::now() + READY_WITHIN;
    namespace.run(|| {
        loop {
            let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6");
            let tentative = addresses.as_deref().ok().and_then(first_tentative);
            let Some(what) = tentative else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(LabError::NotReady {
                    name: namespace.name().to_owned(),
                    what: format!("IPv6 address {what}"),
                    seconds: READY_WITHIN.as_secs(),
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
    })
}

/// Lines of `address index prefix scope flags name`, all numbers in hexadecimal
/// (net/ipv6/addrconf.c, if6_seq_show).
fn first_tentative(addresses: &str) -> Option<String> {
    /// IFA_F_TENTATIVE, include/uapi/linux/if_addr.h.
    const TENTATIVE: u32 = 0x40;
    addresses.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(words.get(4)?, 16).ok()?;
        (flags & TENTATIVE != 0).then(|| format!("{} on {}", words[0], words.last().unwrap_or(&"")))
    })
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tentative_addresses_are_found() {
        let ready = "fe80000000000000085801fffe0a0105 02 40 20 80     eth0\n";
        let tentative = "fd000010000100650000000000000005 02 40 00 c0     eth0\n";
        assert_eq!(first_tentative(ready), None);
        let found = first_tentative(&format!("{ready}{tentative}")).unwrap();
        assert!(
            found.contains("fd00001000010065") && found.contains("eth0"),
            "{found}"
        );
    }
}
