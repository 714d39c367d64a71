//! The proxy of this build, with its default flags.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use kube_tun_proxy::lab::manifests::{Manifests, Port, service_with_endpoints};
use kube_tun_proxy::lab::{Cluster, Namespace, ProxyOptions, ProxyProcess};

use super::vip;

/// The binary that cargo built beside the benchmark, with the same profile.
pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_kube-tun-proxy");

/// The proxy and what it reads.
pub(super) struct Running {
    pub(super) process: ProxyProcess,
    _manifests: Manifests,
}

/// Starts the proxy and waits until it is ready.
pub(super) fn start(
    cluster: &Cluster,
    node: &Namespace,
    real_server: SocketAddr,
    services: usize,
) -> Result<Running> {
    let manifests = Manifests::new()?;
    let port = real_server.port();
    let ports = [Port::tcp("tcp", port, port), Port::udp("udp", port, port)];
    let texts: Vec<String> = (0..services)
        .map(|index| {
            let name = format!("service-{index}");
            let vip = vip(index).into();
            service_with_endpoints("bench", &name, &[vip], &ports, &[real_server.ip()])
        })
        .collect();
    manifests.write("services.yaml", &texts.join("---\n"))?;
    let options = ProxyOptions::new(manifests.path(), &[cluster.service_cidr().into()]);
    Ok(Running {
        process: ProxyProcess::start(node, Path::new(BINARY), &options)?,
        _manifests: manifests,
    })
}
