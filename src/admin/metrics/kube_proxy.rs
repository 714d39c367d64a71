//! kube-proxy's metrics, and client-go's of the requests to the API server.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::write::{counter, counters, gauge, gauges, histogram, timestamp};
use super::{ApiServerValues, Measurements};

pub(super) fn encode(values: &Measurements, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sync = &values.sync;
    histogram(
        out,
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "Time to program one batch of changes, in seconds",
        &sync.duration,
    )?;
    gauge(
        out,
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "When changes were last programmed, in seconds since 1970",
        timestamp(sync.last),
    )?;
    gauge(
        out,
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "When changes to be programmed last arrived, in seconds since 1970",
        timestamp(sync.last_queued),
    )?;
    histogram(
        out,
        "kubeproxy_network_programming_duration_seconds",
        "From a change of endpoints in the cluster until it is in force here, in seconds",
        &sync.network_programming,
    )?;
    gauge(
        out,
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "Changes of Services that wait to be programmed",
        sync.services_pending,
    )?;
    counter(
        out,
        "kubeproxy_sync_proxy_rules_service_changes",
        "Changes of Services that have arrived",
        sync.services_total,
    )?;
    gauge(
        out,
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "Changes of EndpointSlices that wait to be programmed",
        sync.endpoints_pending,
    )?;
    counter(
        out,
        "kubeproxy_sync_proxy_rules_endpoint_changes",
        "Changes of EndpointSlices that have arrived",
        sync.endpoints_total,
    )?;
    let policies = [
        ("internal", sync.no_local_internal),
        ("external", sync.no_local_external),
    ];
    // A gauge in spite of its name, in kube-proxy too.
    gauges(
        out,
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with a traffic policy Local and no endpoint on this node",
        policies
            .into_iter()
            .map(|(policy, count)| (vec![("traffic_policy", policy)], gauge_of(count))),
    )?;
    for (path, name, help) in [
        (
            "healthz",
            "kubeproxy_proxy_healthz",
            "Answers of /healthz, by HTTP status",
        ),
        (
            "livez",
            "kubeproxy_proxy_livez",
            "Answers of /livez, by HTTP status",
        ),
    ] {
        let answers = values.health.iter().filter(|answers| answers.path == path);
        let coded: Vec<_> = answers
            .map(|answers| (answers.code.to_string(), answers.count))
            .collect();
        counters(
            out,
            name,
            help,
            coded
                .iter()
                .map(|(code, count)| (vec![("code", code.as_str())], *count)),
        )?;
    }
    match &values.api_server {
        Some(api_server) => rest_client(api_server, out),
        None => Ok(()),
    }
}

fn rest_client(values: &ApiServerValues, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let host = values.host.as_str();
    counters(
        out,
        "rest_client_requests",
        "Requests to the API server, by HTTP status, method and host; <error> without an answer",
        values.requests.iter().map(|(method, code, count)| {
            let labels = vec![("code", code.as_str()), ("host", host), ("method", method)];
            (labels, *count)
        }),
    )?;
    histogram(
        out,
        "rest_client_request_duration_seconds",
        "Time from a request to the API server to the head of its answer, in seconds",
        &values.duration,
    )?;
    gauge(
        out,
        "kube_tun_proxy_api_server_reachable",
        "1 while the last request to the API server was answered, 0 while not or before the first",
        u32::from(values.reachable.unwrap_or(false)),
    )?;
    gauge(
        out,
        "kube_tun_proxy_api_server_last_answer_timestamp_seconds",
        "When the API server last answered, in seconds since 1970",
        timestamp(values.last_answer),
    )
}

fn gauge_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
