use std::net::Ipv4Addr;

use hyper::body::Bytes;
use hyper::http::response::Parts;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::admin::client::exchange;
use crate::admin::health::{Family, HEALTH_TIMEOUT};
use crate::admin::readiness::Readiness;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Longer than anything here takes; reached only by a failure.
const LIMIT: Duration = Duration::from_secs(10);

fn check(port: u16, local_endpoints: usize) -> HealthCheck {
    HealthCheck {
        service: NamespacedName::new("web", "shop"),
        port,
        local_endpoints,
    }
}

fn open() -> (Health, HealthChecks) {
    let health = Health::new(Readiness::new(), [Family::IPv4]);
    let mut checks = HealthChecks::new(health.clone());
    checks.set_addresses(BTreeSet::from([LOCALHOST]));
    (health, checks)
}

/// A port that is free now.
async fn free_port() -> u16 {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

async fn connect(port: u16) -> TcpStream {
    let connecting = async {
        loop {
            // The task opens the port when it is its turn.
            match TcpStream::connect((LOCALHOST, port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(LIMIT, connecting).await.unwrap()
}

async fn ask(port: u16) -> (Parts, Bytes) {
    exchange(connect(port).await, "/any/path").await.unwrap()
}

#[tokio::test]
async fn what_kube_proxy_says() {
    let (health, mut checks) = open();
    let port = free_port().await;
    checks.set(&check(port, 2));
    let (parts, body) = ask(port).await;
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["content-type"], "application/json");
    assert_eq!(parts.headers["x-content-type-options"], "nosniff");
    assert_eq!(parts.headers["x-load-balancing-endpoint-weight"], "2");
    // Byte for byte, as kube-proxy 1.36 lays it out.
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"web\",\n\t\t\"name\": \"shop\"\n\t},\n\
                    \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, expected);

    checks.set(&check(port, 0));
    let (parts, body) = ask(port).await;
    assert_eq!(parts.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(parts.headers["x-load-balancing-endpoint-weight"], "0");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["localEndpoints"], 0);

    // Endpoints alone do not help a proxy that is behind.
    checks.set(&check(port, 1));
    let now = Instant::now();
    health.queued(now);
    let answer = &checks.services[&NamespacedName::new("web", "shop")].answer;
    let status = |at| respond(answer, at).status();
    assert_eq!(status(now), StatusCode::OK);
    assert_eq!(
        status(now + HEALTH_TIMEOUT),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn the_port_follows_the_service() {
    let (_, mut checks) = open();
    let (first, second) = (free_port().await, free_port().await);
    checks.set(&check(first, 1));
    ask(first).await;
    checks.set(&check(second, 1));
    ask(second).await;
    refused(first).await;
    checks.remove(&NamespacedName::new("web", "shop"));
    refused(second).await;

    checks.set(&check(second, 1));
    ask(second).await;
    checks.set_addresses(BTreeSet::new());
    refused(second).await;
}

/// Waits until nobody listens: an aborted task ends when it is its turn.
async fn refused(port: u16) {
    let waiting = async {
        while TcpStream::connect((LOCALHOST, port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_opened_once_it_is_free() {
    let holder = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = holder.local_addr().unwrap().port();
    let (_, mut checks) = open();
    checks.set(&check(port, 1));
    tokio::task::yield_now().await;
    drop(holder);
    let (parts, _) = ask(port).await;
    assert_eq!(parts.status, StatusCode::OK);
}

/// Lets the tasks do what there is to do.
async fn turns() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn another_process_goes_on_with_the_sockets() {
    let (health, mut old) = open();
    let port = free_port().await;
    old.set(&check(port, 1));
    ask(port).await;
    let lent = old.lend().unwrap();
    assert_eq!(lent.len(), 1);
    let mut new = HealthChecks::new(health);
    new.set(&check(port, 2));
    new.inherit(lent);
    // Accepted, and not asked yet.
    let accepted = connect(port).await;
    turns().await;
    old.set_addresses(BTreeSet::new());
    turns().await;
    // Nobody accepts now, and nobody is refused.
    let waiting = connect(port).await;
    new.set_addresses(BTreeSet::from([LOCALHOST]));
    let (parts, _) = exchange(waiting, "/").await.unwrap();
    assert_eq!(parts.headers["x-load-balancing-endpoint-weight"], "2");
    let (parts, _) = exchange(accepted, "/").await.unwrap();
    assert_eq!(parts.headers["x-load-balancing-endpoint-weight"], "1");
    // What is not taken up is closed with the rest.
    old.inherit(new.lend().unwrap());
    new.remove(&check(port, 2).service);
    old.inherit(Vec::new());
    refused(port).await;
}
