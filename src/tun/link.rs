//! The TUN as a network device: MTU, own addresses, service routes.
//!
//! Everything goes through netlink, on the control runtime and in the network
//! namespace of the thread that calls [`Link::configure`]. Nothing is undone at
//! the end: addresses and routes go with the device.
//!
//! # Own addresses
//!
//! The preferred source of the service routes, so that a client on the node has
//! an address that says "by way of the TUN" and not, say, flannel's. They never
//! leave the node: the real server sees what the proxy's own socket has. They
//! must not be picked for any other traffic either, so the IPv4 address has link
//! scope (inet_select_addr, net/ipv4/devinet.c, does not lend such an address to
//! another device) and the IPv6 address is deprecated (RFC 6724 section 5,
//! rule 3). A route's explicit preferred source is exempt from both.
//!
//! # Quiet
//!
//! The kernel itself would send router solicitations and multicast reports into
//! the device. It gets no link-local address (addr_gen_mode none), does no
//! duplicate address detection, is no multicast device, and has no multicast
//! route. No sysctl is touched: replies come from where the service routes lead,
//! which a strict reverse-path filter accepts.

mod conflicts;
mod netlink;
mod prepared;
mod routes;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::error::TunError;
use netlink::Netlink;
use routes::Route;

/// MTU of the TUN, in bytes. With TSO a packet is up to 64 KiB at any MTU, and
/// bulk transfer was faster with 1500 than with 65535 in each direction: 17.3
/// against 13.0 Gbit/s up and 11.8 against 7.3 down on one node (iperf3, two-core
/// machine).
pub const DEFAULT_MTU: u32 = 1500;

/// Packets a queue holds before it drops, silently; the client then waits for
/// its retransmission timer. The kernel's own default of 500 (TUN_READQ_SIZE)
/// overflows in a burst; a slot costs 8 bytes.
pub const DEFAULT_TX_QUEUE_LEN: u32 = 10_000;

/// The TUN's IPv4 address: link-local (RFC 3927), so that nothing which looks
/// for "the node's address" takes it; the last two bytes are ASCII `TN`. Not
/// among those in use on nodes: 169.254.169.254 (metadata), 169.254.20.10
/// (node-local DNS), 169.254.1.1 (Calico), 169.254.7.127 (istio).
pub const DEFAULT_ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0x54, 0x4e);

/// The TUN's IPv6 address: a unique local one (RFC 4193) with a global id drawn
/// once for this program. A link-local one would make the kernel send router
/// solicitations, and a client that prints its address would have to add a scope.
pub const DEFAULT_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfdaf, 0xdf1a, 0xd6a2, 0, 0, 0, 0, 1);

/// How often, and for how long, to look whether an address is in use: it takes
/// well under a millisecond on an idle machine.
const ADDRESS_POLL: Duration = Duration::from_millis(1);
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// What the device shall be like.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Its name, for messages.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// MTU in bytes: 68 to 65,535; below 1280 there is no IPv6 (RFC 8200
    /// section 5).
    pub mtu: u32,
    /// Packets a queue holds.
    pub tx_queue_len: u32,
    /// Own addresses, as host addresses; the first of a family is the preferred
    /// source of that family's service routes. A family without one leaves the
    /// choice to the kernel.
    pub addresses: Vec<IpAddr>,
    /// Prefixes to be routed into the device.
    pub service_routes: Vec<IpNet>,
}

/// A device that is configured and up.
#[derive(Debug)]
pub struct Link {
    netlink: Netlink,
    name: String,
    index: u32,
    addresses: Vec<IpAddr>,
    ipv6_missing: Option<io::Error>,
}

impl LinkConfig {
    /// The defaults, without routes, for the device of [`Queues`](super::Queues).
    pub fn new(name: impl Into<String>, index: u32) -> Self {
        Self {
            name: name.into(),
            index,
            mtu: DEFAULT_MTU,
            tx_queue_len: DEFAULT_TX_QUEUE_LEN,
            addresses: Self::addresses_or_default(&[]),
            service_routes: Vec::new(),
        }
    }

