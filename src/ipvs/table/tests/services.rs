//! By meaning: the tables of kube-proxy's `proxier_test.go` that concern
//! addresses, source ranges, health checks, and how Services change.

use serde_json::json;

use super::packet_flows::{Cluster, NODE, OUTSIDE, POD, balanced};
use super::policies::{BALANCER, CLUSTER_IP, NODE_PORT, P80, assert_flows, endpoints_of_web, web};
use super::*;
use crate::ipvs::ProxyProtocol;
use crate::service::fixtures::{
    apply_service, apply_slice, delete, service, slice, slice_from, slice_of,
};
use crate::service::index::NoLocalEndpoints;
use crate::service::object::{Event, ObjectKind};

/// TestLoadBalancer. The second load balancer IP and the leading space stand
/// there too.
#[test]
fn source_ranges_of_a_load_balancer() {
    let mut cluster = Cluster::new();
    let ranges = json!(["192.168.0.0/24", " 203.0.113.0/25"]);
    let ports = json!([{"name": "p80", "port": 80, "nodePort": 3001}]);
    cluster.apply([
        balanced(
            "web",
            "172.30.0.41",
            json!({"ports": ports, "loadBalancerSourceRanges": ranges}),
            json!([{"ip": "1.2.3.4"}, {"ip": "5.6.7.8"}]),
        ),
        endpoints_of_web(&["10.180.0.1 test-node"]),
    ]);
    let served = "10.180.0.1:80";
    let blocked = "203.0.113.130";
    assert_flows(
        &cluster,
        &[
            (POD, CLUSTER_IP, served),
            (OUTSIDE, NODE_PORT, served),
            // A node port is not subject to the ranges.
            (blocked, NODE_PORT, served),
            (OUTSIDE, BALANCER, served),
            (OUTSIDE, "5.6.7.8:80", served),
            (blocked, BALANCER, "source_range"),
            (blocked, "5.6.7.8:80", "source_range"),
            (POD, BALANCER, "source_range"),
            (NODE, BALANCER, served),
            (NODE, "5.6.7.8:80", served),
            // The node's own traffic, with the load balancer IP as its source.
            ("1.2.3.4", BALANCER, served),
            ("5.6.7.8", "5.6.7.8:80", served),
        ],
    );
}

/// The rules for ranges of each family, `/0` among them.
#[test]
fn source_ranges_hold_for_their_family() {
    let asked = |ranges: serde_json::Value, source: &str, balancer: &str| {
        let mut cluster = Cluster::new();
        cluster.apply([
            balanced(
                "web",
                "172.30.0.41",
                json!({
                    "clusterIPs": ["172.30.0.41", "fd00:30::41"],
                    "ports": [{"name": "p80", "port": 80}],
                    "loadBalancerSourceRanges": ranges,
                }),
                json!([{"ip": "1.2.3.4"}, {"ip": "fd01::4"}]),
            ),
            endpoints_of_web(&["10.180.0.1"]),
            apply_slice(slice_of("IPv6", "web-b", "web", P80, &["fd00:180::1"])),
        ]);
        cluster.flow(source, balancer)
    };
    let (v4, v6) = ("1.2.3.4:80", "[fd01::4]:80");
    let (served4, served6, no) = ("10.180.0.1:80", "[fd00:180::1]:80", "source_range");
    let only4 = json!(["198.51.100.0/24"]);
    assert_eq!(asked(only4.clone(), OUTSIDE, v4), no);
    assert_eq!(asked(only4, "fd02::1", v6), served6);
    let both = json!(["203.0.113.0/24", "fd02::/64"]);
    assert_eq!(asked(both.clone(), OUTSIDE, v4), served4);
    assert_eq!(asked(both.clone(), "fd02::1", v6), served6);
    assert_eq!(asked(both, "fd03::1", v6), no);
    let open = json!(["198.51.100.0/24", "0.0.0.0/0", "fd02::/64"]);
    assert_eq!(asked(open.clone(), OUTSIDE, v4), served4);
    assert_eq!(asked(open, "fd03::1", v6), no);
    // One that cannot be read is no permission, for neither family.
    let unread = json!(["203.0.113.0/33"]);
    assert_eq!(asked(unread.clone(), OUTSIDE, v4), no);
    assert_eq!(asked(unread, "fd02::1", v6), no);
}

