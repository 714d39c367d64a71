//! What was last said of virtual servers, kept small.

use std::net::SocketAddr;

use crate::service::VirtualServerSpec;

/// What was last said of one virtual server.
#[derive(Debug)]
pub(super) struct Emitted {
    /// Without the endpoints that serve, if these are the real servers: with many
    /// virtual servers it is a third of all memory here.
    pub(super) spec: VirtualServerSpec,
    serves_all: bool,
    pub(super) lacks_local: bool,
}

impl Emitted {
    pub(super) fn new(mut spec: VirtualServerSpec, lacks_local: bool) -> Self {
        let serves_all = spec.serving == sorted(&spec.real_servers);
        if serves_all {
            spec.serving = Vec::new();
        }
        Self {
            spec,
            serves_all,
            lacks_local,
        }
    }

    /// What was said.
    pub(super) fn spec(&self) -> VirtualServerSpec {
        let mut spec = self.spec.clone();
        if self.serves_all {
            spec.serving = sorted(&spec.real_servers);
        }
        spec
    }

    pub(super) fn says_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.serves_all == other.serves_all
    }
}

fn sorted(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted
}