    /// The addresses given (`--tun-address`), and the default for a family of
    /// which none is given.
    pub fn addresses_or_default(given: &[IpAddr]) -> Vec<IpAddr> {
        let mut addresses = given.to_vec();
        if !given.iter().any(IpAddr::is_ipv4) {
            addresses.push(DEFAULT_ADDRESS_V4.into());
        }
        if !given.iter().any(IpAddr::is_ipv6) {
            addresses.push(DEFAULT_ADDRESS_V6.into());
        }
        addresses
    }
}

impl Link {
    /// Sets the device up, brings it up, and routes the services into it.
    ///
    /// Where the node has no IPv6, IPv6 addresses and routes are left out, now
    /// and later; [`ipv6_missing`](Self::ipv6_missing) then says why.
    ///
    /// # Errors
    ///
    /// No CAP_NET_ADMIN; an address in use elsewhere or inside a service range;
    /// a service range, or a part of it, that is routed elsewhere. Conflicts are
    /// looked for before anything is changed.
    pub async fn configure(config: LinkConfig) -> Result<Self, TunError> {
        let LinkConfig {
            name,
            index,
            mtu,
            tx_queue_len,
            addresses,
            service_routes,
        } = config;
        let netlink = Netlink::open(&name)?;
        let mut link = Self {
            netlink,
            name,
            index,
            addresses,
            ipv6_missing: None,
        };

        link.check_addresses(&service_routes).await?;
        link.check_conflicts(&service_routes).await?;

        link.netlink
            .set_link(index, mtu, tx_queue_len)
            .await
            .map_err(|source| {
                link.error(
                    format!("setting MTU {mtu} and queue length {tx_queue_len}"),
                    source,
                )
            })?;
        link.silence_ipv6().await?;
        link.add_addresses().await?;
        link.netlink
            .set_up(index)
            .await
            .map_err(|source| link.error("bringing it up".to_owned(), source))?;
        link.await_addresses().await?;
        for &route in &service_routes {
            link.add_checked_route(route).await?;
        }
        Ok(link)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Why there is no IPv6 on the device; `None` while there is.
    pub fn ipv6_missing(&self) -> Option<&io::Error> {
        self.ipv6_missing.as_ref()
    }

    /// The prefixes that are routed into the device, by whomever.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn routes(&self) -> Result<Vec<IpNet>, TunError> {
        let mut found = Vec::new();
        for v6 in [false, true] {
            let routes = match self.netlink.routes(v6).await {
                Ok(routes) => routes,
                Err(source) if v6 && means_no_ipv6(&source) => continue,
                Err(source) => {
                    return Err(self.error("reading the routing table".to_owned(), source));
                }
            };
            let ours = routes.iter().filter(|route| {
                route.table == routes::MAIN_TABLE
                    && route.device == Some(self.index)
                    && !route.is_local()
                    && !self.addresses.contains(&route.prefix.addr())
            });
            found.extend(ours.map(|route| route.prefix));
        }
        Ok(found)
    }

    /// Routes one more prefix into the device. One that is routed into it
    /// already is no error. An IPv6 prefix on a node without IPv6 is left out.
    ///
    /// # Errors
    ///
    /// As [`configure`](Self::configure); the route is not set then.
    pub async fn add_route(&self, route: IpNet) -> Result<(), TunError> {
        self.check_ranges(&[route])?;
        // Nothing fits into a host route, and a second route for the same host
        // is found when adding: this spares reading the whole table, which
        // matters where every service has a route of its own.
        if route.prefix_len() != route.max_prefix_len() {
            self.check_conflicts(&[route]).await?;
        }
        self.add_checked_route(route).await
    }