/// TestHealthCheckNodePort and TestHealthCheckNodePortWhenTerminating.
#[test]
fn health_check_node_ports() {
    let mut cluster = Cluster::new();
    let checked = |policy: &str, port: i32| {
        web(json!({
            "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            "ports": [
                {"name": "p80", "port": 80, "nodePort": 3001},
                {"name": "p81", "port": 81, "nodePort": 3002},
            ],
        }))
    };
    let mut after = |event: Event| {
        let outcome = cluster.apply([event]);
        let changes = outcome
            .changes
            .into_iter()
            .filter_map(|change| match change {
                Change::HealthCheck(check) => Some(format!(
                    "{} {} {}",
                    check.service, check.port, check.local_endpoints
                )),
                Change::RemoveHealthCheck(service) => Some(format!("{service} removed")),
                Change::Upsert(_) | Change::Remove(_) | Change::Node(_) => None,
            });
        changes.collect::<Vec<_>>().join(", ")
    };
    let both = &[("p80", 80), ("p81", 81)];
    let ready = |endpoints: &[&str]| apply_slice(slice("web-a", "web", both, endpoints));
    assert_eq!(after(checked("Local", 30_000)), "default/web 30000 0");
    // A pod counts once, whatever its ports; those elsewhere do not.
    assert_eq!(
        after(ready(&[
            "10.0.1.1 test-node",
            "10.0.1.2 test-node",
            "10.0.1.3 host-1"
        ])),
        "default/web 30000 2"
    );
    assert_eq!(
        after(ready(&["10.0.1.1 test-node", "10.0.1.2 test-node"])),
        ""
    );
    // Unready or terminating: that is how a load balancer learns to go away.
    assert_eq!(
        after(ready(&["10.0.1.1 test-node !R S T", "10.0.1.2 test-node"])),
        "default/web 30000 1"
    );
    assert_eq!(
        after(ready(&[
            "10.0.1.1 test-node !R S T",
            "10.0.1.2 test-node !R S T"
        ])),
        "default/web 30000 0"
    );
    assert_eq!(after(ready(&["10.0.1.2 test-node"])), "default/web 30000 1");
    assert_eq!(after(checked("Local", 30_001)), "default/web 30001 1");
    assert_eq!(after(checked("Cluster", 30_001)), "default/web removed");
    assert_eq!(after(checked("Local", 30_001)), "default/web 30001 1");
    // No load balancer, no check.
    let node_port = service(
        json!({"name": "web"}),
        json!({
            "type": "NodePort", "clusterIP": "172.30.0.41", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30_001, "ports": [{"name": "p80", "port": 80}],
        }),
    );
    assert_eq!(after(apply_service(node_port)), "default/web removed");
    assert_eq!(after(checked("Local", 30_001)), "default/web 30001 1");
    assert_eq!(
        after(delete(ObjectKind::Service, "web")),
        "default/web removed"
    );
}

