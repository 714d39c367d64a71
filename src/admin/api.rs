//! What the admin socket says: the JSON documents, written here and read by the
//! commands that ask.
//!
//! Addresses are `address:port` texts, `[address]:port` for IPv6. Fields may be
//! added; those that are here keep name, type and meaning.

use std::collections::BTreeMap;
use std::net::SocketAddr;

mod checks;
mod explain;
mod filter;
mod live;

pub use checks::{CHECK, Check, Checks};
pub use explain::{
    Affinity, EXPLAIN, ExplainedEndpoint, ExplainedVirtualServer, Explanation, Outcome, Placing,
    Protocol, Question,
};

pub use filter::{AddressFilter, FlowFilter, FlowSort, NoAddress, NoService, ServiceFilter};
pub use live::{HealthStatus, History, Rates, Reason, STATUS, SourceStatus, Status, WorkerStatus};

use serde::{Deserialize, Serialize};

/// Path of [`Services`]; the query is a [`Detail`].
pub const SERVICES: &str = "/v1/services";

/// Path of [`Flows`]; the query is a [`FlowFilter`].
pub const FLOWS: &str = "/v1/flows";

/// Path of [`LogLevel`], to be read and to be replaced.
pub const LOG_LEVEL: &str = "/v1/log-level";

/// Path of the configuration in effect: a TunProxyConfiguration with every setting.
pub const CONFIGZ: &str = "/v1/configz";

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLevel {
    /// Directives as `tracing_subscriber::EnvFilter` takes them.
    pub directives: String,
}

/// How much of [`Services`] or [`Status`] is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detail {
    /// With the last minutes.
    #[serde(default)]
    pub history: bool,
}

/// All virtual servers, by protocol, address and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// Whether the proxy takes part, with `--mode fallback`; absent without it, and until
    /// the kernel was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Standing>,
    /// One for each address, port and protocol that is served.
    pub virtual_servers: Vec<VirtualServer>,
}

/// Whether a proxy that falls back takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Whether services are routed to it.
    pub active: bool,
    /// What the kernel did when that was decided.
    pub reason: String,
    /// Seconds since then.
    pub since_seconds: u64,
    /// How often it was decided otherwise than before, from the start on.
    pub changes: u64,
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServer {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where clients send to.
    pub address: SocketAddr,
    /// The service port: `namespace/name:port`.
    pub service: String,
    /// By which kind of address it is reached: `ClusterIP`, `NodePort`,
    /// `LoadBalancerIP` or `ExternalIP`.
    #[serde(default)]
    pub exposure: String,
    /// False for SCTP, whose traffic is dropped.
    #[serde(default = "carried")]
    pub carried: bool,
    /// The scheduler: `rr`.
    pub scheduler: String,
    /// Session affinity: how long a client stays with its real server, in
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_seconds: Option<u64>,
    /// By address.
    pub real_servers: Vec<RealServer>,
    /// Absent until the first interval is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// If it was asked for; absent too for those beyond `--metrics-max-services`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

fn carried() -> bool {
    true
}

/// One real server of a virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealServer {
    /// Where flows are carried to.
    pub address: SocketAddr,
    /// How flows are carried to it, in ipvsadm's words: `Masq`.
    pub forward: String,
    /// 1, or 0 if it takes no new flows any more.
    pub weight: u32,
    /// Established TCP connections (IPVS's ActiveConn).
    pub active_flows: u32,
    /// All other flows (IPVS's InActConn).
    pub inactive_flows: u32,
    /// Flows it was ever chosen for, failed attempts among them.
    pub connections: u64,
    /// Attempts to connect to it that failed.
    pub failed_attempts: u64,
    /// Bytes of payload from clients to it.
    pub bytes_to_real_server: u64,
    /// Bytes of payload from it to clients.
    pub bytes_to_client: u64,
    /// Absent until the first interval is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

/// Path of [`AllCounters`].
pub const COUNTERS: &str = "/v1/counters";

/// What the workers have counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllCounters {
    /// Of what comes through the TUN.
    pub tun: Counters,
    /// Of what comes through kernel listeners: node ports, and virtual IPs that the
    /// node has.
    pub node_ports: Counters,
}

/// What the workers of one kind have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Flows that were opened.
    pub opened: u64,
    /// Real servers stepped over because they refused or stayed silent.
    pub failovers: u64,
    /// Packets dropped, by reason; reasons that never came up are left out.
    pub dropped: BTreeMap<String, u64>,
    /// New flows refused, by reason; as above.
    pub rejected: BTreeMap<String, u64>,
}

/// The flows that were asked for, in the order that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// One for each TCP connection or UDP conversation.
    pub flows: Vec<Flow>,
    /// How many fit the filter, more than are told if there was a limit.
    #[serde(default)]
    pub matching: usize,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// State in IPVS's words: `ESTABLISHED`, `FIN_WAIT`, `UDP` …
    pub state: String,
    /// Seconds after which it ends if nothing comes; absent if it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_seconds: Option<u64>,
    /// Seconds since its first packet.
    pub age_seconds: u64,
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom the client sends to.
    pub virtual_address: SocketAddr,
    /// Who answers; absent while none is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_server: Option<SocketAddr>,
    /// Whom the real server sees; absent while it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// Bytes of payload from the client to the real server.
    pub bytes_to_real_server: u64,
    /// Bytes of payload from the real server to the client.
    pub bytes_to_client: u64,
    /// The service port: `namespace/name:port`.
    pub service: String,
}
