//! The proxy of this build, with its default flags.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use kube_tun_proxy::lab::manifests::Manifests;
use kube_tun_proxy::lab::{Cluster, Namespace, ProxyOptions, ProxyProcess};

use super::vip;
use crate::objects::{endpoint_slice, list, service};

/// The binary that cargo built beside the benchmark, with the same profile.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kube-tun-proxy");

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
    let objects: Vec<_> = (0..services)
        .flat_map(|index| {
            let name = format!("service-{index}");
            let slice = endpoint_slice(&name, &[real_server.ip()], port);
            [service(&name, vip(index), port), slice]
        })
        .collect();
    manifests.write("services.json", &list(&objects))?;
    let options = ProxyOptions::new(manifests.path(), &[cluster.service_cidr().into()]);
    Ok(Running {
        process: ProxyProcess::start(node, Path::new(BINARY), &options)?,
        _manifests: manifests,
    })
}
