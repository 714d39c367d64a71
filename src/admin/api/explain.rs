//! What `explain` asks and is told.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Path of [`Explanation`]; the [`Question`] is the query.
pub const EXPLAIN: &str = "/v1/explain";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Where the client sends to.
    pub address: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The client; absent for this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
}

impl Question {
    /// Path and query to ask with.
    pub fn path(&self) -> String {
        let Self {
            address, protocol, ..
        } = self;
        let mut path = format!("{EXPLAIN}?address={address}&protocol={}", protocol.as_str());
        if let Some(from) = self.from {
            path.push_str(&format!("&from={from}"));
        }
        path
    }
}

/// Transport protocol, by the name that Kubernetes prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// What becomes of a new flow, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Where the client sends to.
    pub address: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The client.
    pub client: IpAddr,
    /// Where it is: `node`, `pod` (of this node) or `outside`.
    pub client_is: String,
    /// What it would see.
    pub outcome: Outcome,
    /// What has the address, port and protocol; absent if nothing has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_server: Option<ExplainedVirtualServer>,
    /// What else the address serves, as `TCP 10.0.0.3:443`; told if nothing has
    /// the port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
}

/// What a client would see if it came now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// `forward`, `reject` or `drop`.
    pub verdict: String,
    /// The reason as metrics and log name it; absent for `forward`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    pub words: String,
    /// The real server that the client stays with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Whom the scheduler would choose next, for a client without affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<SocketAddr>,
}

/// An entry of session affinity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// Where the client is sent.
    pub real_server: SocketAddr,
    /// Seconds until it is forgotten, unless it connects again or connections
    /// of it are open.
    pub seconds: u64,
}

/// A virtual server, and why it is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedVirtualServer {
    /// The service port: `namespace/name:port`.
    pub service: String,
    /// Where the Service stands, if in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// `ClusterIP`, `LoadBalancerIP`, `ExternalIP` or `NodePort`.
    pub exposure: String,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: String,
    /// Which topology hints are followed: `none`, `zone` or `node`.
    pub topology: String,
    /// The scheduler: `rr`.
    pub scheduler: String,
    /// Session affinity: how long a client stays with its real server, in
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_seconds: Option<u64>,
    /// Who is let in; absent for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<Vec<String>>,
    /// `v1` or `v2`, if connections begin with that header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<String>,
    /// In kube-proxy's order, by text.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The node it is on, if its slice says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// For clients on this node and its pods; for all, if `outside` is absent.
    pub inside: Placing,
    /// For clients from outside, where they get other endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Placing>,
}

/// Whether an endpoint gets new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placing {
    /// Whether it does.
    #[serde(rename = "in")]
    pub is_in: bool,
    /// Why, or why not.
    pub reason: String,
}
