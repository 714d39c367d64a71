//! Kernel NAT: a map from address, protocol and port to a chain, and in it
//! `dnat` to a random endpoint; `masquerade` behind it. The shape of the rules is
//! that of kube-proxy's nftables mode (pkg/proxy/nftables).

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;
use kube_tun_proxy::lab::Namespace;

use super::vip;
use crate::process::run_with_input;

pub(super) fn start(node: &Namespace, real_server: SocketAddr, services: usize) -> Result<()> {
    run_with_input(node, "nft", &["-f", "-"], &rules(real_server, services))
}

fn rules(real_server: SocketAddr, services: usize) -> String {
    let (ip, port) = (real_server.ip(), real_server.port());
    let mut text = String::from("table ip kube {\n");
    let mut elements = Vec::with_capacity(2 * services);
    for index in 0..services {
        let vip = vip(index);
        // A String takes everything.
        let _ = writeln!(
            text,
            " chain service-{index} {{\n  mark set mark or 0x4000\n  \
             meta l4proto tcp dnat to numgen random mod 1 map {{ 0 : {ip} }}:{port}\n  \
             meta l4proto udp dnat to numgen random mod 1 map {{ 0 : {ip} }}:{port}\n }}"
        );
        for protocol in ["tcp", "udp"] {
            elements.push(format!(
                "{vip} . {protocol} . {port} : goto service-{index}"
            ));
        }
    }
    let elements = elements.join(",\n   ");
    let _ = write!(
        text,
        " map service-ips {{\n  type ipv4_addr . inet_proto . inet_service : verdict\n  \
         elements = {{ {elements} }}\n }}\n \
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n \
         chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n \
         chain output {{ type nat hook output priority -100; jump services; }}\n \
         chain postrouting {{\n  type nat hook postrouting priority srcnat\n  \
         mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random\n }}\n}}\n"
    );
    text
}
