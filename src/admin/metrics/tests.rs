use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::ipvs::{Protocol, ServicePortName, TrafficView};

mod dashboards;

/// Measurements in which everything that can be there is there.
pub(in crate::admin) fn example() -> Measurements {
    let service = ServicePortName {
        namespace: "kube-system".into(),
        name: "kube-dns".into(),
        port: "dns".into(),
        protocol: Protocol::Udp,
    };
    let total = |service| ServiceTotal {
        service,
        traffic: TrafficView {
            opened: 7,
            failed: 1,
            bytes_in: 40,
            bytes_out: 1 << 40,
        },
        flows: 2,
        real_servers: 3,
    };
    let histogram = HistogramValues {
        buckets: vec![(0.001, 2), (0.002, 1), (f64::INFINITY, 1)],
        sum: 1.5,
    };
    Measurements {
        counters: Counters {
            opened: 10,
            opened_udp: 4,
            busy: vec![Duration::from_millis(1500)],
            flows: 5,
            ..Counters::default()
        },
        node_port_busy: vec![Duration::from_secs(1)],
        max_flows: 65_536,
        max_memory: 1 << 30,
        services: vec![total(Some(Arc::new(service))), total(None)],
        virtual_servers: 4,
        sync: SyncValues {
            duration: histogram.clone(),
            network_programming: histogram.clone(),
            last: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)),
            services_total: 3,
            no_local_external: 1,
            ..SyncValues::default()
        },
        health: vec![HealthAnswers {
            path: "healthz",
            code: 200,
            count: 9,
        }],
        ready: true,
        fallback: Some(FallbackValues {
            active: true,
            reasons: vec![("absent", true), ("empty", false)],
            changes: 4,
        }),
        api_server: Some(ApiServerValues {
            host: "192.168.0.10:6443".to_owned(),
            requests: vec![
                ("GET".to_owned(), "200".to_owned(), 6),
                ("GET".to_owned(), "<error>".to_owned(), 1),
            ],
            duration: histogram,
            reachable: Some(true),
            last_answer: Some(SystemTime::UNIX_EPOCH),
        }),
        process: ProcessValues::default(),
        version: "0.0.1",
    }
}

#[test]
fn series_as_prometheus_reads_them() {
    let text = text(example()).unwrap();
    for line in [
        "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"} 2",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 3",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"+Inf\"} 4",
        "kubeproxy_sync_proxy_rules_duration_seconds_count 4",
        "kubeproxy_sync_proxy_rules_duration_seconds_sum 1.5",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1.5",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 0.0",
        "kubeproxy_sync_proxy_rules_service_changes_total 3",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 9",
        "rest_client_requests_total{code=\"<error>\",host=\"192.168.0.10:6443\",method=\"GET\"} 1",
        "kube_tun_proxy_flows_opened_total{protocol=\"TCP\"} 6",
        "kube_tun_proxy_flows_opened_total{protocol=\"UDP\"} 4",
        "kube_tun_proxy_flows 5",
        "kube_tun_proxy_memory_max_bytes 1073741824",
        "kube_tun_proxy_dropped_packets_total{reason=\"not_synced\"} 0",
        "kube_tun_proxy_service_sent_bytes_total{namespace=\"kube-system\",service=\"kube-dns\",\
         port=\"dns\",protocol=\"UDP\"} 1099511627776",
        "kube_tun_proxy_service_flows{namespace=\"_others\",service=\"_others\",port=\"\",\
         protocol=\"\"} 2",
        "kube_tun_proxy_fallback_active 1",
        "kube_tun_proxy_fallback_reason{reason=\"absent\"} 1",
        "kube_tun_proxy_fallback_reason{reason=\"empty\"} 0",
        "kube_tun_proxy_fallback_changes_total 4",
        "kube_tun_proxy_worker_busy_seconds_total{worker=\"worker-0\"} 1.5",
        "kube_tun_proxy_worker_busy_seconds_total{worker=\"node-port-0\"} 1.0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn every_family_is_described_once() {
    let text = text(example()).unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(names.insert(name), "{name} is described twice");
            assert!(help.len() > 10, "{name}: {help}");
            // The unit of a value stands in its help.
            for (unit, word) in [("_seconds", "seconds"), ("_bytes", "ytes")] {
                assert!(
                    !name.contains(unit) || help.contains(word),
                    "{name}: {help}"
                );
            }
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split([' ', '{']).next().unwrap();
        let family = ["_total", "_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| {
                name.strip_suffix(suffix)
                    .filter(|name| names.contains(name))
            })
            .unwrap_or(name);
        assert!(names.contains(family), "{line}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn hosts() {
    for (host, port, label) in [
        ("10.0.0.1", Some(443), "10.0.0.1:443"),
        ("fd00::1", Some(6443), "[fd00::1]:6443"),
        ("api.example", Some(6443), "api.example:6443"),
        ("api.example", None, "api.example"),
    ] {
        assert_eq!(host_label(host, port), label);
    }
}
