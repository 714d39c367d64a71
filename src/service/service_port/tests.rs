use serde_json::{Value, json};

use super::*;
use crate::service::fixtures::{plain, service, service_with_status};

fn spec(extra: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.0.0.3", "ports": [{"port": 443}]});
    let fields = extra.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(fields);
    spec
}

fn with(extra: Value) -> Service {
    service(json!({"name": "web", "namespace": "ns"}), spec(extra))
}

fn errors(service: &Service) -> Vec<String> {
    service.errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_service() {
    let service = with(json!({}));
    assert_eq!(service.name.to_string(), "ns/web");
    assert_eq!(service.skip, None);
    let ports = service.addresses();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].0.to_string(), "TCP 10.0.0.3:443");
    assert_eq!(ports[0].2.name.to_string(), "ns/web");
    assert_eq!(service.affinity, None);
    assert!(service.errors.is_empty());
}

#[test]
fn services_that_are_not_ours_are_skipped() {
    let skip = |extra| with(extra).skip;
    assert_eq!(skip(json!({"clusterIP": "None"})), Some(Skip::Headless));
    assert_eq!(skip(json!({"clusterIPs": ["None"]})), Some(Skip::Headless));
    let external = json!({"type": "ExternalName", "externalName": "example.org"});
    assert_eq!(skip(external), Some(Skip::ExternalName));
    let meta = json!({"name": "web", "labels": {LABEL_PROXY_NAME: ""}});
    let labelled = service(meta, spec(json!({})));
    assert_eq!(labelled.skip, Some(Skip::OtherProxy));
    for extra in [json!({"clusterIP": ""}), json!({"clusterIP": null})] {
        let service = with(extra);
        assert_eq!(service.skip, Some(Skip::NoClusterIp));
        assert_eq!(errors(&service), ["spec.clusterIP: is missing"]);
    }
    // Headless and ExternalName Services need no ports and are not at fault.
    assert!(
        with(json!({"clusterIP": "None", "ports": []}))
            .errors
            .is_empty()
    );
}

#[test]
fn both_families_have_an_address() {
    let service = with(json!({"clusterIPs": ["10.0.0.3", "fd00::3"]}));
    let addresses: Vec<_> = service.addresses();
    let addresses: Vec<_> = addresses.iter().map(|(a, ..)| a.to_string()).collect();
    assert_eq!(addresses, ["TCP 10.0.0.3:443", "TCP [fd00::3]:443"]);
    assert!(service.errors.is_empty());
}

#[test]
fn bad_cluster_ips_are_named() {
    let service = with(json!({"clusterIPs": ["10.0.0.4", "10.0.0.5", "fd00::g", "127.0.0.1"]}));
    assert_eq!(
        errors(&service),
        [
            "spec.clusterIPs[1]: a cluster IP of family IPv4 stands twice; the first is used",
            "spec.clusterIPs[2]: \"fd00::g\" is not an IP address",
            "spec.clusterIPs[3]: 127.0.0.1 is not a unicast address",
            "spec.clusterIP: 10.0.0.3 contradicts spec.clusterIPs[0] 10.0.0.4, which is used",
        ]
    );
    assert_eq!(service.cluster_ips.len(), 1);
}

