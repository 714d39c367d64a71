//! The demo's cluster: nodes, pods, servers, manifests, the proxy.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};

use crate::lab::manifests::Manifests;
use crate::lab::servers::{Server, Tcp, Udp};
use crate::lab::{Cluster, ClusterBuilder, LabError, Node, ProxyOptions, ProxyProcess};

/// The pod on the master that asks.
pub(super) const CLIENT: &str = "client";

/// The TUN device.
pub(super) const TUN: &str = "svc-tun0";

/// The seed's service: one real server, 10.1.65.5:443.
pub(super) const METRICS: SocketAddr = service([10, 0, 0, 3], 443);

/// A service of three real servers.
pub(super) const GRAFANA: SocketAddr = service([10, 0, 94, 107], 3000);

/// A service over UDP.
pub(super) const DNS: SocketAddr = service([10, 0, 0, 2], 53);

/// A service of two real servers, of which 10.1.65.6:8443 refuses.
pub(super) const DASHBOARD: SocketAddr = service([10, 0, 23, 176], 443);

const MANIFESTS: [(&str, &str); 4] = [
    (
        "dashboard.yaml",
        include_str!("../../../config/demo/dashboard.yaml"),
    ),
    (
        "grafana.yaml",
        include_str!("../../../config/demo/grafana.yaml"),
    ),
    (
        "kube-dns.yaml",
        include_str!("../../../config/demo/kube-dns.yaml"),
    ),
    (
        "metrics-server.yaml",
        include_str!("../../../config/demo/metrics-server.yaml"),
    ),
];

/// Everything that runs; it ends in the order of the fields.
pub(super) struct World {
    /// The proxy on the master.
    pub(super) proxy: ProxyProcess,
    _servers: Vec<Server>,
    /// The services.
    pub(super) manifests: Manifests,
    /// The nodes and pods.
    pub(super) cluster: Cluster,
}

impl World {
    /// Builds it all. When it returns, the proxy is ready.
    pub(super) fn build() -> Result<Self, LabError> {
        let cluster = ClusterBuilder::seed().build()?;
        let servers = start_servers(&cluster)?;
        let manifests = Manifests::new()?;
        for (file, text) in MANIFESTS {
            manifests.write(file, text)?;
        }
        let binary = env::current_exe().map_err(|cause| LabError::File {
            path: "/proc/self/exe".into(),
            cause,
        })?;
        let cidrs = [
            cluster.service_cidr().into(),
            cluster.service_cidr6().into(),
        ];
        let options = ProxyOptions::new(manifests.path(), &cidrs)
            .argument("--tun-name")
            .argument(TUN);
        let master = cluster.node("master").namespace();
        let proxy = ProxyProcess::start(master, &binary, &options)?;
        Ok(Self {
            proxy,
            _servers: servers,
            manifests,
            cluster,
        })
    }

    /// The node with the proxy.
    pub(super) fn master(&self) -> &Node {
        self.cluster.node("master")
    }

    /// The node with the real servers.
    pub(super) fn node2(&self) -> &Node {
        self.cluster.node("node2")
    }
}

fn start_servers(cluster: &Cluster) -> Result<Vec<Server>, LabError> {
    let http = |pod: &str, port| cluster.pod(pod).serve_tcp(port, Tcp::Http(pod.to_owned()));
    let dns = cluster
        .pod("pod-6")
        .serve_udp(DNS.port(), Udp::Who("pod-6".to_owned()))?;
    Ok(vec![
        http("pod-5", METRICS.port())?,
        http("pod-5", GRAFANA.port())?,
        http("pod-6", GRAFANA.port())?,
        http("pod-7", GRAFANA.port())?,
        http("pod-7", 8443)?,
        dns,
    ])
}

const fn service([a, b, c, d]: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
}