    /// Takes a route out again. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn remove_route(&self, route: IpNet) -> Result<(), TunError> {
        match self.netlink.delete_route(route.trunc(), self.index).await {
            Ok(()) => Ok(()),
            // ESRCH: no such route. ENETDOWN, EAFNOSUPPORT and the like: there
            // never was one, since the family is missing.
            Err(source) if source.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(_) if self.leaves_out(route.addr()) => Ok(()),
            Err(source) => Err(self.error(format!("removing the route {route}"), source)),
        }
    }

    /// Whether the family of this address is missing on the node.
    fn leaves_out(&self, address: IpAddr) -> bool {
        self.ipv6_missing.is_some() && address.is_ipv6()
    }

    /// Our addresses must be nobody's, and no service's.
    async fn check_addresses(&self, service_routes: &[IpNet]) -> Result<(), TunError> {
        self.check_ranges(service_routes)?;
        let taken = self
            .netlink
            .addresses()
            .await
            .map_err(|source| self.error("reading the node's addresses".to_owned(), source))?;
        for &address in &self.addresses {
            let holder = taken
                .iter()
                .find(|(a, index)| *a == address && *index != self.index);
            if let Some(&(_, index)) = holder {
                return Err(TunError::AddressInUse {
                    name: self.name.clone(),
                    address,
                    other: self.netlink.device_name(index).await,
                });
            }
        }
        Ok(())
    }

    fn check_ranges(&self, service_routes: &[IpNet]) -> Result<(), TunError> {
        for &address in &self.addresses {
            if let Some(&route) = service_routes.iter().find(|route| route.contains(&address)) {
                let name = self.name.clone();
                return Err(TunError::AddressInServiceRange {
                    name,
                    address,
                    route,
                });
            }
        }
        Ok(())
    }

    /// Looks in the main table for routes that would take the traffic away.
    async fn check_conflicts(&self, wanted: &[IpNet]) -> Result<(), TunError> {
        for v6 in [false, true] {
            let of_family = |route: &&IpNet| route.addr().is_ipv6() == v6;
            if !wanted.iter().any(|route| of_family(&route)) {
                continue;
            }
            let existing = match self.netlink.routes(v6).await {
                Ok(existing) => existing,
                Err(source) if v6 && means_no_ipv6(&source) => continue,
                Err(source) => {
                    return Err(self.error("reading the routing table".to_owned(), source));
                }
            };
            for &route in wanted.iter().filter(of_family) {
                if let Some(found) = routes::find_conflict(&existing, route, self.index) {
                    return Err(self.conflict(route, found).await);
                }
            }
        }
        Ok(())
    }

    async fn conflict(&self, route: IpNet, with: &Route) -> TunError {
        TunError::RouteConflict {
            name: self.name.clone(),
            route,
            existing: with.prefix,
            target: self.target(with).await,
        }
    }

    /// Where a route leads, as `ip route` prints it.
    async fn target(&self, route: &Route) -> String {
        match (route.kind_name(), route.device) {
            (Some(kind), _) => kind.to_owned(),
            (None, Some(index)) => format!("dev {}", self.netlink.device_name(index).await),
            (None, None) => "elsewhere".to_owned(),
        }
    }

    /// Must come before the device is up, since that is when the kernel makes a
    /// link-local address.
    async fn silence_ipv6(&mut self) -> Result<(), TunError> {
        match self.netlink.no_link_local(self.index).await {
            Ok(()) => Ok(()),
            Err(source) if means_no_ipv6(&source) => {
                self.note_ipv6_missing(source);
                Ok(())
            }
            Err(source) => Err(self.error("setting addr_gen_mode none".to_owned(), source)),
        }
    }

    async fn add_addresses(&mut self) -> Result<(), TunError> {
        for address in self.addresses.clone() {
            if self.leaves_out(address) {
                continue;
            }
            match self.netlink.add_address(self.index, address).await {
                Ok(()) => {}
                // The device was taken over; that it is ours was checked.
                Err(source) if source.raw_os_error() == Some(libc::EEXIST) => {}
                Err(source) if address.is_ipv6() && means_no_ipv6(&source) => {
                    self.note_ipv6_missing(source);
                }
                Err(source) => {
                    return Err(self.error(format!("adding the address {address}"), source));
                }
            }
        }
        Ok(())
    }

    /// Waits until the kernel takes packets for our addresses. For IPv6 a work
    /// queue sees to that, some time after the device is up
    /// (addrconf_dad_work, net/ipv6/addrconf.c); a reply written before would be
    /// lost. No event tells of it: the address is announced before its local
    /// route is in.
    async fn await_addresses(&self) -> Result<(), TunError> {
        for &address in &self.addresses {
            if self.leaves_out(address) {
                continue;
            }
            let local = async {
                loop {
                    match self.netlink.lookup(address).await {
                        Ok(route) if route.is_local() => return,
                        Ok(_) | Err(_) => sleep(ADDRESS_POLL).await,
                    }
                }
            };
            timeout(ADDRESS_PATIENCE, local).await.map_err(|elapsed| {
                self.error(format!("waiting for the address {address}"), elapsed.into())
            })?;
        }
        Ok(())
    }

    /// Adds a route, makes sure that it is followed, and takes it back if not.
    async fn add_checked_route(&self, route: IpNet) -> Result<(), TunError> {
        let route = route.trunc();
        if self.leaves_out(route.addr()) {
            debug!(device = self.name, %route, "route left out, no IPv6");
            return Ok(());
        }
        let same_family = |a: &&IpAddr| a.is_ipv4() == route.addr().is_ipv4();
        let source = self.addresses.iter().find(same_family).copied();
        match self.netlink.add_route(route, self.index, source).await {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                // Either ours or somebody's.
                self.check_conflicts(&[route]).await?;
            }
            // Without privilege what is there already will do.
            Err(error)
                if error.raw_os_error() == Some(libc::EPERM) && self.has_route(route).await => {}
            Err(error) => return Err(self.error(format!("adding the route {route}"), error)),
        }
        let followed = self.check_followed(route).await;
        if followed.is_err() {
            self.remove_route(route).await?;
        }
        followed
    }

    /// Asks the kernel where it would send a packet for this prefix.
    async fn check_followed(&self, route: IpNet) -> Result<(), TunError> {
        let probe = routes::probe(route);
        let bypassed = |target: String, table: u32| TunError::RouteBypassed {
            name: self.name.clone(),
            route,
            probe,
            target,
            table,
        };
        match self.netlink.lookup(probe).await {
            // An address of the node's own goes by the local table, before all
            // others: with IPVS all service addresses are there, and it is
            // right that they do not come to us.
            Ok(found) if found.device == Some(self.index) || found.is_local() => Ok(()),
            Ok(found) => Err(bypassed(self.target(&found).await, found.table)),
            // A blackhole, prohibit or unreachable route answers by an error.
            Err(source) => match source.raw_os_error() {
                Some(libc::EINVAL) => Err(bypassed("blackhole".to_owned(), 0)),
                Some(libc::EACCES) => Err(bypassed("prohibit".to_owned(), 0)),
                Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => {
                    Err(bypassed("unreachable".to_owned(), 0))
                }
                _ => Err(self.error(format!("looking up the route to {probe}"), source)),
            },
        }
    }

    fn note_ipv6_missing(&mut self, reason: io::Error) {
        warn!(device = self.name, %reason, "no IPv6 on this node: IPv6 services are not served");
        self.ipv6_missing = Some(reason);
    }

    fn error(&self, operation: String, source: io::Error) -> TunError {
        let name = self.name.clone();
        if source.raw_os_error() == Some(libc::EPERM) {
            TunError::NoCapability {
                name,
                operation,
                source,
            }
        } else {
            TunError::Link {
                name,
                operation,
                source,
            }
        }
    }
}

/// What the kernel answers to an IPv6 request where it has no IPv6
/// (`ipv6.disable=1`: nobody has registered for it) or where it is switched off
/// (`disable_ipv6`: EACCES since Linux 2.6.33; a missing permission is EPERM).
fn means_no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EACCES)
    )
}