#[test]
fn leading_zeros_are_decimal_everywhere() {
    let service = service_with_status(
        json!({"name": "web"}),
        json!({
            "clusterIP": "172.30.0.041",
            "type": "LoadBalancer",
            "externalIPs": ["192.168.099.022"],
            "loadBalancerSourceRanges": [" 203.0.113.000/25"],
            "ports": [{"port": 80}],
        }),
        json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.004"}]}}),
    );
    assert!(service.errors.is_empty());
    assert_eq!(
        service.cluster_ips,
        ["172.30.0.41".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        service.external_ips,
        ["192.168.99.22".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        service.load_balancer_ips,
        ["1.2.3.4".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        service.source_ranges,
        Some(vec!["203.0.113.0/25".parse().unwrap()])
    );
}

#[test]
fn one_bad_port_does_not_lose_the_others() {
    let service = with(json!({"ports": [
        {"name": "a", "port": 80, "nodePort": 30080},
        {"name": "b", "port": 0},
        {"name": "c", "port": 65536},
        {"name": "d", "port": 81, "protocol": "QUIC"},
        {"name": "a", "port": 82},
        {"name": "a", "port": 80, "protocol": "UDP"},
        {"name": "e", "port": 80},
        {"name": "f", "port": 83, "nodePort": 70000},
        {"name": "g", "port": 84, "protocol": "SCTP"},
    ]}));
    let kept: Vec<_> = service
        .ports
        .iter()
        .map(|p| (&*p.name.port, p.port, p.name.protocol, p.node_port))
        .collect();
    assert_eq!(
        kept,
        [
            ("a", 80, Protocol::Tcp, Some(30080)),
            ("a", 80, Protocol::Udp, None),
            ("f", 83, Protocol::Tcp, None),
            ("g", 84, Protocol::Sctp, None),
        ]
    );
    assert_eq!(
        errors(&service),
        [
            "spec.ports[1].port: 0 is not a port (1 to 65535)",
            "spec.ports[2].port: 65536 is not a port (1 to 65535)",
            "spec.ports[3].protocol: \"QUIC\" is not one of TCP, UDP, SCTP",
            "spec.ports[4].name: port name \"a\" with TCP stands twice; the first is used",
            "spec.ports[6].port: TCP 80 stands twice; the first is used",
            "spec.ports[7].nodePort: 70000 is not a port (1 to 65535)",
        ]
    );
    assert_eq!(
        errors(&with(json!({"ports": []}))),
        ["spec.ports: is missing"]
    );
}

#[test]
fn session_affinity() {
    let affinity = |extra| with(extra).affinity.map(|d| d.as_secs());
    assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
    assert_eq!(
        affinity(json!({"sessionAffinity": "ClientIP"})),
        Some(10_800)
    );
    let config = |seconds: i32| {
        json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        })
    };
    assert_eq!(affinity(config(1)), Some(1));
    assert_eq!(affinity(config(86_400)), Some(86_400));
    let wrong = with(config(0));
    assert_eq!(wrong.affinity.unwrap().as_secs(), 10_800);
    assert_eq!(
        errors(&wrong),
        [
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400; 10800 is used"
        ]
    );
    let unknown = with(json!({"sessionAffinity": "Cookie"}));
    assert_eq!(unknown.affinity, None);
    assert_eq!(
        errors(&unknown),
        ["spec.sessionAffinity: \"Cookie\" is not one of ClientIP, None"]
    );
}

#[test]
fn external_policy_counts_where_external_traffic_comes_in() {
    let policy = |extra| with(extra).external_policy;
    let local = "Local";
    assert_eq!(
        policy(json!({"externalTrafficPolicy": local})),
        TrafficPolicy::Cluster
    );
    for extra in [
        json!({"externalTrafficPolicy": local, "type": "NodePort"}),
        json!({"externalTrafficPolicy": local, "type": "LoadBalancer"}),
        json!({"externalTrafficPolicy": local, "externalIPs": ["1.2.3.4"]}),
    ] {
        assert_eq!(policy(extra), TrafficPolicy::Local);
    }
    let wrong = with(json!({"internalTrafficPolicy": "local"}));
    assert_eq!(wrong.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(
        errors(&wrong),
        ["spec.internalTrafficPolicy: \"local\" is not one of Cluster, Local"]
    );
}

#[test]
fn external_access_is_per_family_and_ignores_mode_proxy() {
    let accessible = |status: Value, extra: Value| {
        let mut spec = spec(extra);
        spec["clusterIPs"] = json!(["10.0.0.3", "fd00::3"]);
        let service = service_with_status(json!({"name": "web"}), spec, status);
        Family::ALL.map(|f| service.externally_accessible(&service.ports[0], f))
    };
    let ingress = |entry: Value| json!({"loadBalancer": {"ingress": [entry]}});
    assert_eq!(accessible(json!({}), json!({})), [false, false]);
    let vip = json!({"ip": "1.2.3.4", "ipMode": "VIP"});
    assert_eq!(accessible(ingress(vip), json!({})), [true, false]);
    assert_eq!(
        accessible(ingress(json!({"ip": "fd01::1"})), json!({})),
        [false, true]
    );
    let proxy = json!({"ip": "1.2.3.4", "ipMode": "Proxy"});
    assert_eq!(accessible(ingress(proxy), json!({})), [false, false]);
    let hostname = json!({"hostname": "lb.example.org"});
    assert_eq!(accessible(ingress(hostname), json!({})), [false, false]);
    let external = json!({"externalIPs": ["fd01::1", "nonsense"]});
    assert_eq!(accessible(json!({}), external), [false, true]);
    let node_port = json!({"ports": [{"port": 80, "nodePort": 30080}]});
    assert_eq!(accessible(json!({}), node_port), [true, true]);
}

#[test]
fn a_range_that_cannot_be_read_permits_nothing() {
    let service = with(json!({"loadBalancerSourceRanges": ["10.0.0.0/33"]}));
    assert_eq!(service.source_ranges, Some(vec![]));
    assert_eq!(
        errors(&service),
        ["spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is not a CIDR"]
    );
    assert_eq!(
        with(json!({"loadBalancerSourceRanges": []})).source_ranges,
        None
    );
}

#[test]
fn names_and_times() {
    let meta = json!({"name": "web", "creationTimestamp": "1970-01-01T00:01:00Z"});
    let service = service(meta, spec(json!({})));
    assert_eq!(
        (&*service.name.namespace, service.created),
        ("default", Some(60))
    );
    assert!(Service::from_api(&api::Service::default()).is_none());
    assert_eq!(
        plain("web", "10.0.0.3", &[("https", 443)]).ports[0]
            .name
            .to_string(),
        "default/web:https"
    );
}

fn addresses(service: &Service) -> Vec<String> {
    let all = service.addresses();
    let line = |(address, exposure, _): &(_, _, _)| format!("{address} {exposure}");
    all.iter().map(line).collect()
}

#[test]
fn every_address_stands_once_by_what_it_is_first() {
    let service = service_with_status(
        json!({"name": "web"}),
        json!({
            "type": "LoadBalancer",
            "clusterIPs": ["10.0.0.3", "fd00::3"],
            "externalIPs": ["5.6.7.8", "1.2.3.4", "1.2.3.4", "10.0.0.3"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
        json!({"loadBalancer": {"ingress": [{"ip": "5.6.7.8"}, {"ip": "fd01::8"}]}}),
    );
    assert_eq!(
        addresses(&service),
        [
            "TCP 10.0.0.3:80 ClusterIP",
            "TCP [fd00::3]:80 ClusterIP",
            "TCP 5.6.7.8:80 LoadBalancerIP",
            "TCP [fd01::8]:80 LoadBalancerIP",
            "TCP 1.2.3.4:80 ExternalIP",
            "TCP 0.0.0.0:30080 NodePort",
            "TCP [::]:30080 NodePort",
        ]
    );
    assert!(service.errors.is_empty());
}

#[test]
fn addresses_of_a_family_without_cluster_ip_are_left_out() {
    let service = service_with_status(
        json!({"name": "web"}),
        json!({
            "clusterIP": "10.0.0.3", "externalIPs": ["fd02::4", "1.2.3.4"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
        json!({"loadBalancer": {"ingress": [{"ip": "fd01::8"}]}}),
    );
    assert_eq!(
        addresses(&service),
        [
            "TCP 10.0.0.3:80 ClusterIP",
            "TCP 1.2.3.4:80 ExternalIP",
            "TCP 0.0.0.0:30080 NodePort",
        ]
    );
    assert_eq!(
        errors(&service),
        [
            "spec.externalIPs[0]: fd02::4 is not an IPv4 address",
            "status.loadBalancer.ingress[0].ip: fd01::8 is not an IPv4 address",
        ]
    );
}

#[test]
fn a_node_port_stands_once_for_each_protocol() {
    let service = with(json!({"ports": [
        {"name": "a", "port": 80, "nodePort": 30080},
        {"name": "b", "port": 80, "nodePort": 30080, "protocol": "UDP"},
        {"name": "c", "port": 81, "nodePort": 30080},
    ]}));
    let node_ports: Vec<_> = service.ports.iter().map(|p| p.node_port).collect();
    assert_eq!(node_ports, [Some(30080), Some(30080), None]);
    assert_eq!(
        errors(&service),
        ["spec.ports[2].nodePort: TCP 30080 stands twice; the first is used"]
    );
}

#[test]
fn health_is_checked_for_a_local_load_balancer() {
    let port = |kind: &str, policy: &str| {
        let extra = json!({
            "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000,
        });
        with(extra).health_check_node_port
    };
    assert_eq!(port("LoadBalancer", "Local"), Some(32000));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
}
