//! The limit on open files, and what a process without privileges cannot do.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, info, warn};

use crate::config::RESERVED_FILES;

/// Files of a TCP flow through a node port while it moves bytes both ways: two sockets,
/// and two ends of a pipe in each direction ([`crate::node_port`]).
const FILES_OF_A_NODE_PORT_FLOW: u64 = 6;

/// Warns if `max_flows` would not fit were all of them TCP flows through node ports. To
/// be called when there are any.
pub(super) fn warn_of_node_ports(max_flows: usize) {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        // Said at the start.
        return;
    };
    let needed = files_for_node_ports(max_flows);
    if limit < needed {
        warn!(
            limit,
            needed,
            "were all of --max-flows TCP flows through node ports, open files would not \
             suffice: such a flow needs up to {FILES_OF_A_NODE_PORT_FLOW}. Raise the hard limit \
             (ulimit -Hn) or lower --max-flows"
        );
    }
}

fn files_for_node_ports(max_flows: usize) -> u64 {
    u64::try_from(max_flows)
        .unwrap_or(u64::MAX)
        .saturating_mul(FILES_OF_A_NODE_PORT_FLOW)
        .saturating_add(RESERVED_FILES)
}

/// Raises the soft limit on open files to the hard one, and warns if `max_flows`
/// do not fit: each flow has a socket.
pub(super) fn raise_open_files(max_flows: usize) {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "the limit on open files cannot be read");
            return;
        }
    };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            warn!(%error, soft, hard, "the limit on open files cannot be raised");
            soft
        }
    };
    debug!(limit, "open files");
    let needed = u64::try_from(max_flows)
        .unwrap_or(u64::MAX)
        .saturating_add(RESERVED_FILES);
    if limit < needed {
        warn!(
            limit,
            needed, "--max-flows is more than open files allow: raise the hard limit (ulimit -Hn)"
        );
    }
}

/// Says what is not served on a device that was prepared, if there are no privileges.
pub(super) fn tell_of_privileges(may_configure: bool) {
    if may_configure {
        return;
    }
    // The first port that everybody may listen on (ip-sysctl.rst).
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.unwrap_or_else(|_| "1024".to_owned());
    info!(
        "without CAP_NET_ADMIN: what init has routed is served, addresses outside of that are \
         not; without CAP_NET_BIND_SERVICE: node ports below {} are not opened",
        first.trim_end()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_port_flow_counts_all_its_files() {
        assert_eq!(files_for_node_ports(10_000), 60_000 + RESERVED_FILES);
        assert_eq!(files_for_node_ports(usize::MAX), u64::MAX);
    }
}
