//! Metrics that kube-proxy has no counterpart of, under `kube_tun_proxy_`.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::write::{Labels, counter, counters, gauge, gauges, histogram};
use super::{FallbackValues, HistogramValues, Measurements};
use crate::admin::history::ServiceTotal;
use crate::ipvs::TrafficView;

/// The service of those beyond `--metrics-max-services` together: no Service can have
/// this name (RFC 1123 labels begin with a letter or digit).
const OTHERS: &str = "_others";

pub(super) fn encode(values: &Measurements, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauges(
        out,
        "kube_tun_proxy_build_info",
        "1; the version is the label",
        [(vec![("version", values.version)], 1_u32)].into_iter(),
    )?;
    gauge(
        out,
        "kube_tun_proxy_ready",
        "1 while /readyz says ready, else 0",
        u32::from(values.ready),
    )?;
    if let Some(values) = &values.fallback {
        fallback(values, out)?;
    }
    flows(values, out)?;
    reasons(values, out)?;
    services(&values.services, out)?;
    workers(values, out)
}

fn fallback(values: &FallbackValues, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauge(
        out,
        "kube_tun_proxy_fallback_active",
        "1 while the proxy takes part (--mode fallback), 0 while it stands by",
        u32::from(values.active),
    )?;
    gauges(
        out,
        "kube_tun_proxy_fallback_reason",
        "1 for what the kernel did when it was decided last whether to take part, else 0",
        values
            .reasons
            .iter()
            .map(|(reason, is)| (vec![("reason", *reason)], u32::from(*is))),
    )?;
    counter(
        out,
        "kube_tun_proxy_fallback_changes",
        "How often it was decided otherwise than before whether to take part",
        values.changes,
    )
}

fn flows(values: &Measurements, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counters_now = &values.counters;
    let opened = [
        ("TCP", counters_now.opened - counters_now.opened_udp),
        ("UDP", counters_now.opened_udp),
    ];
    counters(
        out,
        "kube_tun_proxy_flows_opened",
        "Flows taken in: TCP connections from their SYN on, UDP conversations",
        opened
            .into_iter()
            .map(|(protocol, count)| (vec![("protocol", protocol)], count)),
    )?;
    gauge(
        out,
        "kube_tun_proxy_flows",
        "Flows open now, TCP and UDP",
        gauge_of(counters_now.flows),
    )?;
    gauge(
        out,
        "kube_tun_proxy_flows_max",
        "Flows above which new ones are refused (--max-flows)",
        gauge_of(values.max_flows),
    )?;
    gauge(
        out,
        "kube_tun_proxy_memory_bytes",
        "Bytes behind the buffers of flows, at most",
        gauge_of(counters_now.memory),
    )?;
    gauge(
        out,
        "kube_tun_proxy_memory_max_bytes",
        "Bytes of buffers above which new flows are refused (--max-memory)",
        gauge_of(values.max_memory),
    )?;
    gauge(
        out,
        "kube_tun_proxy_virtual_servers",
        "Virtual servers: addresses, ports and protocols that are served",
        gauge_of(values.virtual_servers),
    )?;
    histogram(
        out,
        "kube_tun_proxy_dial_duration_seconds",
        "From a client's SYN until a real server has accepted, failed attempts included, in seconds",
        &HistogramValues::of(&counters_now.dial_time),
    )?;
    histogram(
        out,
        "kube_tun_proxy_flow_duration_seconds",
        "From the first packet of a flow to its end, for flows that have ended, in seconds",
        &HistogramValues::of(&counters_now.duration),
    )?;
    counter(
        out,
        "kube_tun_proxy_failovers",
        "Real servers stepped over because they refused or stayed silent",
        counters_now.failovers,
    )
}

