//! A large cluster: how long until everything is in, how much memory it takes, and
//! how long a change of a slice takes from the API server to the table. A measurement, to be read by a person: it runs when asked for, with
//!
//! ```text
//! cargo test --release --test kubernetes -- --ignored --nocapture a_large_cluster
//! ```

#![expect(clippy::print_stdout, reason = "a measurement is for a person to read")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use kube_tun_proxy::ipvs::{SchedulerKind, Table};
use kube_tun_proxy::service::index::Index;
use kube_tun_proxy::source::kubernetes::{self, Access, Cluster, Connection, Timing};

use crate::api_server::ApiServer;
use crate::cluster::{service, slice};

/// Services, each with one slice.
const SERVICES: usize = 10_000;

/// Endpoints of each.
const ENDPOINTS: usize = 10;

/// Slices that change afterwards, and how many of them a second.
const CHANGES: usize = 500;
const CHANGES_A_SECOND: u32 = 100;

/// Says in the child that it is one, and where the kubeconfig lies.
const CHILD: &str = "KUBE_TUN_PROXY_SCALE_CHILD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, which needs a machine that is otherwise idle"]
async fn a_large_cluster() {
    if let Some(path) = env::var_os(CHILD) {
        return follow(path.into()).await;
    }
    for streams in [true, false] {
        let server = ApiServer::start("secret").await;
        if !streams {
            server.without_streams("services");
            server.without_streams("endpointslices");
        }
        fill(&server);
        let (_directory, path) = server.kubeconfig(&server.url(), &json!({"token": "secret"}));
        let mut child = Command::new(env::current_exe().unwrap());
        child
            .args([
                "--ignored",
                "--nocapture",
                "--exact",
                "scale::a_large_cluster",
            ])
            .env(CHILD, &path);
        println!("streams: {streams}");
        let mut child = child.spawn().unwrap();
        churn(&server, &path.with_extension("ready")).await;
        let status = tokio::task::spawn_blocking(move || child.wait());
        assert!(status.await.unwrap().unwrap().success());
    }
}

/// Once the child has everything, changes one slice after another.
async fn churn(server: &ApiServer, ready: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready.exists() {
        assert!(Instant::now() < deadline, "the first state does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1) / CHANGES_A_SECOND);
    for i in 0..CHANGES {
        tick.tick().await;
        let name = format!("service-{:05}", (i * 37) % SERVICES);
        let ip = format!("10.200.{}.{}", i / 250, i % 250);
        let mut slice = weighty(slice(&name, &[&ip]));
        slice["metadata"]["annotations"] = json!({
            "endpoints.kubernetes.io/last-change-trigger-time": Timestamp::now().to_string(),
        });
        server.apply("endpointslices", slice);
    }
}

fn fill(server: &ApiServer) {
    for i in 0..SERVICES {
        let name = format!("service-{i:05}");
        let ip = |net: u8, i: usize| format!("10.{net}.{}.{}", i / 250, i % 250);
        server.apply("services", weighty(service(&name, &ip(0, i))));
        let ips: Vec<_> = (0..ENDPOINTS)
            .map(|e| ip(1 + u8::try_from(e).unwrap(), i))
            .collect();
        let ips: Vec<_> = ips.iter().map(String::as_str).collect();
        let mut slice = weighty(slice(&name, &ips));
        for (e, endpoint) in slice["endpoints"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            endpoint["nodeName"] = format!("node-{:04}", (i + e) % 1000).into();
            endpoint["zone"] = "zone-a".into();
            endpoint["targetRef"] = json!({
                "kind": "Pod",
                "namespace": "shop",
                "name": format!("{name}-{e}"),
                "uid": "7d3c6f0e-6c0f-4b9e-9d56-6a3ad8b7e1c4",
            });
        }
        server.apply("endpointslices", slice);
    }
}

/// With what a real object has besides: who manages which of its fields.
fn weighty(mut object: Value) -> Value {
    let fields: serde_json::Map<String, Value> = (0..20)
        .map(|i| {
            (
                format!("f:field{i}"),
                json!({".": {}, "f:name": {}, "f:value": {}}),
            )
        })
        .collect();
    object["metadata"]["uid"] = "0b7c4f8e-1f0a-4f55-8d2e-0e9d6f1c2a3b".into();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    object["metadata"]["managedFields"] = json!([{
        "manager": "controller",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }]);
    object
}

async fn follow(kubeconfig: PathBuf) {
    let begun = Instant::now();
    let access = Access {
        kubeconfig: Some(kubeconfig.clone()),
        master: None,
    };
    let connection = Connection::open(access).await.unwrap();
    let (sender, mut batches) = mpsc::channel(4);
    let cluster = Cluster {
        node_name: "node-0001".to_owned(),
        batches: sender,
        service_cidrs: None,
        network_policies: None,
        timing: Timing::default(),
    };
    let following = kubernetes::run(Arc::new(connection), cluster, std::future::pending());
    let following = tokio::spawn(following);
    let mut index = Index::new("node-0001");
    let table = Table::new(SchedulerKind::Rr);
    loop {
        let batch = batches.recv().await.unwrap();
        for change in &index.apply_all(batch.events).changes {
            table.apply(change);
        }
        if batch.initial_complete {
            break;
        }
    }
    let took = begun.elapsed();
    let servers = table.snapshot();
    let real: usize = servers.iter().map(|server| server.real_servers.len()).sum();
    println!(
        "  {} virtual servers, {real} real servers in {took:.2?}",
        servers.len()
    );
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in status
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM"))
    {
        println!("  {line}");
    }
    assert_eq!((servers.len(), real), (SERVICES, SERVICES * ENDPOINTS));
    fs::write(kubeconfig.with_extension("ready"), "").unwrap();
    let mut latencies = Vec::new();
    while latencies.len() < CHANGES {
        let batch = batches.recv().await.unwrap();
        for change in &index.apply_all(batch.events).changes {
            table.apply(change);
        }
        let now = Timestamp::now();
        let took = |trigger| Duration::try_from(now.duration_since(trigger)).unwrap();
        latencies.extend(batch.triggers.into_iter().map(took));
    }
    latencies.sort();
    println!(
        "  a slice's change until the next pick: p50 {:.2?}, p99 {:.2?}, at most {:.2?}",
        latencies[CHANGES / 2],
        latencies[CHANGES * 99 / 100],
        latencies[CHANGES - 1],
    );
    following.abort();
}
