//! A device that somebody with privilege has configured.

use std::io;

use ipnet::IpNet;

use super::netlink::Netlink;
use super::routes::MAIN_TABLE;
use super::{Link, LinkConfig, TunError};

impl Link {
    /// Takes a device as [`configure`](Link::configure) left it. What is missing of the
    /// routes is added, for which privilege is needed; nothing else is changed.
    ///
    /// IPv6 is left out, now and later, if the device has no IPv6 address.
    ///
    /// # Errors
    ///
    /// [`TunError::NotPrepared`]; no privilege for a route that is missing; a route that
    /// the kernel does not follow.
    pub async fn adopt(config: LinkConfig) -> Result<Self, TunError> {
        let LinkConfig {
            name,
            index,
            mtu,
            addresses,
            service_routes,
            ..
        } = config;
        let mut link = Self {
            netlink: Netlink::open(&name)?,
            name,
            index,
            addresses,
            ipv6_missing: None,
        };
        link.check_ranges(&service_routes)?;
        let failed = |source| link.error("reading it".to_owned(), source);
        let (is_up, has_mtu) = link.netlink.link_state(index).await.map_err(failed)?;
        let present = link.netlink.addresses().await.map_err(failed)?;
        let lacks = |what: String| TunError::NotPrepared {
            name: link.name.clone(),
            what,
        };
        if !is_up {
            return Err(lacks("it is down".to_owned()));
        }
        if has_mtu != mtu {
            return Err(lacks(format!("its MTU is {has_mtu}, not {mtu}")));
        }
        let has = |address| present.contains(&(address, index));
        let mut missing = link.addresses.iter().filter(|address| !has(**address));
        if let Some(address) = missing.find(|address| address.is_ipv4()) {
            return Err(lacks(format!("it lacks the address {address}")));
        }
        if link.addresses.iter().any(|a| a.is_ipv6() && !has(*a)) {
            let reason = io::Error::new(io::ErrorKind::NotFound, "the device was left without it");
            link.note_ipv6_missing(reason);
        }
        for &route in &service_routes {
            link.add_checked_route(route).await?;
        }
        Ok(link)
    }

    /// Whether the main table leads this prefix into the device.
    pub(super) async fn has_route(&self, route: IpNet) -> bool {
        let routes = self.netlink.routes(route.addr().is_ipv6()).await;
        routes.is_ok_and(|routes| {
            routes.iter().any(|found| {
                found.table == MAIN_TABLE
                    && found.prefix == route
                    && found.device == Some(self.index)
            })
        })
    }

    /// Deletes a device, with its addresses and routes.
    ///
    /// # Errors
    ///
    /// No CAP_NET_ADMIN; there is no such device.
    pub async fn delete(name: &str, index: u32) -> Result<(), TunError> {
        let link = Self {
            netlink: Netlink::open(name)?,
            name: name.to_owned(),
            index,
            addresses: Vec::new(),
            ipv6_missing: None,
        };
        let deleted = link.netlink.delete_link(index).await;
        deleted.map_err(|source| link.error("deleting it".to_owned(), source))
    }
}