/// A pod with addresses of both families counts once.
#[test]
fn a_health_check_counts_pods_of_two_families_once() {
    let mut cluster = Cluster::new();
    let two = |name: &str, kind: &str, endpoints: &[&str]| {
        apply_slice(slice_of(kind, name, "web", P80, endpoints))
    };
    cluster.apply([
        web(json!({
            "clusterIPs": ["172.30.0.41", "fd00:30::41"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_000,
        })),
        two("a", "IPv4", &["10.0.1.1 test-node"]),
        two("b", "IPv6", &["fd00:1::1 test-node", "fd00:1::2 test-node"]),
    ]);
    let counts: Vec<_> = cluster.index.health_checks().collect();
    assert_eq!((counts.len(), counts[0].local_endpoints), (1, 2));
}

/// TestNoEndpointsMetric.
#[test]
fn service_ports_without_local_endpoints_are_counted() {
    let local = "10.0.1.1 test-node";
    let remote = "10.0.1.2 host-1";
    let count = |internal: &str, external: &str, endpoints: &[&str]| {
        let mut cluster = Cluster::new();
        cluster.apply([
            web(json!({"internalTrafficPolicy": internal, "externalTrafficPolicy": external})),
            endpoints_of_web(endpoints),
        ]);
        let none = NoLocalEndpoints::default();
        assert_eq!(cluster.index.no_local_endpoints(Family::V6), none);
        let counts = cluster.index.no_local_endpoints(Family::V4);
        (counts.internal, counts.external)
    };
    let (cluster, on_node) = ("Cluster", "Local");
    assert_eq!(count(on_node, cluster, &[local, remote]), (0, 0));
    assert_eq!(count(cluster, on_node, &[local, remote]), (0, 0));
    assert_eq!(count(on_node, on_node, &[local, remote]), (0, 0));
    assert_eq!(count(on_node, cluster, &[remote]), (1, 0));
    assert_eq!(count(cluster, on_node, &[remote]), (0, 1));
    assert_eq!(count(on_node, on_node, &[remote]), (1, 1));
    assert_eq!(count(on_node, on_node, &["10.0.1.2 host-1 !R S T"]), (1, 1));
    assert_eq!(count(on_node, on_node, &["10.0.1.2 host-1 !R"]), (0, 0));
    assert_eq!(count(on_node, on_node, &[]), (0, 0));
    assert_eq!(count(cluster, cluster, &[remote]), (0, 0));
}

/// TestBadIPs.
#[test]
fn leading_zeros_are_decimal_in_every_address() {
    let mut cluster = Cluster::new();
    cluster.apply([
        balanced(
            "web",
            "172.30.0.041",
            json!({
                "ports": [{"name": "p80", "port": 80, "nodePort": 3001}],
                "externalIPs": ["192.168.099.022"],
                "loadBalancerSourceRanges": ["203.0.113.000/025"],
            }),
            json!([{"ip": "1.2.3.004"}]),
        ),
        endpoints_of_web(&["10.180.00.001"]),
    ]);
    let served = "10.180.0.1:80";
    assert_flows(
        &cluster,
        &[
            (POD, "172.30.0.41:80", served),
            (OUTSIDE, "192.168.99.22:80", served),
            (OUTSIDE, "1.2.3.4:80", served),
            (OUTSIDE, NODE_PORT, served),
            ("203.0.113.200", "1.2.3.4:80", "source_range"),
        ],
    );
}

/// TestLoadBalancerIngressRouteTypeProxy.
#[test]
fn an_ingress_ip_of_mode_proxy_is_none_of_ours() {
    let flow = |mode: serde_json::Value| {
        let mut cluster = Cluster::new();
        cluster.apply([
            balanced(
                "web",
                "172.30.0.41",
                json!({"ports": [{"name": "p80", "port": 80}]}),
                json!([{"ip": "1.2.3.4", "ipMode": mode}]),
            ),
            endpoints_of_web(&["10.180.0.1"]),
        ]);
        assert_eq!(cluster.flow(POD, CLUSTER_IP), "10.180.0.1:80");
        cluster.flow(OUTSIDE, BALANCER)
    };
    assert_eq!(flow(json!("VIP")), "10.180.0.1:80");
    assert_eq!(flow(json!(null)), "10.180.0.1:80");
    assert_eq!(flow(json!("Proxy")), "unknown_address");
}

/// TestClusterIPGeneral: several slices and ports, wrong ports, other protocols.
#[test]
fn several_ports_and_protocols() {
    let mut cluster = Cluster::new();
    let many = service(
        json!({"name": "web"}),
        json!({"clusterIP": "172.30.0.41", "ports": [
            {"name": "http", "port": 80}, {"name": "https", "port": 443},
            {"name": "dns-tcp", "port": 53}, {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "sctp", "port": 9, "protocol": "SCTP"},
        ]}),
    );
    let sliced = |name: &str, port: &str, number: i32, protocol: &str, endpoint: &str| {
        apply_slice(slice_from(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": port, "port": number, "protocol": protocol}],
            "endpoints": [{"addresses": [endpoint]}],
        })))
    };
    cluster.apply([
        apply_service(many),
        sliced("a", "http", 8080, "TCP", "10.180.0.1"),
        sliced("b", "https", 8443, "TCP", "10.180.0.1"),
        sliced("c", "http", 8081, "TCP", "10.180.0.2"),
        sliced("d", "dns", 5353, "UDP", "10.180.0.3"),
        sliced("e", "sctp", 99, "SCTP", "10.180.0.4"),
    ]);
    let over =
        |protocol, port: u16| cluster.flow_over(protocol, POD, &format!("172.30.0.41:{port}"));
    assert_eq!(over(Protocol::Tcp, 80), "10.180.0.1:8080 10.180.0.2:8081");
    assert_eq!(over(Protocol::Tcp, 443), "10.180.0.1:8443");
    assert_eq!(over(Protocol::Tcp, 53), "refused");
    assert_eq!(over(Protocol::Udp, 53), "10.180.0.3:5353");
    assert_eq!(over(Protocol::Tcp, 81), "unknown_port");
    assert_eq!(over(Protocol::Udp, 80), "unknown_port");
    // Known by name, never carried.
    assert_eq!(over(Protocol::Sctp, 9), "sctp");
    let sctp = cluster.index.virtual_servers();
    let sctp = sctp.iter().find(|s| s.address.protocol == Protocol::Sctp);
    assert_eq!(sctp.unwrap().service.to_string(), "default/web:sctp");
}

