//! What Prometheus is told: kube-proxy's names and buckets where they mean the same
//! (kubernetes `pkg/proxy/metrics/metrics.go`), our own under `kube_tun_proxy_`.
//!
//! Nothing is kept here: a [`Measurements`] of plain values is taken at each scrape and
//! written as OpenMetrics text, which Prometheus reads. kube-proxy's label `ip_family`
//! is not there, since one sync is of both families.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use super::history::ServiceTotal;
use crate::dataplane::{Counters, Histogram};

mod kube_proxy;
mod ours;
mod process;
mod write;

pub use process::ProcessValues;

/// The content type of [`text()`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is measured, at one moment.
#[derive(Clone, Debug)]
pub struct Measurements {
    /// The counters of all workers, with flows and memory.
    pub counters: Counters,
    /// Work of the node ports' workers.
    pub node_port_busy: Vec<Duration>,
    /// Ceiling of flows.
    pub max_flows: usize,
    /// Ceiling of memory, in bytes.
    pub max_memory: usize,
    /// What service ports have carried.
    pub services: Vec<ServiceTotal>,
    /// How many virtual servers there are.
    pub virtual_servers: usize,
    /// The control loop.
    pub sync: SyncValues,
    /// Answers of `/healthz` and `/livez`.
    pub health: Vec<HealthAnswers>,
    /// What `/readyz` says.
    pub ready: bool,
    /// Whether it takes part, with `--mode fallback`, once that is decided.
    pub fallback: Option<FallbackValues>,
    /// Requests to the API server; none without a cluster.
    pub api_server: Option<ApiServerValues>,
    /// The process.
    pub process: ProcessValues,
    /// Version of the program.
    pub version: &'static str,
}

/// A histogram of values in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramValues {
    /// Upper bounds in seconds, and how many were up to each and above the one before;
    /// the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// All values together, in seconds.
    pub sum: f64,
}

/// Whether a proxy that falls back takes part.
#[derive(Clone, Debug, PartialEq)]
pub struct FallbackValues {
    /// Whether services are routed to it.
    pub active: bool,
    /// Everything that can be why, and whether it is.
    pub reasons: Vec<(&'static str, bool)>,
    /// How often it was decided otherwise than before.
    pub changes: u64,
}

/// What the control loop has done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncValues {
    /// How long each batch took to be programmed.
    pub duration: HistogramValues,
    /// From a change of endpoints in the cluster until it was in force.
    pub network_programming: HistogramValues,
    /// When the last batch was programmed.
    pub last: Option<SystemTime>,
    /// When the last batch came.
    pub last_queued: Option<SystemTime>,
    /// Services that changed and wait to be programmed.
    pub services_pending: u64,
    /// Services that changed.
    pub services_total: u64,
    /// EndpointSlices that changed and wait to be programmed.
    pub endpoints_pending: u64,
    /// EndpointSlices that changed.
    pub endpoints_total: u64,
    /// Service ports with a policy Local and no local endpoint.
    pub no_local_internal: usize,
    /// The same for traffic from outside.
    pub no_local_external: usize,
}

/// How often one path of the health server gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthAnswers {
    /// `healthz` or `livez`.
    pub path: &'static str,
    /// Status.
    pub code: u16,
    /// How often.
    pub count: u64,
}

/// Requests to the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiServerValues {
    /// Host and port.
    pub host: String,
    /// Method, status (`<error>` without an answer), and how often.
    pub requests: Vec<(String, String, u64)>,
    /// Time to the head of the answer.
    pub duration: HistogramValues,
    /// Whether the last request was answered; none before the first.
    pub reachable: Option<bool>,
    /// When the last answer came.
    pub last_answer: Option<SystemTime>,
}

impl HistogramValues {
    /// Of the workers' histograms.
    pub fn of(histogram: &Histogram) -> Self {
        let bounds = histogram.bounds_us.iter().map(|us| *us as f64 / 1e6);
        Self {
            buckets: bounds
                .chain([f64::INFINITY])
                .zip(histogram.counts)
                .collect(),
            sum: histogram.sum_us as f64 / 1e6,
        }
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// The scrape's text. Formatting cannot fail, but for what a value's own writing says.
///
/// # Errors
/// None that a string gives.
pub fn text(measurements: Measurements) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(measurements)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(Measurements);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        kube_proxy::encode(&self.0, &mut encoder)?;
        ours::encode(&self.0, &mut encoder)?;
        process::encode(&self.0.process, &mut encoder)
    }
}

/// Host and port as `rest_client_requests_total` has them.
pub fn host_label(host: &str, port: Option<u16>) -> String {
    match (host.parse(), port) {
        (Ok(ip), Some(port)) => SocketAddr::new(ip, port).to_string(),
        (Err(_), Some(port)) => format!("{host}:{port}"),
        (_, None) => host.to_owned(),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use tests::example;
