//! Kernel NAT: a map from address, protocol and port to a chain, and in it
//! `dnat` to a random endpoint; `masquerade` behind it. The shape of the rules is
//! that of kube-proxy's nftables mode (pkg/proxy/nftables).

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;
use kube_tun_proxy::lab::Namespace;

use super::{Found, vip};
use crate::process::run_with_input;

/// Services in one transaction: it is one message, which must fit the send buffer
/// that an ordinary user may have (net.core.wmem_max, 208 KiB by default).
const BATCH: usize = 100;

const TABLE: &str = "table ip kube {
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
    }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        jump services
    }
    chain output {
        type nat hook output priority -100;
        jump services
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
    }
}
";

pub(super) fn start(
    node: &Namespace,
    found: &Found,
    real_server: SocketAddr,
    services: usize,
) -> Result<()> {
    run_with_input(node, &found.program, &["-f", "-"], TABLE)?;
    for first in (0..services).step_by(BATCH) {
        let rules = rules(real_server, first..services.min(first + BATCH));
        run_with_input(node, &found.program, &["-f", "-"], &rules)?;
    }
    Ok(())
}

fn rules(real_server: SocketAddr, services: std::ops::Range<usize>) -> String {
    let (ip, port) = (real_server.ip(), real_server.port());
    let mut chains = String::new();
    let mut elements = Vec::with_capacity(2 * services.len());
    for index in services {
        let vip = vip(index);
        // A String takes everything.
        let _ = writeln!(
            chains,
            "  chain service-{index} {{\n    mark set mark or 0x4000\n    \
             meta l4proto {{ tcp, udp }} dnat to numgen random mod 1 map {{ 0 : {ip} }}:{port}\n  }}"
        );
        for protocol in ["tcp", "udp"] {
            elements.push(format!(
                "{vip} . {protocol} . {port} : goto service-{index}"
            ));
        }
    }
    let elements = elements.join(", ");
    format!("table ip kube {{\n{chains}}}\nadd element ip kube service-ips {{ {elements} }}\n")
}
