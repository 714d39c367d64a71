use serde_json::json;

use std::net::SocketAddr;

use super::*;
use crate::service::WhenEmpty;
use crate::service::fixtures::{
    apply_service, apply_slice, delete, node, plain, service, service_with_status, slice, slice_of,
};
use crate::service::object::ObjectKind::{self, EndpointSlice as Slice, Service as Svc};

mod conflicts;
mod histories;
mod properties;
mod transitions;

const HTTP: &[(&str, i32)] = &[("http", 80)];

fn index(events: impl IntoIterator<Item = Event>) -> Index {
    let mut index = Index::new("n1");
    index.apply_all(events);
    index
}

/// `address service -> real servers`, with what happens while there are none.
fn line(spec: &VirtualServerSpec) -> String {
    let servers: Vec<_> = spec.real_servers.iter().map(ToString::to_string).collect();
    let servers = match (servers.as_slice(), spec.when_empty) {
        ([], WhenEmpty::Reject) => "reject".to_owned(),
        ([], WhenEmpty::Drop) => "drop".to_owned(),
        _ => servers.join(" "),
    };
    format!("{} {} -> {servers}", spec.address, spec.service)
}

fn table(index: &Index) -> Vec<String> {
    index.virtual_servers().iter().map(line).collect()
}

fn changes(outcome: &Outcome) -> Vec<String> {
    let change = |change: &Change| match change {
        Change::Upsert(spec) => line(spec),
        Change::Remove(address) => format!("{address} removed"),
        Change::HealthCheck(check) => format!(
            "{} health check on {}: {}",
            check.service, check.port, check.local_endpoints
        ),
        Change::RemoveHealthCheck(service) => format!("{service} health check removed"),
        Change::Node(_) => "this node".to_owned(),
    };
    outcome.changes.iter().map(change).collect()
}

