use std::net::Ipv4Addr;

use hyper::body::Bytes;
use hyper::http::response::Parts;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::*;
use crate::admin::client::exchange;

fn both(readiness: &Readiness) -> Health {
    Health::new(readiness.clone(), [Family::IPv4, Family::IPv6])
}

/// Asks a health server on loopback.
async fn ask(health: &Health, path: &str) -> (Parts, Bytes) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, health.clone()));
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = exchange(stream, path).await.unwrap();
    server.abort();
    answer
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test]
async fn ready_only_when_nothing_blocks() {
    let readiness = Readiness::new();
    let health = both(&readiness);
    let starting = readiness.block("starting");
    let state = readiness.block("waiting for the first full state");

    let (parts, body) = ask(&health, "/readyz").await;
    assert_eq!(parts.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        body,
        "not ready: starting, waiting for the first full state\n"
    );
    // Whether it works is another question.
    assert_eq!(ask(&health, "/healthz").await.0.status, StatusCode::OK);

    drop(starting);
    let (_, body) = ask(&health, "/readyz").await;
    assert_eq!(body, "not ready: waiting for the first full state\n");

    drop(state);
    let (parts, body) = ask(&health, "/readyz").await;
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(body, "ready\n");

    health.set_note("stands by: kube-proxy is well".to_owned());
    let (_, body) = ask(&health, "/readyz").await;
    assert_eq!(body, "ready, stands by: kube-proxy is well\n");
}

#[tokio::test]
async fn healthz_and_livez_as_kube_proxy() {
    let health = both(&Readiness::new());
    let (parts, body) = ask(&health, "/healthz").await;
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["content-type"], "application/json");
    assert_eq!(parts.headers["x-content-type-options"], "nosniff");
    let body = json(&body);
    assert_eq!(body["healthy"], true);
    assert_eq!(body["nodeEligible"], true);
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(body["status"]["IPv6"]["healthy"], true);

    let (parts, body) = ask(&health, "/livez").await;
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["content-type"], "application/json");
    assert_eq!(parts.headers["x-content-type-options"], "nosniff");
    let body = json(&body);
    assert_eq!(body["healthy"], true);
    assert_eq!(body.get("nodeEligible"), None);

    let (parts, _) = ask(&health, "/other").await;
    assert_eq!(parts.status, StatusCode::NOT_FOUND);
}

#[test]
fn a_change_that_waits_too_long_is_unhealthy() {
    let health = Health::new(Readiness::new(), [Family::IPv4]);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let wall = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);

    health.updated(wall(1_000));
    health.queued(at(10));
    // A later change does not make the oldest younger.
    health.queued(at(60));

    let report = health.report(at(69), wall(1_069), Some(true));
    assert!(report.healthy);
    assert_eq!(
        answer(&report, &health.answers.livez).status(),
        StatusCode::OK
    );

    let report = health.report(at(70), wall(1_070), Some(true));
    assert_eq!(
        answer(&report, &health.answers.livez).status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        json!({
            "lastUpdated": "1970-01-01T00:16:40Z",
            "currentTime": "1970-01-01T00:17:50Z",
            "nodeEligible": true,
            "healthy": false,
            "status": {"IPv4": {"lastUpdated": "1970-01-01T00:16:40Z", "healthy": false}},
        })
    );

    health.updated(wall(1_080));
    assert!(health.report(at(500), wall(1_500), None).healthy);
}

#[test]
fn a_node_that_goes_is_unhealthy_but_alive() {
    let health = both(&Readiness::new());
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    health.updated(SystemTime::UNIX_EPOCH);
    let wall = SystemTime::UNIX_EPOCH + second;
    let leaving = health.report(now, wall, Some(false));
    assert_eq!(
        answer(&leaving, &health.answers.healthz).status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    // What kube-proxy 1.36 answers on a node with the taint of the autoscaler.
    assert_eq!(
        serde_json::to_value(&leaving).unwrap(),
        json!({
            "lastUpdated": "1970-01-01T00:00:00Z",
            "currentTime": "1970-01-01T00:00:01Z",
            "nodeEligible": false,
            "healthy": true,
            "status": {
                "IPv4": {"lastUpdated": "1970-01-01T00:00:00Z", "healthy": true},
                "IPv6": {"lastUpdated": "1970-01-01T00:00:00Z", "healthy": true},
            },
        })
    );
    let alive = health.report(now, wall, None);
    assert_eq!(
        answer(&alive, &health.answers.livez).status(),
        StatusCode::OK
    );
    let told = serde_json::to_value(&alive).unwrap();
    assert_eq!(told["lastUpdated"], told["currentTime"]);
    assert_eq!(
        told["status"]["IPv4"]["lastUpdated"],
        "1970-01-01T00:00:00Z"
    );
}

#[test]
fn what_never_happened_is_gos_zero_time() {
    let health = Health::new(Readiness::new(), [Family::IPv6]);
    let start = Instant::now();
    health.queued(start);
    let report = health.report(start + HEALTH_TIMEOUT, SystemTime::UNIX_EPOCH, None);
    assert_eq!(
        serde_json::to_value(&report).unwrap()["lastUpdated"],
        "0001-01-01T00:00:00Z"
    );
}
