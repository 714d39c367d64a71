//! Objects with everything that may stand in them, and any history of them: what is
//! programmed at the end is what a fresh list of those that are left would program.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::service::Protocol;
use crate::service::endpoint::EndpointSlice;
use crate::service::namespace::Namespace;
use crate::service::service_port::Service;
use crate::service::topology::Topology;

/// What happens: to an object of some kind and name, which is written as `bits` draw it,
/// or deleted.
#[derive(Clone, Debug)]
struct Step {
    kind: ObjectKind,
    name: u8,
    delete: bool,
    bits: Vec<u8>,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Svc),
        6 => Just(Slice),
        3 => Just(ObjectKind::Node),
        1 => Just(ObjectKind::Namespace),
    ];
    let delete = prop_oneof![4 => Just(false), 1 => Just(true)];
    (kind, 0..4_u8, delete, vec(any::<u8>(), 64)).prop_map(|(kind, name, delete, bits)| Step {
        kind,
        name,
        delete,
        bits,
    })
}

/// Chances, used up one after the other; when none are left, the first choice.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn below(&mut self, n: u8) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first % n
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::from(self.below(of.len() as u8))].clone()
    }

    /// Some of these, in their order.
    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        let chosen = self.below(u8::MAX);
        let numbered = of.iter().enumerate();
        let chosen = numbered.filter(|(n, _)| chosen & (1 << n) != 0);
        chosen.map(|(_, one)| one.clone()).collect()
    }

    fn flag(&mut self) -> Value {
        self.one(&[Value::Null, json!(true), json!(false)])
    }
}

/// Two namespaces, in which the same names occur.
fn name_of(step: &Step) -> NamespacedName {
    match step.kind {
        ObjectKind::Node => NamespacedName::new("", format!("n{}", step.name / 3).as_str()),
        ObjectKind::Namespace => NamespacedName::new("", namespace(step.name)),
        Svc => NamespacedName::new(namespace(step.name), format!("s{}", step.name / 2).as_str()),
        Slice => NamespacedName::new(namespace(step.name), format!("e{}", step.name).as_str()),
    }
}

fn namespace(n: u8) -> &'static str {
    if n == 3 { "shop" } else { "default" }
}

fn metadata(name: &NamespacedName, draw: &mut Draw<'_>, labels: &[(&str, &str)]) -> Value {
    let labels: Map<String, Value> = draw
        .some(labels)
        .into_iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    let annotations = draw.some(&[
        ("kube-tun-proxy.io/scheduler", "lc"),
        ("kube-tun-proxy.io/scheduler", "best"),
        ("kube-tun-proxy.io/proxy-protocol", "v2"),
        ("kube-tun-proxy.io/access-log", "false"),
    ]);
    let annotations: Map<String, Value> = annotations
        .into_iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    json!({
        "namespace": &*name.namespace,
        "name": &*name.name,
        "labels": labels,
        "annotations": annotations,
        "creationTimestamp": draw.one(&[Value::Null, json!("2020-01-01T00:00:00Z"), json!("2020-01-01T00:00:01Z")]),
    })
}