fn warnings(outcome: &Outcome) -> Vec<String> {
    outcome.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_and_its_slice_in_either_order() {
    let web = || apply_service(plain("web", "10.0.0.3", HTTP));
    let endpoints = || apply_slice(slice("web-1", "web", &[("http", 8080)], &["10.1.65.5"]));

    let mut index = Index::new("n1");
    assert_eq!(
        changes(&index.apply(web())),
        ["TCP 10.0.0.3:80 default/web:http -> reject"]
    );
    let filled = ["TCP 10.0.0.3:80 default/web:http -> 10.1.65.5:8080"];
    assert_eq!(changes(&index.apply(endpoints())), filled);

    let mut index = Index::new("n1");
    assert_eq!(index.apply(endpoints()), Outcome::default());
    assert_eq!(changes(&index.apply(web())), filled);
    assert_eq!(table(&index), filled);
}

#[test]
fn equal_objects_yield_nothing() {
    let web = plain("web", "10.0.0.3", &[("http", 80), ("bad", 0)]);
    let endpoints = slice("web-1", "web", &[("http", 80), ("bad", 0)], &["10.1.65.5"]);
    let unlabelled = slice("stray", "", HTTP, &["10.1.65.5"]);
    let events = [
        apply_service(web),
        apply_slice(endpoints),
        apply_slice(unlabelled),
    ];
    let mut index = Index::new("n1");
    let first = index.apply_all(events.clone());
    assert_eq!(
        warnings(&first),
        [
            "Service default/web: spec.ports[1].port: 0 is not a port (1 to 65535)",
            "EndpointSlice default/web-1: ports[1].port: 0 is not a port (1 to 65535)",
            "EndpointSlice default/stray: metadata.labels[kubernetes.io/service-name]: is missing",
        ]
    );
    for event in events {
        assert_eq!(index.apply(event), Outcome::default());
    }
}

#[test]
fn a_change_without_consequence_yields_nothing() {
    let mut index = index([
        apply_service(plain("web", "10.0.0.3", HTTP)),
        apply_slice(slice("a", "web", HTTP, &["10.0.1.1", "10.0.1.2"])),
    ]);
    // Another order, another slice name, a slice split in two.
    for events in [
        vec![apply_slice(slice(
            "a",
            "web",
            HTTP,
            &["10.0.1.2", "10.0.1.1"],
        ))],
        vec![apply_slice(slice("b", "web", HTTP, &["10.0.1.2"]))],
        vec![apply_slice(slice("a", "web", HTTP, &["10.0.1.1"]))],
        vec![apply_slice(slice("c", "nobody", HTTP, &["10.0.1.9"]))],
        vec![delete(Slice, "unknown"), delete(Svc, "unknown")],
    ] {
        assert_eq!(index.apply_all(events), Outcome::default());
    }
}

#[test]
fn one_slice_touches_one_service() {
    let services = (0..200).map(|i| {
        let ip = format!("10.0.1.{i}");
        apply_service(plain(&format!("s{i}"), &ip, &[("a", 80), ("b", 81)]))
    });
    let slices = (0..200).map(|i| {
        let endpoint = format!("10.1.1.{i}");
        apply_slice(slice(
            &format!("e{i}"),
            &format!("s{i}"),
            &[("a", 1), ("b", 2)],
            &[&endpoint],
        ))
    });
    let mut index = Index::new("n1");
    assert_eq!(index.apply_all(services.chain(slices)).changes.len(), 400);
    let outcome = index.apply(apply_slice(slice(
        "e7",
        "s7",
        &[("a", 1), ("b", 2)],
        &["10.1.1.250"],
    )));
    assert_eq!(
        changes(&outcome),
        [
            "TCP 10.0.1.7:80 default/s7:a -> 10.1.1.250:1",
            "TCP 10.0.1.7:81 default/s7:b -> 10.1.1.250:2",
        ]
    );
}

#[test]
fn each_family_and_protocol_has_its_virtual_server() {
    let index = index([
        apply_service(service(
            json!({"name": "dns", "namespace": "default"}),
            json!({
                "clusterIPs": ["10.0.0.10", "fd00::10"],
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53},
                    {"name": "sig", "port": 99, "protocol": "SCTP"},
                ],
            }),
        )),
        apply_slice(slice("a", "dns", &[("dns-tcp", 5353)], &["10.1.0.1"])),
        apply_slice(slice_of(
            "IPv6",
            "b",
            "dns",
            &[("dns-tcp", 5354)],
            &["fd01::1"],
        )),
    ]);
    assert_eq!(
        table(&index),
        [
            "TCP 10.0.0.10:53 default/dns:dns-tcp -> 10.1.0.1:5353",
            "UDP 10.0.0.10:53 default/dns:dns -> reject",
            "SCTP 10.0.0.10:99 default/dns:sig -> reject",
            "TCP [fd00::10]:53 default/dns:dns-tcp -> [fd01::1]:5354",
            "UDP [fd00::10]:53 default/dns:dns -> reject",
            "SCTP [fd00::10]:99 default/dns:sig -> reject",
        ]
    );
}

#[test]
fn internal_policy_local() {
    let local = |policy: &str| {
        let ports = json!([{"name": "http", "port": 80}]);
        apply_service(service(
            json!({"name": "web"}),
            json!({"clusterIP": "10.0.0.3", "internalTrafficPolicy": policy, "ports": ports}),
        ))
    };
    let mut index = index([local("Cluster")]);
    let mut after = |event| {
        index.apply(event);
        let [only] = table(&index).try_into().unwrap();
        only.split(" -> ").nth(1).unwrap().to_owned()
    };
    let here = "10.1.1.1 n1";
    let there = "10.1.2.1 n2";
    let endpoints = |all: &[&str]| apply_slice(slice("a", "web", HTTP, all));
    assert_eq!(after(endpoints(&[here, there])), "10.1.1.1:80 10.1.2.1:80");
    assert_eq!(after(local("Local")), "10.1.1.1:80");
    assert_eq!(
        after(endpoints(&[here, "10.1.1.2 n1"])),
        "10.1.1.1:80 10.1.1.2:80"
    );
    assert_eq!(after(endpoints(&[there])), "drop");
    assert_eq!(after(endpoints(&["10.1.2.1 n2 !R S T"])), "drop");
    assert_eq!(after(endpoints(&["10.1.2.1 n2 !R !S T"])), "reject");
    assert_eq!(
        after(endpoints(&[there, "10.1.1.1 n1 !R S T"])),
        "10.1.1.1:80"
    );
    assert_eq!(after(endpoints(&["10.1.1.1 n1 !R"])), "reject");
    assert_eq!(after(endpoints(&[there])), "drop");
    assert_eq!(after(delete(Slice, "a")), "reject");
    assert_eq!(after(endpoints(&[there])), "drop");
    assert_eq!(after(local("Cluster")), "10.1.2.1:80");
}

