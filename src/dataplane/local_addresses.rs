//! Which addresses are this node's own.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// The node's addresses, read again when an unknown one comes up. Only asked for new
/// flows, where it matters whether the client is this node.
#[derive(Debug)]
pub(crate) struct LocalAddresses {
    known: HashSet<IpAddr>,
    read: Option<Instant>,
    max_age: Duration,
}

impl LocalAddresses {
    /// None that are known. `max_age` is how old the list may be when an unknown address
    /// asks.
    pub(crate) fn new(max_age: Duration) -> Self {
        Self {
            known: HashSet::new(),
            read: None,
            max_age,
        }
    }

    /// Whether an address is one of this node. All of 127.0.0.0/8 is.
    pub(crate) fn contains(&mut self, address: IpAddr, now: Instant) -> bool {
        if address.is_loopback() || self.known.contains(&address) {
            return true;
        }
        if self.read.is_some_and(|read| now < read + self.max_age) {
            return false;
        }
        self.read = Some(now);
        self.known = interface_addresses(None);
        self.known.contains(&address)
    }

    /// The addresses have changed.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
        self.read = None;
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
        let mut local = LocalAddresses::new(Duration::from_secs(1));
        let now = Instant::now();
        assert!(local.contains(Ipv4Addr::LOCALHOST.into(), now));
        assert!(!local.contains(Ipv4Addr::new(192, 0, 2, 1).into(), now));
        assert!(interface_addresses(Some("lo")).contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert!(interface_addresses(Some("no-such-if")).is_empty());
    }
}
