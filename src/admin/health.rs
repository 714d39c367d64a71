//! `/healthz`, `/livez` and `/readyz`.
//!
//! The first two speak as kube-proxy's do (kubernetes
//! `pkg/proxy/healthcheck/proxy_health.go`): healthy unless a change that has
//! arrived waits to be programmed for longer than [`HEALTH_TIMEOUT`]. `/readyz`
//! is ours: 200 only while no [`Blocker`](super::readiness::Blocker) is held,
//! otherwise the body names them.
//!
//! [`serve`] owns one task; it ends when its future is dropped.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;

use super::metrics::HealthAnswers;
use super::readiness::Readiness;

/// How long a change may wait before the proxy counts as unhealthy: twice
/// kube-proxy's sync period of 30 s.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);

/// An address family, as health speaks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// What the health server tells; clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    readiness: Readiness,
    families: Arc<Mutex<BTreeMap<Family, Progress>>>,
    /// What `/readyz` adds while ready.
    note: Arc<Mutex<Option<String>>>,
    /// Whether load balancers may send to this node.
    eligible: Arc<AtomicBool>,
    answers: Arc<Answers>,
}

/// How often each answer was given.
#[derive(Debug, Default)]
struct Answers {
    healthz: [AtomicU64; 2],
    livez: [AtomicU64; 2],
}

/// How far the changes of one family have come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// When the last change was programmed.
    updated: Option<SystemTime>,
    /// When the oldest change that is not programmed arrived.
    queued: Option<Instant>,
}

impl Health {
    /// Health of these families, which counts as good until a change is late.
    pub fn new(readiness: Readiness, families: impl IntoIterator<Item = Family>) -> Self {
        let families = families
            .into_iter()
            .map(|family| (family, Progress::default()))
            .collect();
        Self {
            readiness,
            families: Arc::new(Mutex::new(families)),
            note: Arc::default(),
            // As kube-proxy, until a Node object says something else.
            eligible: Arc::new(AtomicBool::new(true)),
            answers: Arc::default(),
        }
    }

    /// What `/readyz` says behind `ready` from now on: being ready may mean to stand by.
    pub fn set_note(&self, note: String) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(note);
    }

    /// Changes have arrived and are going to be programmed.
    pub fn queued(&self, now: Instant) {
        self.each(|progress| {
            progress.queued.get_or_insert(now);
        });
    }

    /// Whether load balancers may send to this node: not while it is about to be
    /// deleted. `/healthz` says so, and 503; `/livez` does not care.
    pub fn set_eligible(&self, eligible: bool) {
        self.eligible.store(eligible, Ordering::Relaxed);
    }

    /// Everything that has arrived is programmed.
    pub fn updated(&self, now: SystemTime) {
        self.each(|progress| {
            *progress = Progress {
                updated: Some(now),
                queued: None,
            }
        });
    }

    /// Whether load balancers may send to this node: it is not about to be deleted, and
    /// the proxy does not end.
    pub fn is_eligible(&self) -> bool {
        self.eligible.load(Ordering::Relaxed) && !self.is_stopping()
    }

    /// Whether the proxy takes no new connections because it ends.
    pub fn is_stopping(&self) -> bool {
        self.readiness.is_stopping()
    }

    /// Whether no change waits for longer than [`HEALTH_TIMEOUT`].
    pub fn is_healthy(&self, now: Instant) -> bool {
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        families.values().all(|progress| progress.is_healthy(now))
    }

    /// How often `/healthz` and `/livez` gave which answer.
    pub fn answers(&self) -> Vec<HealthAnswers> {
        let paths = [
            ("healthz", &self.answers.healthz),
            ("livez", &self.answers.livez),
        ];
        paths
            .into_iter()
            .flat_map(|(path, counts)| {
                CODES
                    .into_iter()
                    .zip(counts)
                    .map(move |(code, count)| HealthAnswers {
                        path,
                        code: code.as_u16(),
                        count: count.load(Ordering::Relaxed),
                    })
            })
            .collect()
    }

    /// What is told at `/readyz`.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    fn each(&self, change: impl FnMut(&mut Progress)) {
        self.families
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
            .for_each(change);
    }

    fn report(&self, now: Instant, wall: SystemTime, eligible: Option<bool>) -> Report {
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let status: BTreeMap<_, _> = families
            .iter()
            .map(|(family, progress)| (*family, progress.status(now)))
            .collect();
        drop(families);
        let now = timestamp(Some(wall));
        let mut report = Report {
            last_updated: now,
            current_time: now,
            node_eligible: eligible,
            healthy: status.values().all(|status| status.healthy),
            status,
        };
        if !report.is_good() {
            let updates = report.status.values().map(|status| status.last_updated);
            report.last_updated = updates.max().unwrap_or(NEVER);
        }
        report
    }
}

