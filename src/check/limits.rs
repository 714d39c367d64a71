//! How many connections the node lets one make.

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, sysctl};
use crate::config::RESERVED_FILES;
use crate::node::local_ports::{LOCAL_PORTS, local_ports};

/// Below the kernel's own default (28,232) somebody has made it narrow.
const FEW_PORTS: usize = 16_384;

/// TCP_TIMEWAIT_LEN, linux/include/net/tcp.h, in seconds.
const TIME_WAIT: usize = 60;

pub(super) fn ports() -> Finding {
    const SUBJECT: &str = "ports";
    let ports = match local_ports() {
        Ok(ports) => ports,
        Err(error) => return Finding::unknown(SUBJECT, LOCAL_PORTS, error),
    };
    let (low, high, count) = (ports.start(), ports.end(), ports.len());
    let found = format!("{low} to {high}: {count} connections at a time to one real server");
    if count < FEW_PORTS {
        let mend = "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"";
        Finding::warning(SUBJECT, found, mend)
    } else {
        Finding::ok(SUBJECT, found)
    }
}

pub(super) fn time_wait() -> Finding {
    const SUBJECT: &str = "tcp-tw-reuse";
    let key = "net/ipv4/tcp_tw_reuse";
    let text = match sysctl(key) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(SUBJECT, key, error),
    };
    let ports = local_ports().map_or(0, |ports| ports.len());
    let rate = ports / TIME_WAIT;
    let beyond = "; beyond that it takes ports above that range";
    // 2, the default, is for loopback only (ip-sysctl.rst).
    match text.as_str() {
        "1" => Finding::ok(
            SUBJECT,
            "1: a port is used again one second after its connection",
        ),
        "2" => Finding::ok(
            SUBJECT,
            format!(
                "2: where the proxy closes first, {rate} new connections a second to one real \
                 server{beyond}; sysctl -w net.ipv4.tcp_tw_reuse=1 allows {ports}"
            ),
        ),
        other => Finding::warning(
            SUBJECT,
            format!(
                "{other}: where the proxy closes first, {rate} new connections a second to one \
                 real server, on this node too{beyond}"
            ),
            "sysctl -w net.ipv4.tcp_tw_reuse=1",
        ),
    }
}

pub(super) fn open_files(max_flows: usize) -> Finding {
    const SUBJECT: &str = "open-files";
    let hard = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => hard,
        Err(error) => return Finding::unknown(SUBJECT, "the limit on open files", error),
    };
    let flows = u64::try_from(max_flows).unwrap_or(u64::MAX);
    let needed = flows.saturating_add(RESERVED_FILES);
    let found = format!("{hard} at most, --max-flows {max_flows} needs {needed}");
    if hard < needed {
        let mend = format!("ulimit -Hn {needed} (systemd: LimitNOFILE={needed})");
        Finding::warning(SUBJECT, found, mend)
    } else {
        Finding::ok(SUBJECT, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn more_flows_than_files_is_a_warning() {
        assert_eq!(open_files(1).level, Level::Ok);
        assert_eq!(open_files(usize::MAX).level, Level::Warning);
    }
}
