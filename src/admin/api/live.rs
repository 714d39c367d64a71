//! The proxy as a whole, and how fast things go.

use serde::{Deserialize, Serialize};

/// Path of [`Status`].
pub const STATUS: &str = "/v1/status";

/// How fast, over the last interval of [`History`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Flows opened, in one second.
    pub new_flows_per_second: f64,
    /// Bytes of payload from clients to real servers, in one second.
    pub bytes_to_real_server_per_second: f64,
    /// Bytes of payload from real servers to clients, in one second.
    pub bytes_to_client_per_second: f64,
}

/// The last minutes: one value for each interval, the oldest first, the last of them
/// that of [`Rates`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Length of an interval.
    pub interval_seconds: f64,
    /// Flows opened, in one second.
    pub new_flows_per_second: Vec<f32>,
    /// Bytes of payload from clients to real servers, in one second.
    pub bytes_to_real_server_per_second: Vec<f32>,
    /// Bytes of payload from real servers to clients, in one second.
    pub bytes_to_client_per_second: Vec<f32>,
    /// Flows open at the end of the interval.
    pub flows: Vec<u32>,
}

/// What the whole proxy does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its version.
    pub version: String,
    /// This node's name.
    pub node: String,
    /// `--generation`, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// Whether it does what it should.
    pub health: HealthStatus,
    /// Where its objects come from.
    pub source: SourceStatus,
    /// Flows open now.
    pub flows: u64,
    /// Above it new flows are refused.
    pub max_flows: u64,
    /// Bytes behind the buffers of flows, at most.
    pub memory_bytes: u64,
    /// Above it new flows are refused.
    pub max_memory_bytes: u64,
    /// The threads that carry flows from the TUN, by number.
    pub workers: Vec<WorkerStatus>,
    /// Flows that were opened.
    pub opened: u64,
    /// Real servers stepped over because they refused or stayed silent.
    pub failovers: u64,
    /// Packets that the TUN did not take.
    pub tun_errors: u64,
    /// Flows that the access log lost.
    pub unlogged: u64,
    /// Packets dropped in silence, by reason; those that happened.
    pub dropped: Vec<Reason>,
    /// New flows refused with an answer, by reason; those that happened.
    pub rejected: Vec<Reason>,
    /// Flows that ended, by how; those that happened.
    pub ended: Vec<Reason>,
    /// Attempts to connect to real servers that failed, by why; those that happened.
    pub dial_failures: Vec<Reason>,
    /// Absent until the first interval is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// If it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// Health in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// What `/readyz` says.
    pub ready: bool,
    /// What it waits for.
    pub waiting_for: Vec<String>,
    /// What `/livez` says.
    pub healthy: bool,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// `manifests` or `cluster`.
    pub kind: String,
    /// The path, or the address of the API server.
    pub at: String,
    /// Whether the last request to the API server was answered; absent before the
    /// first, and for manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable: Option<bool>,
}

/// One worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Its number.
    pub worker: usize,
    /// Part of the last interval that it was at work, from 0 to 1.
    pub busy: f64,
}

/// How often something happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// The label that metrics have.
    pub reason: String,
    /// Since the start.
    pub count: u64,
    /// In one second, over the last interval.
    pub per_second: f64,
}