fn reasons(values: &Measurements, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counts = &values.counters;
    let of = |reason: &'static str, count| -> (Labels<'static>, u64) {
        (vec![("reason", reason)], count)
    };
    counters(
        out,
        "kube_tun_proxy_dropped_packets",
        "Packets dropped in silence, by reason",
        counts
            .dropped
            .iter()
            .map(|(r, count)| of(r.as_str(), *count)),
    )?;
    counters(
        out,
        "kube_tun_proxy_rejected_flows",
        "New flows refused with RST or an ICMP error, by reason",
        counts
            .rejected
            .iter()
            .map(|(r, count)| of(r.as_str(), *count)),
    )?;
    counters(
        out,
        "kube_tun_proxy_flows_ended",
        "Flows that ended, by how; connect_refused and connect_timeout never had a real server",
        counts
            .ended
            .iter()
            .map(|(ending, count)| (vec![("ending", ending.as_str())], *count)),
    )?;
    counters(
        out,
        "kube_tun_proxy_dial_failures",
        "Attempts to connect to one real server that failed, by reason",
        counts
            .dial_failures
            .iter()
            .map(|(r, count)| of(r.as_str(), *count)),
    )
}

fn services(services: &[ServiceTotal], out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Get = fn(&TrafficView) -> u64;
    let families: [(&str, &str, Get); 4] = [
        (
            "kube_tun_proxy_service_flows_opened",
            "Flows of a service port that got a real server",
            |traffic| traffic.opened,
        ),
        (
            "kube_tun_proxy_service_dial_failures",
            "Attempts to connect to a real server of a service port that failed",
            |traffic| traffic.failed,
        ),
        (
            "kube_tun_proxy_service_received_bytes",
            "Payload from clients to real servers of a service port, in bytes",
            |traffic| traffic.bytes_in,
        ),
        (
            "kube_tun_proxy_service_sent_bytes",
            "Payload from real servers of a service port to clients, in bytes",
            |traffic| traffic.bytes_out,
        ),
    ];
    for (name, help, get) in families {
        counters(
            out,
            name,
            help,
            services
                .iter()
                .map(|total| (labels(total), get(&total.traffic))),
        )?;
    }
    gauges(
        out,
        "kube_tun_proxy_service_flows",
        "Flows of a service port open now",
        services.iter().map(|total| (labels(total), total.flows)),
    )?;
    gauges(
        out,
        "kube_tun_proxy_service_real_servers",
        "Real servers of a service port that take new flows on this node",
        services
            .iter()
            .map(|total| (labels(total), total.real_servers)),
    )
}

fn labels(total: &ServiceTotal) -> Labels<'_> {
    match &total.service {
        Some(name) => vec![
            ("namespace", &name.namespace),
            ("service", &name.name),
            ("port", &name.port),
            ("protocol", name.protocol.as_str()),
        ],
        None => vec![
            ("namespace", OTHERS),
            ("service", OTHERS),
            ("port", ""),
            ("protocol", ""),
        ],
    }
}

fn workers(values: &Measurements, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let kinds = [
        ("worker", &values.counters.busy),
        ("node-port", &values.node_port_busy),
    ];
    let busy: Vec<_> = kinds
        .into_iter()
        .flat_map(|(kind, busy)| {
            busy.iter()
                .enumerate()
                .map(move |(at, busy)| (format!("{kind}-{at}"), busy.as_secs_f64()))
        })
        .collect();
    counters(
        out,
        "kube_tun_proxy_worker_busy_seconds",
        "Time that a worker thread was at work instead of waiting, in seconds",
        busy.iter()
            .map(|(worker, busy)| (vec![("worker", worker.as_str())], *busy)),
    )?;
    for (name, help, count) in [
        (
            "kube_tun_proxy_tun_errors",
            "Packets that the TUN did not take",
            values.counters.tun_errors,
        ),
        (
            "kube_tun_proxy_handed_over_packets",
            "Packets that came to another worker's queue and were handed over",
            values.counters.handed_over,
        ),
        (
            "kube_tun_proxy_unlogged_flows",
            "Ended flows that the access log lost because it was too slow",
            values.counters.unlogged,
        ),
    ] {
        counter(out, name, help, count)?;
    }
    Ok(())
}

fn gauge_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
