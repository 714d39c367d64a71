//! What a running proxy measures, put together for those who look in.
//!
//! [`Observer::record`] is one task, which ends with its future.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::fallback::Participation;
use super::process;
use super::programming::{BUCKETS_MS, ProgrammingLatency};
use super::syncs::Syncs;
use crate::admin::api::{self, HealthStatus, Reason, SourceStatus, WorkerStatus};
use crate::admin::health::Health;
use crate::admin::history::{self, Recorder, WholeRates};
use crate::admin::metrics::{
    ApiServerValues, FallbackValues, HistogramValues, Measurements, SyncValues, host_label,
};
use crate::config::{Config, Source};
use crate::dataplane::{Counters, Dataplane};
use crate::ipvs::Table;
use crate::node::kernel_proxy::Kernel;
use crate::node_port::NodePorts;
use crate::service::address::Family;
use crate::service::index::Index;
use crate::source::kubernetes::{Connection, REQUEST_BUCKETS_MS, Requests};

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Read-only handles of everything that counts.
#[derive(Debug)]
pub(super) struct Observer {
    pub(super) table: Arc<Table>,
    /// Weak, since a connection that lingers must not keep the workers alive.
    pub(super) dataplane: Weak<Dataplane>,
    /// As weak.
    pub(super) node_ports: Weak<NodePorts>,
    pub(super) index: Arc<RwLock<Index>>,
    pub(super) health: Health,
    pub(super) syncs: Arc<Syncs>,
    pub(super) latency: Arc<ProgrammingLatency>,
    pub(super) api_server: Option<ApiServer>,
    pub(super) recorder: Recorder,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) node: String,
    pub(super) source: SourceStatus,
    pub(super) started: (Instant, SystemTime),
    /// With `--mode fallback`.
    pub(super) participation: Option<Participation>,
}

/// The way to the API server.
#[derive(Debug)]
pub(super) struct ApiServer {
    requests: Arc<Requests>,
    host: String,
}

impl ApiServer {
    pub(super) fn of(connection: &Connection) -> Self {
        let server = connection.server();
        let host = server.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        Self {
            requests: connection.requests(),
            host: host_label(bare, server.port_u16()),
        }
    }
}

/// Where objects come from, in short.
pub(super) fn source(config: &Config, api_server: Option<&ApiServer>) -> SourceStatus {
    let (kind, at) = match &config.source {
        Source::Manifests(path) => ("manifests", path.display().to_string()),
        Source::Cluster { .. } => {
            let host = api_server.map(|server| server.host.clone());
            ("cluster", host.unwrap_or_default())
        }
    };
    SourceStatus {
        kind: kind.to_owned(),
        at,
        reachable: None,
    }
}

impl Observer {
    /// Takes a sample every [`history::INTERVAL`], for ever, or until one has panicked.
    ///
    /// With ten thousand services a sample takes some 100 ms, and a thread of the runtime
    /// that is busy may be the one that watches the sockets, which the other does not
    /// know: what comes from the API server would wait. So it is taken on a thread for
    /// what blocks, as a rule always the same, which has a heap of its own.
    pub(super) async fn record(self: Arc<Self>) {
        let mut ticks = interval(history::INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let observer = Arc::clone(&self);
            if spawn_blocking(move || observer.sample()).await.is_err() {
                return;
            }
        }
    }

    fn sample(&self) {
        let servers = self.table.snapshot();
        self.recorder
            .sample(Instant::now(), &servers, self.counters());
    }

    /// The counters of all workers.
    fn counters(&self) -> Counters {
        let counters = self.dataplane.upgrade().map(|workers| workers.counters());
        let mut counters = counters.unwrap_or_default();
        if let Some(node_ports) = self.node_ports.upgrade() {
            counters.include(&node_ports.counters());
        }
        counters
    }

    /// The proxy as a whole.
    pub(super) fn status(&self, detail: api::Detail) -> api::Status {
        let counters = self.counters();
        let whole = self.recorder.whole();
        let waiting_for = self.health.readiness().blockers();
        let mut source = self.source.clone();
        if let Some(api_server) = &self.api_server {
            source.reachable = api_server.requests.counts().reachable;
        }
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        api::Status {
            version: VERSION.to_owned(),
            node: self.node.clone(),
            generation: self.config.borrow().generation,
            uptime_seconds: self.started.0.elapsed().as_secs(),
            health: HealthStatus {
                ready: waiting_for.is_empty(),
                waiting_for: waiting_for.into_iter().map(str::to_owned).collect(),
                healthy: self.health.is_healthy(Instant::now()),
            },
            source,
            flows: number(counters.flows),
            max_flows: number(self.config.borrow().flows.max_flows),
            memory_bytes: number(counters.memory),
            max_memory_bytes: number(self.config.borrow().flows.max_memory),
            workers: workers(&whole),
            opened: counters.opened,
            failovers: counters.failovers,
            tun_errors: counters.tun_errors,
            unlogged: counters.unlogged,
            dropped: reasons(&counters, &whole, |c| labels(&c.dropped, |r| r.as_str())),
            rejected: reasons(&counters, &whole, |c| labels(&c.rejected, |r| r.as_str())),
            ended: reasons(&counters, &whole, |c| labels(&c.ended, |r| r.as_str())),
            dial_failures: reasons(&counters, &whole, |c| {
                labels(&c.dial_failures, |r| r.as_str())
            }),
            rates: whole.rates,
            history: detail.history.then_some(whole.history),
        }
    }

