//! haproxy in TCP mode with splice: kernel sockets on both sides, no TUN. The VIP
//! is a local address, as on a node with kube-proxy's IPVS mode.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use kube_tun_proxy::lab::{Namespace, TempDir};

use super::{Found, VIP};
use crate::process::Process;
use crate::wiring::add_local_address;

pub(super) fn start(node: &Namespace, found: &Found, real_server: SocketAddr) -> Result<Process> {
    add_local_address(node, VIP)?;
    let directory = TempDir::new()?;
    let file = directory.path().join("haproxy.cfg");
    fs::write(&file, configuration(real_server))?;
    let process = Process::start(
        node,
        &found.program,
        ["-db".as_ref(), "-f".as_ref(), file.as_os_str()],
    )?;
    Ok(process.keeping(directory))
}

fn configuration(real_server: SocketAddr) -> String {
    let port = real_server.port();
    format!(
        // A connection takes two of the 20,000 open files that a process commonly
        // has at most.
        "global\n  maxconn 7500\ndefaults\n  mode tcp\n  option splice-auto\n  \
         balance roundrobin\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n\
         listen service\n  bind {VIP}:{port}\n  server pod {real_server}\n"
    )
}
