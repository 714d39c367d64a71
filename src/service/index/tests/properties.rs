//! Whatever happened, the state is that of the objects that are left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::service::endpoint::EndpointSlice;
use crate::service::service_port::TrafficPolicy;

/// One of a few objects of each kind, so that events meet.
#[derive(Clone, Debug)]
enum Step {
    Service {
        name: u8,
        created: Option<u8>,
        ip: u8,
        ports: Vec<u8>,
        local: bool,
        /// Bits: node ports, an external IP, a load balancer IP, external policy
        /// Local, source ranges.
        external: u8,
    },
    Slice {
        name: u8,
        service: u8,
        ports: Vec<u8>,
        endpoints: Vec<(u8, bool, bool, bool)>,
    },
    Node {
        zone: Option<u8>,
    },
    DeleteService(u8),
    DeleteSlice(u8),
    DeleteNode,
}

fn step() -> impl Strategy<Value = Step> {
    let ports = || vec(0..3_u8, 0..3);
    let endpoint = (0..5_u8, any::<bool>(), any::<bool>(), any::<bool>());
    prop_oneof![
        4 => (0..3_u8, option::of(0..2_u8), 0..3_u8, ports(), any::<bool>(), 0..32_u8).prop_map(
            |(name, created, ip, ports, local, external)| {
                Step::Service { name, created, ip, ports, local, external }
            }
        ),
        6 => (0..4_u8, 0..4_u8, ports(), vec(endpoint, 0..4)).prop_map(
            |(name, service, ports, endpoints)| Step::Slice { name, service, ports, endpoints }
        ),
        1 => option::of(0..2_u8).prop_map(|zone| Step::Node { zone }),
        2 => (0..3_u8).prop_map(Step::DeleteService),
        2 => (0..4_u8).prop_map(Step::DeleteSlice),
        1 => Just(Step::DeleteNode),
    ]
}

fn port_name(port: u8) -> String {
    format!("p{port}")
}

fn event(step: &Step) -> Event {
    match step {
        Step::Service {
            name,
            created,
            ip,
            ports,
            local,
            external,
        } => {
            let has = |bit: u8| external & (1 << bit) != 0;
            let ports: Vec<_> = ports
                .iter()
                .map(|p| {
                    let node_port = has(0).then_some(30_000 + i32::from(*p));
                    json!({"name": port_name(*p), "port": 80 + p, "nodePort": node_port})
                })
                .collect();
            let created = created.map(|c| format!("2020-01-01T00:00:0{c}Z"));
            // Both families, or headless.
            let ips = match ip {
                0 => vec!["None".to_owned()],
                ip => vec![format!("10.0.0.{ip}"), format!("fd00::{ip}")],
            };
            let policy = |local| if local { "Local" } else { "Cluster" };
            let ingress = has(2).then(|| json!([{"ip": "5.6.7.8"}]));
            apply_service(service_with_status(
                json!({"name": format!("s{name}"), "creationTimestamp": created}),
                json!({
                    "type": "LoadBalancer",
                    "clusterIPs": ips,
                    "ports": ports,
                    "internalTrafficPolicy": policy(*local),
                    "externalTrafficPolicy": policy(has(3)),
                    "externalIPs": has(1).then(|| json!(["1.2.3.4", "10.0.0.1"])),
                    "loadBalancerSourceRanges": has(4).then(|| json!(["203.0.113.0/24"])),
                    "healthCheckNodePort": 32_000 + i32::from(*name),
                }),
                json!({"loadBalancer": {"ingress": ingress}}),
            ))
        }
        Step::Slice {
            name,
            service,
            ports,
            endpoints,
        } => apply_slice(make_slice(*name, *service, ports, endpoints)),
        Step::Node { zone } => node("n0", zone.map(|z| format!("z{z}")).as_deref()),
        Step::DeleteService(name) => delete(Svc, &format!("s{name}")),
        Step::DeleteSlice(name) => delete(Slice, &format!("e{name}")),
        Step::DeleteNode => delete(ObjectKind::Node, "n0"),
    }
}

fn make_slice(
    name: u8,
    service: u8,
    ports: &[u8],
    endpoints: &[(u8, bool, bool, bool)],
) -> EndpointSlice {
    let ports: Vec<_> = ports
        .iter()
        .map(|p| (port_name(*p), 8000 + i32::from(*p)))
        .collect();
    let ports: Vec<_> = ports.iter().map(|(n, p)| (n.as_str(), *p)).collect();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, ready, serving, terminating)| {
            let flag =
                |set: &bool, letter: &str| format!("{}{letter}", if *set { "" } else { "!" });
            format!(
                "10.1.1.{ip} n{} {} {} {}",
                ip % 2,
                flag(ready, "R"),
                flag(serving, "S"),
                flag(terminating, "T")
            )
        })
        .collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    slice(
        &format!("e{name}"),
        &format!("s{service}"),
        &ports,
        &endpoints,
    )
}

/// Service port, real servers, serving.
type Expected = (String, BTreeSet<SocketAddr>, BTreeSet<SocketAddr>);

