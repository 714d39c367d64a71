//! The netlink requests that the TUN needs, each as one call.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;
use tracing::debug;

use super::routes::Route;
use crate::tun::error::TunError;

/// INFINITY_LIFE_TIME (include/net/addrconf.h): the address stays.
const FOREVER: u32 = u32::MAX;

/// RFC 8200 section 5.
const IPV6_MIN_MTU: u32 = 1280;

/// RT_TABLE_LOCAL (include/uapi/linux/rtnetlink.h).
const LOCAL_TABLE: u32 = 255;

/// A netlink socket of the network namespace that the opening thread was in, and
/// the task that carries it.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    /// Opens the socket and starts its task on the present runtime; `name` is
    /// for the error only.
    pub(super) fn open(name: &str) -> Result<Self, TunError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| TunError::Netlink {
                name: name.to_owned(),
                source,
            })?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }

    /// Makes the device quiet, and sets what is asked for. It must be down.
    pub(super) async fn set_link(&self, index: u32, mtu: u32, queue_len: u32) -> io::Result<()> {
        // A new device on a node that forwards has joined the routers' multicast
        // group already, and would report that when it comes up. Below its
        // smallest MTU IPv6 forgets the device; it meets it anew at the MTU asked
        // for, and then joins nothing, for want of the multicast flag
        // (addrconf_notify and ipv6_add_dev, net/ipv6/addrconf.c).
        let quiet = LinkUnspec::new_with_index(index)
            .mtu(IPV6_MIN_MTU - 1)
            .multicast(false);
        self.set(quiet.build()).await?;
        self.set(
            LinkUnspec::new_with_index(index)
                .mtu(mtu)
                .txqueuelen(queue_len)
                .build(),
        )
        .await
    }

    /// Keeps the kernel from making itself a link-local address.
    pub(super) async fn no_link_local(&self, index: u32) -> io::Result<()> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![mode],
            )]))
            .build();
        self.set(message).await
    }

    /// Brings the device up, and takes out the route by which an IPv6 multicast
    /// packet whose sender names no device might go into it.
    pub(super) async fn set_up(&self, index: u32) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(index).up().build())
            .await?;
        let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)
            .output_interface(index)
            .kind(RouteType::Multicast)
            .table_id(LOCAL_TABLE)
            .build();
        route.header.protocol = RouteProtocol::Kernel;
        match self.handle.route().del(route).execute().await {
            Ok(()) => Ok(()),
            // Older kernels and nodes without IPv6 have none.
            Err(error) => {
                debug!(index, %error, "no IPv6 multicast route to take out");
                Ok(())
            }
        }
    }

    async fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(io_error)
    }

    /// Adds a host address that serves as a route's preferred source and for
    /// nothing else; the module [`link`](super) says how.
    pub(super) async fn add_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, address, prefix_len);
        let message = request.message_mut();
        if address.is_ipv4() {
            message.header.scope = AddressScope::Link;
        } else {
            // No DAD, since a tentative address cannot be a preferred source.
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(flags));
            // Preferred for 0 seconds: deprecated from the start.
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = 0;
            lifetime.ifa_valid = FOREVER;
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetime));
        }
        request.execute().await.map_err(io_error)
    }

    /// Every address of the node, with the index of its device.
    pub(super) async fn addresses(&self) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut stream = std::pin::pin!(self.handle.address().get().execute());
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(io_error)? {
            for attribute in &message.attributes {
                // IPv4 has the own address in Local, IPv6 in Address.
                if let AddressAttribute::Address(address) | AddressAttribute::Local(address) =
                    attribute
                {
                    found.push((*address, message.header.index));
                }
            }
        }
        Ok(found)
    }

    /// Every route of a family, of all tables.
    pub(super) async fn routes(&self, v6: bool) -> io::Result<Vec<Route>> {
        let filter = if v6 {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        };
        let mut stream = std::pin::pin!(self.handle.route().get(filter).execute());
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(io_error)? {
            found.extend(Route::from_message(&message));
        }
        Ok(found)
    }

    /// The route that a packet of this node to `address` would take.
    pub(super) async fn lookup(&self, address: IpAddr) -> io::Result<Route> {
        let mut message = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        // Without it the answer names the main table, whatever the truth.
        message.header.flags |= RouteFlags::LookupTable;
        let mut stream = std::pin::pin!(self.handle.route().get(message).execute());
        let answer = stream.try_next().await.map_err(io_error)?;
        answer
            .as_ref()
            .and_then(Route::from_message)
            .ok_or_else(|| io::Error::other("the kernel's answer holds no route"))
    }

    /// Adds a route to the main table; fails with EEXIST where there is one.
    pub(super) async fn add_route(
        &self,
        prefix: IpNet,
        device: u32,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let message = route_message(prefix, device, source);
        self.handle
            .route()
            .add(message)
            .execute()
            .await
            .map_err(io_error)
    }

    pub(super) async fn delete_route(&self, prefix: IpNet, device: u32) -> io::Result<()> {
        let message = route_message(prefix, device, None);
        self.handle
            .route()
            .del(message)
            .execute()
            .await
            .map_err(io_error)
    }

    /// Deletes a device.
    pub(super) async fn delete_link(&self, index: u32) -> io::Result<()> {
        let deleted = self.handle.link().del(index).execute().await;
        deleted.map_err(io_error)
    }

    /// Whether a device is up, and its MTU.
    pub(super) async fn link_state(&self, index: u32) -> io::Result<(bool, u32)> {
        let mut stream = std::pin::pin!(self.handle.link().get().match_index(index).execute());
        let message = stream.try_next().await.map_err(io_error)?;
        let message = message.ok_or(io::ErrorKind::NotFound)?;
        let mtu = message.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::Mtu(mtu) = attribute {
                Some(*mtu)
            } else {
                None
            }
        });
        let is_up = message.header.flags.contains(LinkFlags::Up);
        Ok((is_up, mtu.unwrap_or(0)))
    }

    /// A device's name; its index where it has gone meanwhile.
    pub(super) async fn device_name(&self, index: u32) -> String {
        let mut stream = std::pin::pin!(self.handle.link().get().match_index(index).execute());
        let name = stream.try_next().await.ok().flatten().and_then(|message| {
            message.attributes.into_iter().find_map(|attribute| {
                if let LinkAttribute::IfName(name) = attribute {
                    Some(name)
                } else {
                    None
                }
            })
        });
        name.unwrap_or_else(|| format!("if{index}"))
    }
}

/// A route straight to the device, without gateway.
fn route_message(prefix: IpNet, device: u32, source: Option<IpAddr>) -> RouteMessage {
    match prefix {
        IpNet::V4(net) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(device)
                .scope(RouteScope::Link);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
        IpNet::V6(net) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(device);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
    }
}

fn io_error(error: Error) -> io::Error {
    if let Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error)
    }
}
