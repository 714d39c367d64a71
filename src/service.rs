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
pub mod object;
pub mod service_port;
pub mod slice_cache;
pub mod topology;

#[cfg(test)]
mod fixtures;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// The virtual IP.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
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

/// One virtual server as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServerSpec {
    /// Where clients send to.
    pub address: VirtualAddress,
    /// The service port it belongs to.
    pub service: Arc<ServicePortName>,
    /// Endpoints that take new flows: without duplicates, in the order of
    /// kube-proxy (by endpoint string).
    pub real_servers: Vec<SocketAddr>,
    /// Endpoints that still serve, whatever policy or topology say: a UDP flow
    /// to one of them is left alone (kube-proxy's stale-flow rule). Sorted,
    /// a superset of `real_servers`.
    pub serving: Vec<SocketAddr>,
    /// What to do while `real_servers` is empty.
    pub when_empty: WhenEmpty,
    /// Session affinity ClientIP: how long a client stays with its real server.
    pub persistence: Option<Duration>,
}

/// One step from the state that is programmed to the state that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make this virtual server so, whether it exists or not.
    Upsert(VirtualServerSpec),
    /// Take it away.
    Remove(VirtualAddress),
}