/// kube-proxy's TestTerminatingEndpointsTrafficPolicyCluster.
#[test]
fn terminating_endpoints() {
    let mut index = index([apply_service(plain("web", "10.0.0.3", HTTP))]);
    let mut after = |endpoints: &[&str]| {
        index.apply(apply_slice(slice("a", "web", HTTP, endpoints)));
        let spec = index.virtual_servers()[0].clone();
        let list = |all: &[SocketAddr]| {
            let last = |a: &SocketAddr| a.to_string()[7..8].to_owned();
            all.iter().map(last).collect::<String>()
        };
        (list(&spec.real_servers), list(&spec.serving))
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let (ready, leaving, gone) = ("10.1.1.1", "10.1.1.2 - !R S T", "10.1.1.3 - !R !S T");
    assert_eq!(after(&[ready, leaving, gone]), pair("1", "12"));
    assert_eq!(
        after(&["10.1.1.1 - !R S T", leaving, gone]),
        pair("12", "12")
    );
    // Not ready, yet serving: no new flows, but those that run are left alone.
    assert_eq!(
        after(&["10.1.1.1 - !R S !T", leaving, gone]),
        pair("2", "12")
    );
    assert_eq!(after(&[gone]), pair("", ""));
    assert_eq!(after(&[]), pair("", ""));
}

#[test]
fn serving_is_sorted_by_address_and_real_servers_by_text() {
    let index = index([
        apply_service(plain("web", "10.0.0.3", HTTP)),
        apply_slice(slice("a", "web", HTTP, &["10.1.1.2", "10.1.1.10"])),
    ]);
    let spec = &index.virtual_servers()[0];
    let text = |all: &[SocketAddr]| -> Vec<_> { all.iter().map(ToString::to_string).collect() };
    assert_eq!(text(&spec.real_servers), ["10.1.1.10:80", "10.1.1.2:80"]);
    assert_eq!(text(&spec.serving), ["10.1.1.2:80", "10.1.1.10:80"]);
}

#[test]
fn the_zone_of_this_node_decides() {
    let hinted = |number: u8, zone: &str| {
        json!({
            "addresses": [format!("10.1.1.{number}")],
            "hints": {"forZones": [{"name": zone}]},
        })
    };
    let slice = crate::service::fixtures::slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [hinted(1, "a"), hinted(2, "b")],
    }));
    let mut index = index([
        apply_service(plain("web", "10.0.0.3", HTTP)),
        apply_slice(slice),
    ]);
    let mut after = |event| changes(&index.apply(event));
    let all = "TCP 10.0.0.3:80 default/web:http -> 10.1.1.1:80 10.1.1.2:80";
    assert_eq!(after(node("n2", Some("a"))), [""; 0]);
    assert_eq!(
        after(node("n1", Some("a"))),
        ["TCP 10.0.0.3:80 default/web:http -> 10.1.1.1:80"]
    );
    assert_eq!(
        after(node("n1", Some("b"))),
        ["TCP 10.0.0.3:80 default/web:http -> 10.1.1.2:80"]
    );
    assert_eq!(after(node("n1", Some("b"))), [""; 0]);
    assert_eq!(after(node("n1", Some("c"))), [all]);
    assert_eq!(
        after(node("n1", Some("a"))),
        ["TCP 10.0.0.3:80 default/web:http -> 10.1.1.1:80"]
    );
    assert_eq!(after(delete(ObjectKind::Node, "n1")), [all]);
}