fn service_object(name: &NamespacedName, draw: &mut Draw<'_>) -> Value {
    let labels = [
        ("service.kubernetes.io/service-proxy-name", "other"),
        ("app", "shop"),
    ];
    // Rarely somebody else's.
    let labels = if draw.below(4) == 0 { &labels[..] } else { &[] };
    let policy = ["Cluster", "Local"];
    let ports: Vec<_> = (0..1 + draw.below(3))
        .map(|_| {
            json!({
                "name": draw.one(&["a", "a", "b", ""]),
                "protocol": draw.one(&["TCP", "UDP", "SCTP", "TCP"]),
                "port": draw.one(&[80, 81, 82]),
                "nodePort": draw.one(&[Value::Null, json!(30_000), json!(30_001)]),
            })
        })
        .collect();
    let ingress: Vec<_> = draw
        .some(&["5.6.7.8", "2001:db8::8", "1.2.3.4", ""])
        .into_iter()
        .map(|ip| {
            let mode = draw.one(&[Value::Null, json!("VIP"), json!("Proxy")]);
            json!({"ip": ip, "ipMode": mode})
        })
        .collect();
    let ips = draw.one(&[
        json!(["10.0.0.1"]),
        json!(["10.0.0.1", "fd00::1"]),
        json!(["fd00::1", "10.0.0.1"]),
        json!(["fd00::2"]),
        json!(["10.0.0.2", "fd00::2"]),
        json!(["None"]),
    ]);
    json!({
        "metadata": metadata(name, draw, labels),
        "spec": {
            "type": draw.one(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
            "clusterIPs": ips,
            "ports": ports,
            "internalTrafficPolicy": draw.one(&policy),
            "externalTrafficPolicy": draw.one(&policy),
            "externalIPs": draw.some(&["1.2.3.4", "10.0.0.1", "2001:db8::4"]),
            "loadBalancerSourceRanges": draw.some(&["203.0.113.0/24", " 2001:db8::/32", "0.0.0.0/0", "nonsense"]),
            "sessionAffinity": draw.one(&["None", "ClientIP"]),
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": draw.one(&[10, 10_800])}},
            "healthCheckNodePort": draw.one(&[0, 32_000, 32_001]),
            "trafficDistribution": draw.one(&[Value::Null, json!("PreferClose"), json!("PreferSameNode")]),
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

fn slice_object(name: &NamespacedName, draw: &mut Draw<'_>) -> Value {
    let kind = draw.one(&["IPv4", "IPv6", "IPv4", "FQDN"]);
    let ports: Vec<_> = (0..1 + draw.below(3))
        .map(|_| {
            json!({
                "name": draw.one(&[json!("a"), json!("a"), json!("b"), json!(""), Value::Null]),
                "protocol": draw.one(&[json!("TCP"), json!("UDP"), Value::Null]),
                "port": draw.one(&[json!(8080), json!(8081), json!(8080), Value::Null]),
            })
        })
        .collect();
    let named = |names: Vec<&str>| {
        let names = names.into_iter().map(|name| json!({"name": name}));
        Value::Array(names.collect())
    };
    let hinted = draw.below(4) != 0;
    let endpoints: Vec<_> = (0..draw.below(5))
        .map(|_| {
            let number = draw.below(4);
            let address = match kind {
                "IPv6" => format!("fd00:1::{number}"),
                "FQDN" => format!("host-{number}.example.org"),
                // As some controllers have written them.
                _ => draw.one(&[format!("10.1.1.{number}"), format!("10.01.001.00{number}")]),
            };
            // Mostly as the controller hints them: each for some zone.
            let zones = match draw.below(8) {
                _ if !hinted => Value::Null,
                0 => named(draw.some(&["z0", "z1"])),
                _ => named(vec![draw.one(&["z0", "z1"])]),
            };
            let nodes = match draw.below(3) {
                _ if !hinted => Value::Null,
                0 => named(vec![draw.one(&["n0", "n1"])]),
                _ => named(draw.some(&["n0", "n1"])),
            };
            json!({
                "addresses": [address, "10.9.9.9"],
                "nodeName": draw.one(&[json!("n0"), json!("n1"), Value::Null]),
                "zone": draw.one(&["z0", "z1"]),
                "conditions": {
                    "ready": draw.flag(),
                    "serving": draw.flag(),
                    "terminating": draw.flag(),
                },
                "hints": {"forZones": zones, "forNodes": nodes},
            })
        })
        .collect();
    let mut metadata = metadata(name, draw, &[]);
    let service = draw.one(&[Some("s0"), Some("s1"), Some("s0"), Some("s1"), None]);
    if let Some(service) = service {
        metadata["labels"]["kubernetes.io/service-name"] = service.into();
    }
    json!({"metadata": metadata, "addressType": kind, "ports": ports, "endpoints": endpoints})
}

fn node_object(name: &NamespacedName, draw: &mut Draw<'_>) -> Value {
    let zone = draw.one(&[
        json!("z0"),
        json!("z1"),
        json!("z0"),
        json!(""),
        Value::Null,
    ]);
    let mut labels = Map::new();
    if !zone.is_null() {
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone);
    }
    let address = |ip: &str| json!({"type": "InternalIP", "address": ip});
    let addresses = draw.some(&["192.168.0.1", "fd00:a::1"]);
    let addresses: Vec<_> = addresses.into_iter().map(address).collect();
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    json!({
        "metadata": {"name": &*name.name, "labels": labels},
        "spec": {
            "podCIDRs": draw.some(&["10.1.0.0/24", "fd00:1::/64"]),
            "taints": draw.one(&[json!([]), taint]),
        },
        "status": {"addresses": addresses},
    })
}

/// Nothing of an object that is none of ours is the same as its deletion.
fn event(step: &Step) -> Event {
    let name = name_of(step);
    let mut draw = Draw(&step.bits);
    let object = match step.kind {
        _ if step.delete => None,
        Svc => {
            let object = serde_json::from_value(service_object(&name, &mut draw)).unwrap();
            Service::from_api(&object).map(|its| Object::Service(Arc::new(its)))
        }
        Slice => {
            let object = serde_json::from_value(slice_object(&name, &mut draw)).unwrap();
            EndpointSlice::from_api(&object).map(|its| Object::EndpointSlice(Arc::new(its)))
        }
        ObjectKind::Node => {
            let object = serde_json::from_value(node_object(&name, &mut draw)).unwrap();
            Node::from_api(&object).map(|its| Object::Node(Arc::new(its)))
        }
        ObjectKind::Namespace => {
            let object = json!({"metadata": metadata(&name, &mut draw, &[])});
            let object = serde_json::from_value(object).unwrap();
            Namespace::from_api(&object).map(|its| Object::Namespace(Arc::new(its)))
        }
    };
    let key = ObjectKey {
        kind: step.kind,
        name,
    };
    object.map_or(Event::Delete(key), crate::service::fixtures::apply)
}

/// What those who follow the changes have.
#[derive(Clone, Debug, Default, PartialEq)]
struct Programmed {
    servers: BTreeMap<VirtualAddress, VirtualServerSpec>,
    checks: BTreeMap<NamespacedName, HealthCheck>,
    network: NodeNetwork,
}

impl Programmed {
    fn follow(&mut self, outcome: Outcome) -> Result<(), TestCaseError> {
        for change in outcome.changes {
            match change {
                Change::Upsert(spec) => {
                    prop_assert!(self.servers.get(&spec.address) != Some(&spec));
                    self.servers.insert(spec.address, spec);
                }
                Change::Remove(address) => {
                    prop_assert!(self.servers.remove(&address).is_some());
                }
                Change::HealthCheck(check) => {
                    prop_assert!(self.checks.get(&check.service) != Some(&check));
                    self.checks.insert(check.service.clone(), check);
                }
                Change::RemoveHealthCheck(service) => {
                    prop_assert!(self.checks.remove(&service).is_some());
                }
                Change::Node(network) => {
                    prop_assert!(self.network != network);
                    self.network = network;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_history_of_whole_objects_ends_as_a_fresh_list_begins(
        steps in vec(step(), 0..60),
        cuts in vec(1..6_usize, 0..60),
        ipvs_compat in any::<bool>(),
        of_cluster in any::<bool>(),
    ) {
        let index = || {
            let cluster_cidrs = of_cluster.then(|| "10.1.0.0/16".parse().unwrap());
            Index::new("n0")
                .with_ipvs_compat(ipvs_compat)
                .with_cluster_cidrs(cluster_cidrs.into_iter().collect())
        };
        let events: Vec<_> = steps.iter().map(event).collect();
        let (mut lived, mut programmed) = (index(), Programmed::default());
        let mut cuts = cuts.into_iter();
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            rest = later;
            programmed.follow(lived.apply_all(batch.to_vec()))?;
        }
        programmed.follow(lived.apply_all([]))?;
        let mut objects = BTreeMap::new();
        let mut leaving = false;
        for event in events {
            match event {
                Event::Apply { object, .. } => {
                    if let Object::Node(node) = &object && &*node.name.name == "n0" {
                        leaving = node.network.leaving;
                    }
                    objects.insert(object.key(), object);
                }
                Event::Delete(key) => {
                    objects.remove(&key);
                }
            }
        }
        let (mut fresh, mut listed) = (index(), Programmed::default());
        // The other way round than they are sorted: slices before their Services.
        let all = objects.values().rev().cloned();
        listed.follow(fresh.apply_all(all.map(crate::service::fixtures::apply)))?;
        // That alone is remembered of a node that has gone.
        listed.network.leaving = leaving;
        prop_assert_eq!(&programmed, &listed);
        let specs: Vec<_> = listed.servers.into_values().collect();
        prop_assert_eq!(&lived.virtual_servers(), &specs);
        prop_assert!(lived.health_checks().eq(listed.checks.values()));
        for family in Family::ALL {
            prop_assert_eq!(fresh.no_local_endpoints(family), lived.no_local_endpoints(family));
        }
        for (address, exposure) in specs.iter().map(|spec| (spec.address, spec.exposure)) {
            prop_assert_eq!(address.ip.is_unspecified(), exposure == Exposure::NodePort);
        }
        // And nothing is left of any of them.
        lived.apply_all(objects.into_keys().map(Event::Delete));
        prop_assert!(lived.is_empty());
    }
}

/// That the objects above have in them what they are for: each is met by one of a
/// thousand histories of one list.
#[test]
fn the_histories_have_everything_in_them() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeMap::new();
    for _ in 0..1000 {
        let steps = vec(step(), 60).new_tree(&mut runner).unwrap().current();
        let mut index = Index::new("n0");
        index.apply_all(steps.iter().map(event));
        for spec in index.virtual_servers() {
            let few = spec.real_servers.len() < spec.serving.len();
            for (what, is_so) in [
                (
                    "IPv6 with real servers",
                    spec.address.ip.is_ipv6() && !spec.real_servers.is_empty(),
                ),
                (
                    "UDP with real servers",
                    spec.address.protocol == Protocol::Udp && !spec.real_servers.is_empty(),
                ),
                ("SCTP", spec.address.protocol == Protocol::Sctp),
                (
                    "others outside",
                    spec.external
                        .as_ref()
                        .is_some_and(|e| *e != spec.real_servers),
                ),
                (
                    "dropped",
                    spec.real_servers.is_empty() && spec.when_empty == WhenEmpty::Drop,
                ),
                (
                    "rejected",
                    spec.real_servers.is_empty() && spec.when_empty == WhenEmpty::Reject,
                ),
                ("not all that serve", few && !spec.real_servers.is_empty()),
                ("affinity", spec.persistence.is_some()),
                ("ranges", spec.source_ranges.is_some()),
                ("scheduler", spec.scheduler.is_some()),
                ("PROXY protocol", spec.proxy_protocol.is_some()),
                ("access log", spec.access_log.is_some()),
                (
                    "node port",
                    spec.exposure == Exposure::NodePort && !spec.real_servers.is_empty(),
                ),
                ("of another namespace", &*spec.service.namespace == "shop"),
            ] {
                *met.entry(what).or_insert(0) += usize::from(is_so);
            }
        }
        let explained = index.virtual_servers();
        let explained = explained
            .iter()
            .filter_map(|spec| index.explain(&spec.address));
        for explanation in explained {
            let place = match explanation.topology {
                Topology::Off => "hints not followed",
                Topology::SameZone => "hints for the zone",
                Topology::SameNode => "hints for the node",
            };
            *met.entry(place).or_insert(0) += 1;
        }
    }
    let never: Vec<_> = met.iter().filter(|(_, times)| **times == 0).collect();
    assert!(never.is_empty(), "{never:?} of {met:?}");
    assert!(met.len() >= 17, "{met:?}");
}
