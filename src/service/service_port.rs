//! Service objects, reduced to what a proxy needs, with kube-proxy's reading
//! of every field (`pkg/proxy/serviceport.go`, `pkg/proxy/util/utils.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::address::{Family, parse_cidr, parse_ip};
use super::namespace::access_log;
use super::object::{NamespacedName, ObjectError, Reason};
use super::{Protocol, ProxyProtocol, SchedulerKind, ServicePortName};

mod addresses;

/// A Service with this label, whatever its value, is served by another proxy
/// (kube-proxy's informer selects `!service.kubernetes.io/service-proxy-name`).
pub const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The scheduler of one Service, by its name.
pub const ANNOTATION_SCHEDULER: &str = "kube-tun-proxy.io/scheduler";

/// The PROXY protocol towards the real servers of one Service: `v1` or `v2`.
pub const ANNOTATION_PROXY_PROTOCOL: &str = "kube-tun-proxy.io/proxy-protocol";

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds` in the API server.
pub const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// Largest `timeoutSeconds` the API allows: one day.
pub const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// Why a Service has no virtual servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// `clusterIP: None`.
    Headless,
    /// `type: ExternalName`.
    ExternalName,
    /// Labelled with [`LABEL_PROXY_NAME`].
    OtherProxy,
    /// No cluster IP was allocated.
    NoClusterIp,
}

/// An internal or external traffic policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service in compact form.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// creationTimestamp, in seconds since the epoch.
    pub created: Option<i64>,
    /// Set if nothing is served; everything below is empty then.
    pub skip: Option<Skip>,
    /// At most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// externalIPs.
    pub external_ips: Vec<IpAddr>,
    /// Ingress IPs of the load balancer, without those with `ipMode: Proxy`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// loadBalancerSourceRanges of both families: `None` is no restriction. A
    /// range that cannot be read is left out, never taken as permission. What is
    /// in force for an address says
    /// [`source_ranges_for`](Self::source_ranges_for).
    pub source_ranges: Option<Vec<IpNet>>,
    /// internalTrafficPolicy.
    pub internal_policy: TrafficPolicy,
    /// externalTrafficPolicy; Cluster where the type takes no external traffic.
    pub external_policy: TrafficPolicy,
    /// Session affinity ClientIP with its timeout.
    pub affinity: Option<Duration>,
    /// healthCheckNodePort: of a load balancer with external policy Local.
    pub health_check_node_port: Option<u16>,
    /// The scheduler asked for by [`ANNOTATION_SCHEDULER`].
    pub scheduler: Option<SchedulerKind>,
    /// The PROXY protocol asked for by [`ANNOTATION_PROXY_PROTOCOL`].
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What [`ANNOTATION_ACCESS_LOG`](super::namespace::ANNOTATION_ACCESS_LOG) says.
    pub access_log: Option<bool>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// What was left out.
    pub errors: Vec<ObjectError>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its full name.
    pub name: Arc<ServicePortName>,
    /// Its position in `spec.ports`.
    pub position: u32,
    /// The port on the virtual IPs.
    pub port: u16,
    /// The node port.
    pub node_port: Option<u16>,
}

impl Service {
    /// Takes what is needed from the API's object. `None` if it has no name.
    pub fn from_api(service: &api::Service) -> Option<Self> {
        let meta = &service.metadata;
        let name = meta.name.as_deref().filter(|n| !n.is_empty())?;
        let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty());
        let mut compact = Self {
            name: NamespacedName::new(namespace.unwrap_or("default"), name),
            created: meta.creation_timestamp.as_ref().map(|t| t.0.as_second()),
            skip: None,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            scheduler: None,
            proxy_protocol: None,
            access_log: None,
            ports: Vec::new(),
            errors: Vec::new(),
        };
        let labels = meta.labels.as_ref();
        if labels.is_some_and(|l| l.contains_key(LABEL_PROXY_NAME)) {
            compact.skip = Some(Skip::OtherProxy);
            return Some(compact);
        }
        let Some(spec) = &service.spec else {
            compact.skip = Some(Skip::NoClusterIp);
            compact.error("spec", Reason::Missing);
            return Some(compact);
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            compact.skip = Some(Skip::ExternalName);
            return Some(compact);
        }
        compact.read_cluster_ips(spec);
        if compact.skip.is_some() {
            return Some(compact);
        }
        compact.read_policies(spec);
        compact.read_annotations(meta.annotations.as_ref());
        compact.read_external(spec, service.status.as_ref());
        compact.read_ports(spec.ports.as_deref().unwrap_or_default());
        Some(compact)
    }

    fn error(&mut self, field: impl Into<String>, reason: Reason) {
        self.errors.push(ObjectError::new(field, reason));
    }

    fn read_cluster_ips(&mut self, spec: &api::ServiceSpec) {
        let single = spec.cluster_ip.as_deref().unwrap_or_default();
        let several = spec.cluster_ips.as_deref().unwrap_or_default();
        let is_none = |ip: &str| ip == "None";
        if is_none(single) || several.first().is_some_and(|ip| is_none(ip)) {
            self.skip = Some(Skip::Headless);
            return;
        }
        let all: Vec<(String, &str)> = if several.is_empty() {
            vec![("spec.clusterIP".to_owned(), single)]
        } else {
            let texts = several.iter().map(String::as_str).enumerate();
            texts
                .map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip))
                .collect()
        };
        for (field, text) in all {
            if text.is_empty() {
                self.error(field, Reason::Missing);
                continue;
            }
            let Some(ip) = self.address(&field, text) else {
                continue;
            };
            if self
                .cluster_ips
                .iter()
                .any(|&o| Family::of(o) == Family::of(ip))
            {
                let what = format!("a cluster IP of family {}", Family::of(ip).as_str());
                self.error(field, Reason::Duplicate(what));
                continue;
            }
            self.cluster_ips.push(ip);
        }
        if let Some(first) = several.first()
            && !single.is_empty()
            && parse_ip(single) != parse_ip(first)
        {
            let reason = Reason::Contradicts {
                value: single.to_owned(),
                other: format!("spec.clusterIPs[0] {first}, which is used"),
            };
            self.error("spec.clusterIP", reason);
        }
        if self.cluster_ips.is_empty() {
            self.skip = Some(Skip::NoClusterIp);
        }
    }

    fn read_policies(&mut self, spec: &api::ServiceSpec) {
        self.internal_policy = self.policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
        );
        let external = self.policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
        );
        let has_external_ips = spec.external_ips.as_ref().is_some_and(|e| !e.is_empty());
        let takes_external =
            has_external_ips || matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        if takes_external {
            self.external_policy = external;
        }
        match spec.session_affinity.as_deref() {
            None | Some("" | "None") => {}
            Some("ClientIP") => self.affinity = Some(self.affinity_timeout(spec)),
            Some(other) => {
                let reason = Reason::Unknown {
                    value: other.to_owned(),
                    expected: "ClientIP, None",
                };
                self.error("spec.sessionAffinity", reason);
            }
        }
    }

    fn affinity_timeout(&mut self, spec: &api::ServiceSpec) -> Duration {
        let config = spec.session_affinity_config.as_ref();
        let set = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        let mut seconds = set.unwrap_or(DEFAULT_AFFINITY_SECONDS);
        if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
            let reason = Reason::OutOfRange {
                value: seconds,
                min: 1,
                max: MAX_AFFINITY_SECONDS,
                used: DEFAULT_AFFINITY_SECONDS,
            };
            self.error("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason);
            seconds = DEFAULT_AFFINITY_SECONDS;
        }
        Duration::from_secs(seconds.unsigned_abs().into())
    }

    fn read_annotations(&mut self, annotations: Option<&BTreeMap<String, String>>) {
        let text = |key| annotations.and_then(|a| a.get(key)).map(|text| text.trim());
        if let Some(text) = text(ANNOTATION_SCHEDULER) {
            self.scheduler = text.parse().ok();
            if self.scheduler.is_none() {
                let expected = "rr, wrr, lc, wlc, sed, nq, sh, dh, mh; the default is used";
                self.unknown_annotation(ANNOTATION_SCHEDULER, text, expected);
            }
        }
        if let Some(text) = text(ANNOTATION_PROXY_PROTOCOL) {
            let all = [ProxyProtocol::V1, ProxyProtocol::V2];
            self.proxy_protocol = all.into_iter().find(|version| version.as_str() == text);
            if self.proxy_protocol.is_none() {
                let expected = "v1, v2; no header is sent";
                self.unknown_annotation(ANNOTATION_PROXY_PROTOCOL, text, expected);
            }
        }
        match access_log(annotations) {
            Ok(access_log) => self.access_log = access_log,
            Err(error) => self.errors.push(error),
        }
    }

    fn unknown_annotation(&mut self, key: &str, text: &str, expected: &'static str) {
        let value = text.to_owned();
        let reason = Reason::Unknown { value, expected };
        self.error(format!("metadata.annotations[{key}]"), reason);
    }

    fn read_external(&mut self, spec: &api::ServiceSpec, status: Option<&api::ServiceStatus>) {
        for (i, text) in spec.external_ips.iter().flatten().enumerate() {
            if let Some(ip) = self.external_address(&format!("spec.externalIPs[{i}]"), text) {
                self.external_ips.push(ip);
            }
        }
        let balancer = status.and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_deref());
        for (i, entry) in ingress.unwrap_or_default().iter().enumerate() {
            let text = entry.ip.as_deref().unwrap_or_default();
            if text.is_empty() || entry.ip_mode.as_deref().is_some_and(|m| m != "VIP") {
                continue;
            }
            let field = format!("status.loadBalancer.ingress[{i}].ip");
            if let Some(ip) = self.external_address(&field, text) {
                self.load_balancer_ips.push(ip);
            }
        }
        let ranges = spec.load_balancer_source_ranges.as_deref();
        if let Some(ranges) = ranges.filter(|r| !r.is_empty()) {
            let mut nets = Vec::with_capacity(ranges.len());
            for (i, text) in ranges.iter().enumerate() {
                match parse_cidr(text) {
                    Some(net) => nets.push(net),
                    None => self.error(
                        format!("spec.loadBalancerSourceRanges[{i}]"),
                        Reason::NotACidr(text.clone()),
                    ),
                }
            }
            self.source_ranges = Some(nets);
        }
        let is_checked = spec.type_.as_deref() == Some("LoadBalancer")
            && self.external_policy == TrafficPolicy::Local;
        if let Some(port) = spec
            .health_check_node_port
            .filter(|&p| p != 0 && is_checked)
        {
            self.health_check_node_port = self.port("spec.healthCheckNodePort", port);
        }
    }

    fn read_ports(&mut self, ports: &[api::ServicePort]) {
        if ports.is_empty() {
            self.error("spec.ports", Reason::Missing);
        }
        let mut taken: BTreeMap<(u16, Protocol), Arc<ServicePortName>> = BTreeMap::new();
        for (i, port) in ports.iter().enumerate() {
            let field = |name: &str| format!("spec.ports[{i}].{name}");
            let Some(protocol) = parse_protocol(port.protocol.as_deref()) else {
                self.error(
                    field("protocol"),
                    unknown_protocol(port.protocol.as_deref()),
                );
                continue;
            };
            let Some(number) = self.port(&field("port"), port.port) else {
                continue;
            };
            let name = Arc::new(ServicePortName {
                namespace: self.name.namespace.clone(),
                name: self.name.name.clone(),
                port: port.name.as_deref().unwrap_or_default().into(),
                protocol,
            });
            if self.ports.iter().any(|p| p.name == name) {
                let what = format!("port name {:?} with {protocol}", name.port);
                self.error(field("name"), Reason::Duplicate(what));
                continue;
            }
            if taken.contains_key(&(number, protocol)) {
                let what = format!("{protocol} {number}");
                self.error(field("port"), Reason::Duplicate(what));
                continue;
            }
            taken.insert((number, protocol), name.clone());
            let node_port = port.node_port.filter(|&p| p != 0);
            let mut node_port = node_port.and_then(|p| self.port(&field("nodePort"), p));
            let is_taken =
                |p: &ServicePort| p.node_port == node_port && p.name.protocol == protocol;
            if let Some(number) = node_port
                && self.ports.iter().any(is_taken)
            {
                let what = format!("{protocol} {number}");
                self.error(field("nodePort"), Reason::Duplicate(what));
                node_port = None;
            }
            self.ports.push(ServicePort {
                name,
                position: u32::try_from(i).unwrap_or(u32::MAX),
                port: number,
                node_port,
            });
        }
    }

    fn policy(&mut self, field: &str, text: Option<&str>) -> TrafficPolicy {
        match text {
            None | Some("" | "Cluster") => TrafficPolicy::Cluster,
            Some("Local") => TrafficPolicy::Local,
            Some(other) => {
                let reason = Reason::Unknown {
                    value: other.to_owned(),
                    expected: "Cluster, Local",
                };
                self.error(field, reason);
                TrafficPolicy::Cluster
            }
        }
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let Some(ip) = parse_ip(text) else {
            self.error(field, Reason::NotAnAddress(text.to_owned()));
            return None;
        };
        if !can_be_virtual(ip) {
            self.error(field, Reason::NotUnicast(ip));
            return None;
        }
        Some(ip)
    }

    /// An address beside the cluster IP. Of a family that the Service has no
    /// cluster IP of, it is not served (kube-proxy keeps a Service from the
    /// proxier of such a family).
    fn external_address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let ip = self.address(field, text)?;
        let is_of_family = |other: &IpAddr| Family::of(*other) == Family::of(ip);
        if let Some(first) = self.cluster_ips.first()
            && !self.cluster_ips.iter().any(is_of_family)
        {
            let expected = Family::of(*first).as_str();
            let address = ip;
            self.error(field, Reason::WrongFamily { address, expected });
            return None;
        }
        Some(ip)
    }

    fn port(&mut self, field: &str, number: i32) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|&p| p != 0);
        if port.is_none() {
            self.error(field, Reason::NotAPort(number));
        }
        port
    }
}

/// Reads a protocol; the API's default is TCP.
pub(super) fn parse_protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// The reason that goes with [`parse_protocol`].
pub(super) fn unknown_protocol(text: Option<&str>) -> Reason {
    Reason::Unknown {
        value: text.unwrap_or_default().to_owned(),
        expected: "TCP, UDP, SCTP",
    }
}

fn can_be_virtual(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}

#[cfg(test)]
mod tests;