#[test]
fn affinity_reaches_the_virtual_server() {
    let sticky = |affinity: &str| {
        apply_service(service(
            json!({"name": "web"}),
            json!({"clusterIP": "10.0.0.3", "sessionAffinity": affinity, "ports": [{"port": 80}]}),
        ))
    };
    let mut index = index([sticky("ClientIP")]);
    let persistence = |index: &Index| index.virtual_servers()[0].persistence.map(|d| d.as_secs());
    assert_eq!(persistence(&index), Some(10_800));
    assert_eq!(index.apply(sticky("None")).changes.len(), 1);
    assert_eq!(persistence(&index), None);
}

#[test]
fn this_node_comes_first_and_only_when_it_changes() {
    let with = |name: &str, pods: &[&str]| {
        let pod_cidrs = pods.iter().map(|net| net.parse().unwrap()).collect();
        let network = NodeNetwork {
            pod_cidrs,
            addresses: Vec::new(),
            leaving: false,
        };
        crate::service::fixtures::apply(Object::Node(Arc::new(Node {
            name: NamespacedName::new("", name),
            zone: None,
            network,
        })))
    };
    let mut index = index([]);
    let web = apply_service(plain("web", "10.0.0.3", HTTP));
    let both = index.apply_all([web, with("n1", &["10.1.15.0/24"])]);
    assert_eq!(
        changes(&both),
        ["this node", "TCP 10.0.0.3:80 default/web:http -> reject"]
    );
    let network = NodeNetwork {
        pod_cidrs: vec!["10.1.15.0/24".parse().unwrap()],
        addresses: Vec::new(),
        leaving: false,
    };
    assert_eq!(both.changes[0], Change::Node(network));
    assert_eq!(index.apply(with("n1", &["10.1.15.0/24"])).changes, []);
    assert_eq!(index.apply(with("n2", &["10.1.16.0/24"])).changes, []);
    // There and back within a batch.
    let back = index.apply_all([with("n1", &[]), with("n1", &["10.1.15.0/24"])]);
    assert_eq!(back.changes, []);
    let gone = index.apply(delete(ObjectKind::Node, "n1"));
    assert_eq!(gone.changes, [Change::Node(NodeNetwork::default())]);
}

#[test]
fn networks_of_the_cluster_take_the_place_of_the_nodes() {
    let with = |pods: &[&str]| {
        let network = NodeNetwork {
            pod_cidrs: pods.iter().map(|net| net.parse().unwrap()).collect(),
            ..NodeNetwork::default()
        };
        crate::service::fixtures::apply(Object::Node(Arc::new(Node {
            name: NamespacedName::new("", "n1"),
            zone: None,
            network,
        })))
    };
    let given = vec!["10.1.0.0/16".parse().unwrap()];
    let mut index = Index::new("n1").with_cluster_cidrs(given);
    let told = |outcome: &Outcome| match outcome.changes.as_slice() {
        [Change::Node(network)] => network.pod_cidrs.iter().map(ToString::to_string).collect(),
        [] => Vec::new(),
        other => panic!("{other:?}"),
    };
    // Whether or not there is a Node, and once.
    assert_eq!(told(&index.apply_all([])), ["10.1.0.0/16"]);
    assert_eq!(index.apply_all([]).changes, []);
    assert_eq!(index.apply(with(&["10.1.15.0/24"])).changes, []);
    // Of the other family none is given.
    let both = index.apply(with(&["10.1.15.0/24", "fd00::/64"]));
    assert_eq!(told(&both), ["fd00::/64", "10.1.0.0/16"]);
    let gone = index.apply(delete(ObjectKind::Node, "n1"));
    assert_eq!(told(&gone), ["10.1.0.0/16"]);
}