/// e2e: a Service changes its type, and what it is reached by comes and goes.
#[test]
fn a_service_changes_its_type() {
    let mut cluster = Cluster::new();
    cluster.apply([endpoints_of_web(&["10.180.0.1"])]);
    let typed = |kind: &str, node_port: Option<i32>| {
        apply_service(service(
            json!({"name": "web"}),
            json!({
                "type": kind, "clusterIP": "172.30.0.41",
                "ports": [{"name": "p80", "port": 80, "nodePort": node_port}],
            }),
        ))
    };
    let external_name = || {
        apply_service(service(
            json!({"name": "web"}),
            json!({"type": "ExternalName", "externalName": "example.org"}),
        ))
    };
    let mut after = |event: Event| {
        cluster.apply([event]);
        [CLUSTER_IP, NODE_PORT, BALANCER].map(|to| cluster.flow(OUTSIDE, to))
    };
    let (served, no) = ("10.180.0.1:80", "unknown_address");
    assert_eq!(after(typed("ClusterIP", None)), [served, no, no]);
    assert_eq!(after(typed("NodePort", Some(3001))), [served, served, no]);
    assert_eq!(after(web(json!({}))), [served, served, served]);
    assert_eq!(after(typed("NodePort", Some(3002))), [served, no, no]);
    assert_eq!(after(external_name()), [no, no, no]);
    assert_eq!(after(typed("NodePort", Some(3001))), [served, served, no]);
    assert_eq!(after(typed("ClusterIP", None)), [served, no, no]);
    assert_eq!(after(web(json!({}))), [served, served, served]);
    assert_eq!(after(external_name()), [no, no, no]);
    assert_eq!(after(delete(ObjectKind::Service, "web")), [no, no, no]);
}

/// The annotations, and what is wrong in them.
#[test]
fn annotations_of_a_service() {
    let annotated = |scheduler: &str, header: &str| {
        let annotations = json!({
            "kube-tun-proxy.io/scheduler": scheduler,
            "kube-tun-proxy.io/proxy-protocol": header,
        });
        apply_service(service(
            json!({"name": "web", "annotations": annotations}),
            json!({"clusterIP": "172.30.0.41", "ports": [
                {"name": "p80", "port": 80}, {"name": "u", "port": 80, "protocol": "UDP"},
            ]}),
        ))
    };
    let mut cluster = Cluster::new();
    let outcome = cluster.apply([annotated("lc", "v2")]);
    assert_eq!(outcome.warnings, []);
    let specs: Vec<_> = cluster.index.virtual_servers();
    assert_eq!(specs[0].scheduler, Some(SchedulerKind::Lc));
    assert_eq!(specs[0].proxy_protocol, Some(ProxyProtocol::V2));
    // A datagram has no beginning of a stream.
    assert_eq!(specs[1].address.protocol, Protocol::Udp);
    assert_eq!(specs[1].proxy_protocol, None);
    let outcome = cluster.apply([annotated("fastest", "v3")]);
    let told: Vec<_> = outcome
        .warnings
        .iter()
        .map(|w| w.error.to_string())
        .collect();
    assert_eq!(
        told,
        [
            "metadata.annotations[kube-tun-proxy.io/scheduler]: \"fastest\" is not one of rr, \
             wrr, lc, wlc, sed, nq, sh, dh, mh; the default is used",
            "metadata.annotations[kube-tun-proxy.io/proxy-protocol]: \"v3\" is not one of v1, \
             v2; no header is sent",
        ]
    );
    let specs: Vec<_> = cluster.index.virtual_servers();
    assert_eq!((specs[0].scheduler, specs[0].proxy_protocol), (None, None));
}