    /// All that is measured, now.
    pub(super) fn measurements(&self) -> Measurements {
        let servers = self.table.snapshot();
        let node_ports = self.node_ports.upgrade();
        Measurements {
            counters: self.counters(),
            node_port_busy: node_ports.map_or_else(Vec::new, |ports| ports.counters().busy),
            max_flows: self.config.borrow().flows.max_flows,
            max_memory: self.config.borrow().flows.max_memory,
            services: self.recorder.totals(&servers),
            virtual_servers: servers.len(),
            sync: self.sync(),
            health: self.health.answers(),
            ready: self.health.readiness().blockers().is_empty(),
            fallback: self.fallback(),
            api_server: self.api_server.as_ref().map(api_server),
            process: process::values(self.started.1),
            version: VERSION,
        }
    }

    /// Absent without `--mode fallback`, and until it is decided.
    fn fallback(&self) -> Option<FallbackValues> {
        let standing = self.participation.as_ref()?.standing()?;
        let reasons = Kernel::ALL.iter();
        Some(FallbackValues {
            active: standing.active,
            reasons: reasons
                .map(|kernel| (kernel.as_str(), *kernel == standing.reason))
                .collect(),
            changes: standing.changes,
        })
    }

    fn sync(&self) -> SyncValues {
        let counts = self.syncs.counts();
        let programming = self.latency.snapshot();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let [v4, v6] = [Family::V4, Family::V6].map(|family| index.no_local_endpoints(family));
        drop(index);
        // The snapshot's counts are of all up to a bound.
        let each = programming.cumulative.iter().scan(0, |before, count| {
            Some(count - std::mem::replace(before, *count))
        });
        let above = programming.count - programming.cumulative.last().copied().unwrap_or(0);
        SyncValues {
            duration: HistogramValues {
                buckets: counts.buckets(),
                sum: counts.time().as_secs_f64(),
            },
            network_programming: HistogramValues {
                buckets: seconds(&BUCKETS_MS).zip(each.chain([above])).collect(),
                sum: programming.sum.as_secs_f64(),
            },
            last: counts.last,
            last_queued: counts.queued,
            services_pending: counts.pending.services,
            services_total: counts.total.services,
            endpoints_pending: counts.pending.endpoint_slices,
            endpoints_total: counts.total.endpoint_slices,
            no_local_internal: v4.internal + v6.internal,
            no_local_external: v4.external + v6.external,
        }
    }
}

fn api_server(api_server: &ApiServer) -> ApiServerValues {
    let counts = api_server.requests.counts();
    let outcomes = counts.outcomes.into_iter();
    ApiServerValues {
        host: api_server.host.clone(),
        requests: outcomes
            .map(|((method, status), count)| {
                let code = status.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
                (method, code, count)
            })
            .collect(),
        duration: HistogramValues {
            buckets: seconds(&REQUEST_BUCKETS_MS).zip(counts.durations).collect(),
            sum: counts.time.as_secs_f64(),
        },
        reachable: counts.reachable,
        last_answer: counts.answered,
    }
}

/// Bounds in seconds, and infinity.
fn seconds(bounds_ms: &[u64]) -> impl Iterator<Item = f64> {
    let bounds = bounds_ms.iter().map(|ms| *ms as f64 / 1e3);
    bounds.chain([f64::INFINITY])
}

fn labels<R: Copy>(
    counts: &[(R, u64)],
    label: impl Fn(R) -> &'static str,
) -> Vec<(&'static str, u64)> {
    counts
        .iter()
        .map(|(r, count)| (label(*r), *count))
        .collect()
}

/// Those that happened, with how often they did in the last interval.
fn reasons(
    now: &Counters,
    whole: &WholeRates,
    get: impl Fn(&Counters) -> Vec<(&'static str, u64)>,
) -> Vec<Reason> {
    let rates: Vec<f64> = match &whole.counters {
        Some((now, before, seconds)) => get(now)
            .iter()
            .zip(get(before))
            .map(|((_, now), (_, before))| now.saturating_sub(before) as f64 / seconds)
            .collect(),
        None => Vec::new(),
    };
    get(now)
        .into_iter()
        .enumerate()
        .filter(|(_, (_, count))| *count > 0)
        .map(|(at, (reason, count))| Reason {
            reason: reason.to_owned(),
            count,
            per_second: rates.get(at).copied().unwrap_or(0.0),
        })
        .collect()
}

fn workers(whole: &WholeRates) -> Vec<WorkerStatus> {
    let Some((now, before, seconds)) = &whole.counters else {
        return Vec::new();
    };
    let busy = now.busy.iter().zip(&before.busy);
    busy.map(|(now, before)| now.saturating_sub(*before))
        .enumerate()
        .map(|(worker, busy): (usize, Duration)| WorkerStatus {
            worker,
            busy: (busy.as_secs_f64() / seconds).min(1.0),
        })
        .collect()
}