impl Progress {
    fn is_healthy(&self, now: Instant) -> bool {
        self.queued
            .is_none_or(|queued| now.saturating_duration_since(queued) < HEALTH_TIMEOUT)
    }

    fn status(&self, now: Instant) -> FamilyStatus {
        FamilyStatus {
            last_updated: timestamp(self.updated),
            healthy: self.is_healthy(now),
        }
    }
}

/// What `/healthz` and `/livez` may answer, in the order that answers are counted.
const CODES: [StatusCode; 2] = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE];

/// kube-proxy's body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Now if all is well, else when something was programmed last.
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    /// Whether the proxy keeps up, eligible or not.
    healthy: bool,
    status: BTreeMap<Family, FamilyStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: Timestamp,
    healthy: bool,
}

impl Report {
    /// Whether the status is 200.
    fn is_good(&self) -> bool {
        self.healthy && self.node_eligible.unwrap_or(true)
    }
}

/// Serves health on a listener until the future is dropped.
///
/// # Errors
///
/// None that a listener gives while it runs; it waits and accepts again.
pub async fn serve(listener: TcpListener, health: Health) -> std::io::Result<()> {
    axum::serve(listener, router(health)).await
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health)
}

/// The node counts as eligible unless it is about to be deleted (KEP-3836) or the proxy
/// ends: load balancers then leave it, while `/livez` says that nothing has to be
/// restarted.
fn healthz(State(health): State<Health>) -> Ready<Response> {
    let eligible = Some(health.is_eligible());
    let report = health.report(Instant::now(), SystemTime::now(), eligible);
    ready(answer(&report, &health.answers.healthz))
}

fn livez(State(health): State<Health>) -> Ready<Response> {
    let report = health.report(Instant::now(), SystemTime::now(), None);
    ready(answer(&report, &health.answers.livez))
}

fn readyz(State(health): State<Health>) -> Ready<Response> {
    let blockers = health.readiness.blockers();
    if blockers.is_empty() {
        let note = health.note.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match &*note {
            None => "ready\n".to_owned(),
            Some(note) => format!("ready, {note}\n"),
        };
        return ready((StatusCode::OK, body).into_response());
    }
    let body = format!("not ready: {}\n", blockers.join(", "));
    ready((StatusCode::SERVICE_UNAVAILABLE, body).into_response())
}

fn answer(report: &Report, counts: &[AtomicU64; CODES.len()]) -> Response {
    let [ok, unavailable] = CODES;
    let [good, bad] = counts;
    let (status, count) = if report.is_good() {
        (ok, good)
    } else {
        (unavailable, bad)
    };
    count.fetch_add(1, Ordering::Relaxed);
    let headers: [(HeaderName, &str); 2] = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    match serde_json::to_vec(report) {
        Ok(body) => (status, headers, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A moment for JSON; what never happened is the year 1, as Go writes it.
fn timestamp(time: Option<SystemTime>) -> Timestamp {
    time.and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or(NEVER)
}

/// Go's zero time, 0001-01-01T00:00:00Z.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

#[cfg(test)]
mod tests;