/// kube-proxy's rule for stale flows (conntrack/cleanup_test.go,
/// TestCleanStaleEntries and TestServiceWithoutEndpoints): a UDP flow ends when its
/// endpoint serves no more and another one does. Policy and topology do not count.
#[test]
fn udp_flows_end_with_an_endpoint_that_serves_no_more() {
    let mut cluster = Cluster::new();
    let dns = |policy: &str| {
        apply_service(service(
            json!({"name": "dns"}),
            json!({
                "clusterIP": "172.30.0.10", "internalTrafficPolicy": policy,
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            }),
        ))
    };
    let backed = |endpoints: serde_json::Value| {
        apply_slice(slice_from(json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "dns"}},
            "addressType": "IPv4",
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": endpoints,
        })))
    };
    let at = |address: &str, node: &str| json!({"addresses": [address], "nodeName": node});
    let leaving = |address: &str, serving: bool| {
        json!({
            "addresses": [address], "nodeName": "host-1",
            "conditions": {"ready": false, "serving": serving, "terminating": true},
        })
    };
    cluster.apply([dns("Cluster"), backed(json!([at("10.0.1.1", "host-1")]))]);
    let flow = Connection::new(cluster.pick(Protocol::Udp, POD, "172.30.0.10:53"));
    let mut retired = |event: Event| {
        cluster.apply([event]);
        flow.real_server().is_retired()
    };
    let local = || at("10.0.1.2", "test-node");
    assert!(!retired(backed(json!([at("10.0.1.1", "host-1"), local()]))));
    // The policy sends new flows elsewhere and leaves this one alone.
    assert!(!retired(dns("Local")));
    assert!(!retired(dns("Cluster")));
    assert!(!retired(backed(json!([
        leaving("10.0.1.1", true),
        local()
    ]))));
    // Nobody serves any more: nothing is gained by ending it.
    assert!(!retired(backed(json!([leaving("10.0.1.1", false)]))));
    assert!(!retired(backed(json!([]))));
    assert!(retired(backed(json!([local()]))));
    assert!(!retired(backed(json!([at("10.0.1.1", "host-1"), local()]))));
    assert!(retired(delete(ObjectKind::Service, "dns")));
}

/// Affinity moves with a connection that was made elsewhere, not with a failure.
#[test]
fn affinity_follows_a_fail_over_that_succeeded() {
    let mut cluster = Cluster::new();
    cluster.apply([
        web(json!({"sessionAffinity": "ClientIP"})),
        endpoints_of_web(&["10.0.1.1", "10.0.1.2"]),
    ]);
    let server = cluster.server(Protocol::Tcp, OUTSIDE, BALANCER);
    let (now, from) = (
        Instant::now(),
        SocketAddr::new(OUTSIDE.parse().unwrap(), 40_000),
    );
    let first = server.schedule(from, now, &[]).unwrap();
    let mut flow = Connection::new(Arc::clone(&first));
    server.connected(from.ip(), &mut flow, now);
    let tried = [first.address];
    let second = server.schedule(from, now, &tried).unwrap();
    assert_ne!(second.address, first.address);
    assert!(
        server
            .schedule(from, now, &[first.address, second.address])
            .is_none()
    );
    let stays = || server.schedule(from, now, &[]).unwrap().address;
    assert_eq!(stays(), first.address, "the other one was tried, no more");
    let mut moved = Connection::new(Arc::clone(&second));
    server.connected(from.ip(), &mut moved, now);
    assert_eq!(stays(), second.address);
}
