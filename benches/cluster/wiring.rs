//! Addresses and routes that some systems need besides the lab's own.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use kube_tun_proxy::lab::{LabError, Namespace};

/// Loopback has index 1 in every network namespace (net/core/dev.c).
const LOOPBACK_INDEX: u32 = 1;

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
