//! Which addresses are this node's own.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// How old the list may be when an unknown address asks: one more look a second is
/// cheap, and a new address of the node is served within it.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The node's addresses, read again when an unknown one comes up. Only asked for new
/// flows, and only while pods are not served.
#[derive(Debug, Default)]
pub(super) struct LocalAddresses {
    known: HashSet<IpAddr>,
    read: Option<Instant>,
}

impl LocalAddresses {
    pub(super) fn contains(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.known.contains(&address) {
            return true;
        }
        if self.read.is_some_and(|read| now < read + MAX_AGE) {
            return false;
        }
        self.read = Some(now);
        self.known = interface_addresses(None);
        self.known.contains(&address)
    }
}

/// The addresses of one interface, or of all.
pub(crate) fn interface_addresses(interface: Option<&str>) -> HashSet<IpAddr> {
    let Ok(addresses) = getifaddrs() else {
        return HashSet::new();
    };
    addresses
        .filter(|entry| interface.is_none_or(|name| entry.interface_name == name))
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_is_local_and_a_documentation_address_is_not() {
        let mut local = LocalAddresses::default();
        let now = Instant::now();
        assert!(local.contains(Ipv4Addr::LOCALHOST.into(), now));
        assert!(!local.contains(Ipv4Addr::new(192, 0, 2, 1).into(), now));
        assert!(interface_addresses(Some("lo")).contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert!(interface_addresses(Some("no-such-if")).is_empty());
    }
}
