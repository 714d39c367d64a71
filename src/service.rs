//! Desired state, pure: what the objects of the API say should be served.
//!
//! Speaks kube-proxy: *service port*, *endpoint*, *traffic policy*, *topology*.
//! Nothing here knows a socket, a clock or a task. What leaves this module is
//! [`Change`]: one virtual server to program or to take away.
//!
//! A source turns API objects into the compact forms of [`service_port`] and
//! [`endpoint`], the [`index`] keeps them, unions slices in [`slice_cache`],
//! selects endpoints by [`topology`] and says what changed. What makes no sense
//! comes back as a value ([`object::ObjectWarning`]); nothing is logged here and
//! no task or thread is started.

pub mod address;
pub mod endpoint;
pub mod index;
pub mod namespace;
pub mod object;
mod scheduler_kind;
pub mod service_port;
pub mod slice_cache;
pub mod topology;

#[cfg(test)]
pub(crate) mod fixtures;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use scheduler_kind::{SchedulerKind, UnknownScheduler};

use serde::{Deserialize, Serialize};

use address::Family;
use object::NamespacedName;

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the API's default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: known, so that its traffic can be told apart, but not carried.
    Sctp,
}

impl Protocol {
    /// The name as Kubernetes and ipvsadm print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Names one port of one Service: namespace, name, port *name* and protocol,
/// as kube-proxy's ServicePortName does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// Name of the port; empty for the one unnamed port a Service may have.
    pub port: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
}

/// `namespace/name:port`, or `namespace/name` for an unnamed port.
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// The address of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VirtualAddress {
    /// The virtual IP.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl VirtualAddress {
    /// The address under which a node port is programmed: the unspecified
    /// address of the family, since a node port is open on several of the node's. At
    /// each of these it is to clients a virtual server of its own.
    pub fn node_port(family: Family, port: u16, protocol: Protocol) -> Self {
        let ip = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { ip, port, protocol }
    }
}

/// `TCP 10.0.0.3:443`.
impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.protocol,
            SocketAddr::new(self.ip, self.port)
        )
    }
}

/// What a client sees when a virtual server has no real server to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    /// No usable endpoint anywhere: TCP RST, UDP port unreachable.
    Reject,
    /// A Local policy without a local endpoint while others exist: silence, so
    /// that the client tries elsewhere.
    Drop,
}

/// By which kind of address a virtual server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exposure {
    /// A cluster IP.
    ClusterIp,
    /// An ingress IP of the load balancer, unless its mode is Proxy.
    LoadBalancerIp,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// A port on addresses of the node.
    NodePort,
}

impl Exposure {
    /// The name as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancerIp => "LoadBalancerIP",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
        }
    }

    /// Is the external traffic policy in force there, rather than the internal
    /// one?
    pub fn is_external(self) -> bool {
        self != Self::ClusterIp
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Version of the PROXY protocol that opens each connection to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// The header as text.
    V1,
    /// The binary header.
    V2,
}

impl ProxyProtocol {
    /// The word of the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// One virtual server as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServerSpec {
    /// Where clients send to; for a node port that of
    /// [`VirtualAddress::node_port`].
    pub address: VirtualAddress,
    /// The service port it belongs to.
    pub service: Arc<ServicePortName>,
    /// Which kind of address it is.
    pub exposure: Exposure,
    /// Endpoints that take new flows: without duplicates, in the order of
    /// kube-proxy (by endpoint string). Where [`external`](Self::external) is
    /// set, those are for clients on this node and its pods only.
    pub real_servers: Vec<SocketAddr>,
    /// What clients from outside get, where that differs: an external exposure
    /// under policy Local.
    pub external: Option<Vec<SocketAddr>>,
    /// Endpoints that still serve, whatever policy or topology say: a UDP flow
    /// to one of them is left alone (kube-proxy's stale-flow rule). Sorted,
    /// a superset of the two lists above.
    pub serving: Vec<SocketAddr>,
    /// What to do while `real_servers` is empty.
    pub when_empty: WhenEmpty,
    /// What to do while `external` is set and empty.
    pub external_when_empty: WhenEmpty,
    /// Session affinity ClientIP: how long a client stays with its real server.
    pub persistence: Option<Duration>,
    /// Clients that are let in: for load balancer IPs. `None` is everybody, an
    /// empty list nobody.
    pub source_ranges: Option<Vec<IpNet>>,
    /// The scheduler that the Service asks for; none for the default.
    pub scheduler: Option<SchedulerKind>,
    /// The PROXY protocol that the Service asks for.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whether finished flows are logged, if the Service or its Namespace says so.
    pub access_log: Option<bool>,
}

impl VirtualServerSpec {
    /// A virtual server on a cluster IP, without endpoints, affinity or
    /// anything else out of the ordinary.
    pub fn new(address: VirtualAddress, service: Arc<ServicePortName>) -> Self {
        Self {
            address,
            service,
            exposure: Exposure::ClusterIp,
            real_servers: Vec::new(),
            external: None,
            serving: Vec::new(),
            when_empty: WhenEmpty::Reject,
            external_when_empty: WhenEmpty::Reject,
            persistence: None,
            source_ranges: None,
            scheduler: None,
            proxy_protocol: None,
            access_log: None,
        }
    }
}

/// What the health check node port of one Service should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: NamespacedName,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Distinct IPs of ready endpoints on this node, those that terminate not
    /// among them. A Service with both families counts the one that has more,
    /// so that a pod counts once.
    pub local_endpoints: usize,
}

/// What is known of this node beside its zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// Networks of the pods of this node, `spec.podCIDRs`, or of the cluster where
    /// these are given. A client in one of them is a pod.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of the node: those of type InternalIP in `status.addresses`, or
    /// if there is none, ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// The node is about to go: its Node is being deleted, or the cluster autoscaler
    /// has marked it (kubernetes KEP-3836). Load balancers are told.
    pub leaving: bool,
}

/// One step from the state that is programmed to the state that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make this virtual server so, whether it exists or not.
    Upsert(VirtualServerSpec),
    /// Take it away.
    Remove(VirtualAddress),
    /// Answer health checks of this Service so, on this port and no other.
    HealthCheck(HealthCheck),
    /// Answer no more health checks of this Service.
    RemoveHealthCheck(NamespacedName),
    /// This node is so.
    Node(NodeNetwork),
}
