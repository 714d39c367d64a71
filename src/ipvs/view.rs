//! What `list` shows: values, taken at one moment.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Exposure, RealServer, SchedulerKind, ServicePortName, TrafficView, VirtualAddress};

/// How packets reach a real server, as ipvsadm names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMethod {
    /// Masquerading: the real server sees an address of this node.
    Masq,
}

impl ForwardMethod {
    /// The name ipvsadm prints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Masq => "Masq",
        }
    }
}

impl fmt::Display for ForwardMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServerView {
    /// Where clients send to.
    pub address: VirtualAddress,
    /// The service port it belongs to.
    pub service: Arc<ServicePortName>,
    /// Which kind of address it is.
    pub exposure: Exposure,
    /// Who chooses among the real servers.
    pub scheduler: SchedulerKind,
    /// How long a client stays with its real server; none without session
    /// affinity.
    pub persistence: Option<Duration>,
    /// What it has carried, also to real servers it has no more.
    pub traffic: TrafficView,
    /// Sorted by address; those that drain are among them, with weight 0, while
    /// they have flows.
    pub real_servers: Vec<RealServerView>,
}

/// One real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServerView {
    /// Where flows are sent to.
    pub address: SocketAddr,
    /// How they are sent.
    pub forward: ForwardMethod,
    /// 0 while it drains.
    pub weight: u32,
    /// ActiveConn: established TCP connections.
    pub active: u32,
    /// InActConn: every other flow.
    pub inactive: u32,
    /// Flows it was ever chosen for, failed attempts among them.
    pub connections: u64,
    /// Attempts to connect to it that failed.
    pub failed: u64,
    /// Payload bytes from clients to it.
    pub bytes_in: u64,
    /// Payload bytes from it to clients.
    pub bytes_out: u64,
}

impl From<&RealServer> for RealServerView {
    fn from(real_server: &RealServer) -> Self {
        Self {
            address: real_server.address,
            forward: ForwardMethod::Masq,
            weight: real_server.weight(),
            active: real_server.active(),
            inactive: real_server.inactive(),
            connections: real_server.connections(),
            failed: real_server.failed(),
            bytes_in: real_server.bytes_in(),
            bytes_out: real_server.bytes_out(),
        }
    }
}