/// What a reader of the rules would work out with pencil and paper: owner, real
/// servers, serving, for the IPv4 addresses.
fn expected(objects: &BTreeMap<ObjectKey, Object>) -> BTreeMap<String, Expected> {
    let mut owners = BTreeMap::new();
    for object in objects.values() {
        let Object::Service(service) = object else {
            continue;
        };
        for (address, exposure, port) in service.addresses() {
            let claim = (
                exposure,
                service.created.unwrap_or(i64::MAX),
                &service.name,
                service,
                port,
            );
            let owner = owners.entry(address).or_insert(claim);
            if (claim.0, claim.1, claim.2) < (owner.0, owner.1, owner.2) {
                *owner = claim;
            }
        }
    }
    let mut expected = BTreeMap::new();
    for (address, (exposure, _, _, service, port)) in owners {
        if address.ip.is_ipv6() {
            continue;
        }
        let mut endpoints = BTreeMap::new();
        for object in objects.values() {
            let Object::EndpointSlice(slice) = object else {
                continue;
            };
            if slice.service.as_ref() != Some(&service.name.name) {
                continue;
            }
            for slice_port in slice.ports.iter().filter(|p| p.name == port.name.port) {
                for endpoint in &slice.endpoints {
                    let at = SocketAddr::new(endpoint.ip, slice_port.port);
                    if !endpoints.contains_key(&at) || !endpoint.conditions.terminating {
                        endpoints.insert(at, endpoint);
                    }
                }
            }
        }
        let serving = endpoints
            .iter()
            .filter(|(_, e)| e.conditions.ready || e.conditions.serving);
        let serving = serving.map(|(at, _)| *at).collect();
        if exposure == Exposure::ClusterIp && service.internal_policy == TrafficPolicy::Local {
            endpoints.retain(|_, e| e.node.as_deref() == Some("n0"));
        }
        let any_ready = endpoints.values().any(|e| e.conditions.ready);
        endpoints.retain(|_, e| match any_ready {
            true => e.conditions.ready,
            false => e.conditions.serving && e.conditions.terminating,
        });
        let real = endpoints.into_keys().collect();
        expected.insert(address.to_string(), (port.name.to_string(), real, serving));
    }
    expected
}

proptest! {
    #[test]
    fn any_history_ends_in_the_state_of_the_objects(
        steps in vec(step(), 0..40),
        cuts in vec(1..5_usize, 0..40),
    ) {
        let events: Vec<_> = steps.iter().map(event).collect();
        let mut index = Index::new("n0");
        let mut programmed = BTreeMap::new();
        let mut checked = BTreeMap::new();
        let mut cuts = cuts.into_iter();
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            rest = later;
            let outcome = index.apply_all(batch.to_vec());
            for change in outcome.changes {
                match change {
                    Change::Upsert(spec) => {
                        prop_assert!(programmed.get(&spec.address) != Some(&spec));
                        programmed.insert(spec.address, spec);
                    }
                    Change::Remove(address) => {
                        prop_assert!(programmed.remove(&address).is_some());
                    }
                    Change::HealthCheck(check) => {
                        prop_assert!(checked.get(&check.service) != Some(&check));
                        checked.insert(check.service.clone(), check);
                    }
                    Change::RemoveHealthCheck(service) => {
                        prop_assert!(checked.remove(&service).is_some());
                    }
                    Change::Node(_) => return Err(TestCaseError::fail("no node has a network")),
                }
            }
        }
        let mut objects = BTreeMap::new();
        for event in events {
            match event {
                Event::Apply { object, .. } => { objects.insert(object.key(), object); }
                Event::Delete(key) => { objects.remove(&key); }
            }
        }
        let programmed: Vec<_> = programmed.into_values().collect();
        prop_assert_eq!(&index.virtual_servers(), &programmed);
        let mut fresh = Index::new("n0");
        fresh.apply_all(objects.values().cloned().map(crate::service::fixtures::apply));
        prop_assert_eq!(fresh.virtual_servers(), programmed.clone());
        prop_assert!(index.health_checks().eq(checked.values()));
        prop_assert!(fresh.health_checks().eq(checked.values()));
        for family in Family::ALL {
            prop_assert_eq!(fresh.no_local_endpoints(family), index.no_local_endpoints(family));
        }
        let got: BTreeMap<_, _> = programmed
            .iter()
            .filter(|spec| spec.address.ip.is_ipv4())
            .map(|spec| {
                let real: BTreeSet<_> = spec.real_servers.iter().copied().collect();
                let serving: BTreeSet<_> = spec.serving.iter().copied().collect();
                assert!(real.is_subset(&serving));
                assert_eq!((real.len(), serving.len()), (spec.real_servers.len(), spec.serving.len()));
                (spec.address.to_string(), (spec.service.to_string(), real, serving))
            })
            .collect();
        prop_assert_eq!(got, expected(&objects));
        // And nothing is left of any of them.
        index.apply_all(objects.into_keys().map(Event::Delete));
        prop_assert!(index.is_empty());
    }
}
