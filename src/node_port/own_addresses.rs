//! Whether a client is this node.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::dataplane::interface_addresses;

/// How old the list may be when an address that is not in it asks. Changes are told
/// ([`OwnAddresses::forget`]); this is for the time in between.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The node's addresses, read when somebody asks.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    known: HashSet<IpAddr>,
    read: Option<Instant>,
}

impl OwnAddresses {
    /// Whether an address is one of this node. All of 127.0.0.0/8 is.
    pub(super) fn contains(&mut self, address: IpAddr, now: Instant) -> bool {
        if address.is_loopback() || self.known.contains(&address) {
            return true;
        }
        if self.read.is_some_and(|read| now < read + MAX_AGE) {
            return false;
        }
        self.read = Some(now);
        self.known = interface_addresses(None);
        self.known.contains(&address)
    }

    /// The addresses have changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.read = None;
    }
}
