//! Routes into the TUN, and the flows that use them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::RouteTable;
use crate::dataplane::Dataplane;
use crate::tun::{Link, TunError};

/// The device with those who carry its flows.
pub(in crate::app) struct Device {
    pub(in crate::app) link: Arc<Link>,
    pub(in crate::app) dataplane: Arc<Dataplane>,
}

impl RouteTable for Device {
    type Error = TunError;

    async fn add(&self, route: IpNet) -> Result<(), TunError> {
        self.link.add_route(route).await
    }

    async fn remove(&self, route: IpNet) -> Result<(), TunError> {
        self.link.remove_route(route).await
    }

    async fn used(&self, routes: Vec<IpNet>) -> BTreeSet<IpAddr> {
        self.dataplane.used(routes).await
    }
}
