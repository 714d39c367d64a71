//! Metrics, the JSON documents beside them, and filters of `list --flows`, against what
//! really happened.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use super::world::{Client, Family, LIMIT, Trials, World, expect_refused};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("looking_in")
        .both("metrics_count_what_happened", metrics)
        .one("proxy_mode_and_configuration", kube_proxys_paths)
        .both("flows_are_filtered_by_the_proxy", filters)
        .done()
}

/// Bytes that one flow carries each way.
const PAYLOAD: usize = 5000;

fn metrics(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("dead", 81, 8001)];
    world.serve("app", 2, &ports, &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&[])?;
    let from = world.from(Client::Pod);
    let mut open = client::connect(from, world.vip_at(family, 2, 80), LIMIT)?;
    open.write_all(&[7; PAYLOAD])?;
    open.read_exact(&mut [0; PAYLOAD])?;
    expect_refused(from, world.vip_at(family, 2, 81))?;

    // Bytes of an open flow are counted within a second.
    let counted = [
        ("kube_tun_proxy_service_received_bytes_total", PAYLOAD),
        ("kube_tun_proxy_service_sent_bytes_total", PAYLOAD),
        ("kube_tun_proxy_service_flows_opened_total", 1),
        ("kube_tun_proxy_service_flows", 1),
    ];
    let text = wait_for(&world, "bytes of the open flow", |text| {
        counted
            .iter()
            .all(|(name, value)| sum(text, &format!("{name}{{"), "port=\"web\"") == *value as f64)
    })?;
    for (name, labels, value) in [
        ("kube_tun_proxy_flows ", "", 1.0),
        ("kube_tun_proxy_flows_opened_total{", "TCP", 2.0),
        ("kube_tun_proxy_flows_opened_total{", "UDP", 0.0),
        (
            "kube_tun_proxy_flows_ended_total{",
            "\"connect_refused\"",
            1.0,
        ),
        ("kube_tun_proxy_dial_failures_total{", "\"refused\"", 1.0),
        (
            "kube_tun_proxy_rejected_flows_total{",
            "\"connect_failed\"",
            1.0,
        ),
        (
            "kube_tun_proxy_service_dial_failures_total{",
            "port=\"dead\"",
            1.0,
        ),
        ("kube_tun_proxy_dial_duration_seconds_count ", "", 1.0),
        ("kube_tun_proxy_flow_duration_seconds_count ", "", 1.0),
        ("kube_tun_proxy_ready ", "", 1.0),
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending ",
            "",
            0.0,
        ),
    ] {
        assert_eq!(sum(&text, name, labels), value, "{name}{labels}\n{text}");
    }
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count ",
        "kubeproxy_sync_proxy_rules_service_changes_total ",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total ",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds ",
        "kubeproxy_proxy_livez_total{",
        "kube_tun_proxy_worker_busy_seconds_total{",
        "process_resident_memory_bytes ",
    ] {
        if name.contains("livez") {
            let path = "/livez";
            client::http_get(
                world.node().namespace(),
                world.proxy().healthz(),
                path,
                LIMIT,
            )?;
        }
        assert!(sum(&scrape(&world)?, name, "") > 0.0, "{name}\n{text}");
    }
    drop(open);
    wait_for(&world, "the end of the flow", |text| {
        sum(text, "kube_tun_proxy_flow_duration_seconds_count ", "") == 2.0
    })?;
    Ok(())
}

fn kube_proxys_paths() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.start(&["--max-flows=321"])?;
    let (node, at) = (world.node().namespace(), world.proxy().metrics());
    let get = |path| client::http_get(node, at, path, LIMIT);
    assert_eq!(get("/proxyMode")?, (200, "tun".to_owned()));
    let configuration: Value = serde_json::from_str(&get("/configz")?.1)?;
    assert_eq!(configuration["maxFlows"], 321);
    let status: Value = serde_json::from_str(&get("/api/v1/status")?.1)?;
    assert_eq!(status["maxFlows"], 321, "{status}");
    assert_eq!(status["health"]["ready"], true, "{status}");
    assert!(get("/")?.1.contains("<title>kube-tun-proxy</title>"));
    Ok(())
}

fn filters(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("api", 81, 8001)];
    world.serve("app", 2, &ports, &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let _api = world.pod(0).serve_tcp(8001, Tcp::Echo)?;
    world.start(&[])?;
    let from = world.from(Client::Pod);
    let web = client::connect(from, world.vip_at(family, 2, 80), LIMIT)?;
    let api = client::connect(from, world.vip_at(family, 2, 81), LIMIT)?;
    world.wait_for_flows("two flows", |flows| {
        flows.len() == 2 && flows.iter().all(|flow| flow.state == "ESTABLISHED")
    })?;
    let (web, api) = (web.local_addr()?, api.local_addr()?);
    let namespace = service_namespace(&world)?;
    let real_server = family.at(world.pod(0), 8001);
    for (filter, expected) in [
        (
            vec!["--service".to_owned(), format!("{namespace}/app")],
            vec![web, api],
        ),
        (
            vec!["--service".to_owned(), format!("{namespace}/app:web")],
            vec![web],
        ),
        (vec!["--client".to_owned(), api.to_string()], vec![api]),
        (
            vec!["--client".to_owned(), web.ip().to_string()],
            vec![web, api],
        ),
        (
            vec!["--real-server".to_owned(), real_server.to_string()],
            vec![api],
        ),
        (
            vec!["--state".to_owned(), "established".to_owned()],
            vec![web, api],
        ),
        (vec!["--state".to_owned(), "UDP".to_owned()], vec![]),
    ] {
        let mut arguments = vec!["list", "--flows", "-o", "json"];
        arguments.extend(filter.iter().map(String::as_str));
        let output = world.proxy().command(&arguments)?;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        let mut clients: Vec<_> = told["flows"]
            .as_array()
            .ok_or("no flows")?
            .iter()
            .map(|flow| flow["client"].as_str().unwrap_or_default().to_owned())
            .collect();
        let mut expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        clients.sort_unstable();
        expected.sort_unstable();
        assert_eq!(clients, expected, "{filter:?}");
        assert_eq!(told["matching"], expected.len());
    }
    Ok(())
}

/// The namespace of the only Service.
fn service_namespace(world: &World) -> Result<String, Failed> {
    let (node, at) = (world.node().namespace(), world.proxy().metrics());
    let (_, body) = client::http_get(node, at, "/api/v1/services", LIMIT)?;
    let told: Value = serde_json::from_str(&body)?;
    let service = told["virtualServers"][0]["service"].as_str();
    let namespace = service.and_then(|service| service.split('/').next());
    Ok(namespace.ok_or("no service")?.to_owned())
}

fn scrape(world: &World) -> Result<String, Failed> {
    let (node, at) = (world.node().namespace(), world.proxy().metrics());
    let (status, text) = client::http_get(node, at, "/metrics", LIMIT)?;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    Ok(text)
}

/// Scrapes until it says so.
fn wait_for(world: &World, what: &str, done: impl Fn(&str) -> bool) -> Result<String, Failed> {
    let until = Instant::now() + LIMIT;
    loop {
        let text = scrape(world)?;
        if done(&text) {
            return Ok(text);
        }
        if Instant::now() > until {
            return Err(format!("{what} is not counted:\n{text}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The sum of the series that begin with `name` and have `label` among their labels.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    let series = text
        .lines()
        .filter(|l| l.starts_with(name) && l.contains(label));
    series
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
