//! haproxy in TCP mode with splice: kernel sockets on both sides, no TUN. The VIPs
//! are local addresses, as on a node with kube-proxy's IPVS mode.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use kube_tun_proxy::lab::{Namespace, TempDir};

use super::{Found, vip};
use crate::process::Process;
use crate::wiring::add_local_address;

pub(super) fn start(
    node: &Namespace,
    found: &Found,
    real_server: SocketAddr,
    services: usize,
) -> Result<Process> {
    for index in 0..services {
        add_local_address(node, vip(index))?;
    }
    let directory = TempDir::new()?;
    let file = directory.path().join("haproxy.cfg");
    fs::write(&file, configuration(real_server, services))?;
    let process = Process::start(
        node,
        &found.program,
        ["-db".as_ref(), "-f".as_ref(), file.as_os_str()],
    )?;
    Ok(process.keeping(directory))
}

fn configuration(real_server: SocketAddr, services: usize) -> String {
    let mut text = String::from(
        "global\n  maxconn 7500\ndefaults\n  mode tcp\n  option splice-auto\n  balance roundrobin\n  \
         timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n",
    );
    for index in 0..services {
        let (vip, port) = (vip(index), real_server.port());
        // A String takes everything.
        let _ = write!(
            text,
            "listen service-{index}\n  bind {vip}:{port}\n  server pod {real_server}\n"
        );
    }
    text
}
