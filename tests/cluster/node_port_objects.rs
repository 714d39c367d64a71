//! Services that are reached from outside, as text.

use std::fmt::Write as _;
use std::net::IpAddr;

use kube_tun_proxy::lab::Node;

/// A Service with one port over TCP and UDP, and its EndpointSlices.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    /// On cluster and external IPs, and at the endpoints.
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) cluster_ip: Option<IpAddr>,
    pub(crate) external_ips: Vec<IpAddr>,
    pub(crate) external_local: bool,
    /// Makes it a LoadBalancer.
    pub(crate) health_check: Option<u16>,
    pub(crate) proxy_protocol: Option<&'static str>,
    pub(crate) endpoints: Vec<EndpointAt>,
}

/// A ready endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointAt {
    pub(crate) address: IpAddr,
    pub(crate) node: Option<String>,
}

impl Service {
    pub(crate) fn node_port(name: &str, port: u16, node_port: u16) -> Self {
        Self {
            name: name.to_owned(),
            port,
            node_port: Some(node_port),
            cluster_ip: None,
            external_ips: Vec::new(),
            external_local: false,
            health_check: None,
            proxy_protocol: None,
            endpoints: Vec::new(),
        }
    }

    /// The documents of one file.
    pub(crate) fn text(&self) -> String {
        let mut text = self.service();
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            text.push_str(&self.slice(family, is_ipv4));
        }
        text
    }

    fn service(&self) -> String {
        let Self { name, port, .. } = self;
        // A distinct cluster IP in both families for each node port.
        let host = self.node_port.unwrap_or_default() % 250 + 4;
        let v4 = self
            .cluster_ip
            .map_or_else(|| format!("10.0.9.{host}"), |ip| ip.to_string());
        let kind = if self.health_check.is_some() {
            "LoadBalancer"
        } else {
            "NodePort"
        };
        let policy = if self.external_local {
            "Local"
        } else {
            "Cluster"
        };
        let mut text = format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n");
        if let Some(version) = self.proxy_protocol {
            let _ = writeln!(
                text,
                "  annotations:\n    kube-tun-proxy.io/proxy-protocol: {version}"
            );
        }
        let _ = writeln!(
            text,
            "spec:\n  type: {kind}\n  clusterIPs: [{v4}, 'fd00:10::9:{host:x}']\n  clusterIP: {v4}\n  \
             externalTrafficPolicy: {policy}\n  ipFamilies: [IPv4, IPv6]"
        );
        if let Some(port) = self.health_check {
            let _ = writeln!(text, "  healthCheckNodePort: {port}");
        }
        if !self.external_ips.is_empty() {
            let _ = writeln!(text, "  externalIPs: {:?}", self.external_ips);
        }
        text.push_str("  ports:\n");
        for protocol in ["TCP", "UDP"] {
            let _ = writeln!(
                text,
                "  - {{name: {}, protocol: {protocol}, port: {port}, nodePort: {}}}",
                protocol.to_lowercase(),
                self.node_port.unwrap_or_default()
            );
        }
        text
    }

    fn slice(&self, family: &str, is_ipv4: bool) -> String {
        let Self { name, port, .. } = self;
        let mut text = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: {name}-{}\n  labels: {{kubernetes.io/service-name: {name}}}\n\
             addressType: {family}\nports:\n\
             - {{name: tcp, protocol: TCP, port: {port}}}\n\
             - {{name: udp, protocol: UDP, port: {port}}}\nendpoints:",
            family.to_lowercase()
        );
        let of_family = self
            .endpoints
            .iter()
            .filter(|e| e.address.is_ipv4() == is_ipv4);
        let mut none = true;
        for EndpointAt { address, node } in of_family {
            none = false;
            let _ = write!(
                text,
                "\n- addresses: ['{address}']\n  conditions: {{ready: true, serving: true}}"
            );
            if let Some(node) = node {
                let _ = write!(text, "\n  nodeName: {node}");
            }
        }
        text.push_str(if none { " []\n" } else { "\n" });
        text
    }
}

/// The Node object of a node of the lab.
pub(crate) fn node(node: &Node) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  podCIDRs: ['{}']\n\
         status:\n  addresses:\n  - {{type: InternalIP, address: '{}'}}\n  \
         - {{type: InternalIP, address: '{}'}}\n",
        node.name(),
        node.pod_cidr(),
        node.address(),
        node.address6()
    )
}
