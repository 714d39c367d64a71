use serde_json::json;

use super::*;
use crate::ipvs::{Connection, SchedulerKind};
use crate::service::NodeNetwork;
use crate::service::fixtures::{
    apply, apply_service, apply_slice, service, service_with_status, slice, slice_from,
};
use crate::service::object::{Event, NamespacedName, Node, Object, Origin};

const TUN: &str = "169.254.84.78";
const NODE: &str = "172.100.101.191";
const POD: &str = "10.1.15.9";
const OUTSIDE: &str = "203.0.113.2";

struct World {
    index: Index,
    table: Table,
    serves_pods: bool,
}

/// The node `master` in zone a, and these objects.
fn world(events: impl IntoIterator<Item = Event>) -> World {
    let node = apply(Object::Node(Arc::new(Node {
        name: NamespacedName::new("", "master"),
        zone: Some("a".into()),
        network: NodeNetwork {
            pod_cidrs: vec!["10.1.15.0/24".parse().unwrap()],
            addresses: vec![NODE.parse().unwrap()],
            leaving: false,
        },
    })));
    let mut index = Index::new("master");
    let table = Table::new(SchedulerKind::Rr);
    let outcome = index.apply_all([node].into_iter().chain(events));
    outcome
        .changes
        .iter()
        .for_each(|change| table.apply(change));
    table.set_synced();
    World {
        index,
        table,
        serves_pods: true,
    }
}

impl World {
    fn ask(&self, to: &str, from: Option<&str>) -> api::Explanation {
        self.ask_over(api::Protocol::Tcp, to, from)
    }

    fn ask_over(&self, protocol: api::Protocol, to: &str, from: Option<&str>) -> api::Explanation {
        let question = api::Question {
            address: to.parse().unwrap(),
            protocol,
            from: from.map(|from| from.parse().unwrap()),
        };
        let tun = [TUN.parse().unwrap()];
        let here = Here {
            own: [NODE, TUN].map(|ip| ip.parse().unwrap()).into(),
            tun_addresses: &tun,
            serves_pods: self.serves_pods,
        };
        explain(&question, &self.index, &self.table, &here, Instant::now())
    }

    /// In or out, and why, of each endpoint.
    fn endpoints(&self, to: &str) -> Vec<String> {
        let explanation = self.ask(to, None);
        let endpoints = explanation.virtual_server.unwrap().endpoints;
        let line = |placing: &api::Placing| {
            format!(
                "{} {}",
                if placing.is_in { "in" } else { "out" },
                placing.reason
            )
        };
        let both = |e: &api::ExplainedEndpoint| match &e.outside {
            Some(outside) => format!("{} | {}", line(&e.inside), line(outside)),
            None => line(&e.inside),
        };
        endpoints.iter().map(both).collect()
    }
}

const P80: &[(&str, i32)] = &[("http", 80)];

fn plain(extra: serde_json::Value) -> Event {
    let mut spec = json!({
        "clusterIP": "10.0.0.3",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let extra = extra.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(extra);
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "5.6.7.8"}]}});
    apply_service(service_with_status(json!({"name": "web"}), spec, ingress))
}

#[test]
fn a_service_and_its_next_endpoint() {
    let object = service(
        json!({"name": "web"}),
        json!({"clusterIP": "10.0.0.3", "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80}]}),
    );
    let origin = Origin {
        file: std::path::Path::new("web.yaml").into(),
        document: 2,
        item: None,
    };
    let world = world([
        Event::Apply {
            object: Object::Service(Arc::new(object)),
            origin: Some(origin),
        },
        apply_slice(slice(
            "a",
            "web",
            P80,
            &["10.1.65.5 node2", "10.1.65.6 node2 !R"],
        )),
    ]);
    let told = world.ask("10.0.0.3:80", None);
    assert_eq!(
        (told.client.to_string(), &*told.client_is),
        (TUN.to_owned(), "node")
    );
    let server = told.virtual_server.unwrap();
    assert_eq!(server.service, "default/web:http");
    assert_eq!(server.origin.as_deref(), Some("web.yaml, document 2"));
    assert_eq!((&*server.exposure, &*server.scheduler), ("ClusterIP", "rr"));
    assert_eq!(server.persistence_seconds, Some(10_800));
    assert_eq!(told.outcome.verdict, "forward");
    assert_eq!(told.outcome.next, Some("10.1.65.5:80".parse().unwrap()));
    assert_eq!(told.outcome.affinity, None);
    assert_eq!(
        world.endpoints("10.0.0.3:80"),
        ["in ready", "out not ready"]
    );

    // A client that has been here before.
    let address = VirtualAddress {
        ip: [10, 0, 0, 3].into(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let client: SocketAddr = "10.1.15.9:40000".parse().unwrap();
    let Verdict::Forward(server) = world.table.verdict(address, client.ip(), || false) else {
        panic!("not served");
    };
    let now = Instant::now();
    let mut flow = Connection::new(server.schedule(client, now, &[]).unwrap());
    server.connected(client.ip(), &mut flow, now);
    let told = world.ask("10.0.0.3:80", Some(POD));
    assert_eq!(told.client_is, "pod");
    let entry = told.outcome.affinity.unwrap();
    assert_eq!(entry.real_server, "10.1.65.5:80".parse().unwrap());
    assert!((10_700..=10_800).contains(&entry.seconds), "{entry:?}");
}

#[test]
fn every_endpoint_has_its_reason_in_words() {
    let local = world([
        plain(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
        apply_slice(slice(
            "a",
            "web",
            P80,
            &[
                "10.1.15.1 master",
                "10.1.65.2 node2",
                "10.1.65.3 node2 !R S T",
                "10.1.65.4 node2 !R !S T",
                "10.1.65.5",
            ],
        )),
    ]);
    for to in [
        "5.6.7.8:80",
        "172.100.101.191:30080",
        "127.0.0.1:30080",
        "0.0.0.0:30080",
    ] {
        assert_eq!(
            local.endpoints(to),
            [
                "in ready | in ready, on this node",
                "in ready | out on node node2, and the policy is Local",
                "out terminating: still serves, but is not needed while others are ready \
                 | out on node node2, and the policy is Local",
                "out terminating, and serves no more | out on node node2, and the policy is Local",
                "in ready | out on no known node, and the policy is Local",
            ],
            "{to}"
        );
    }
    let hinted = |number: u8, zones: &[&str]| {
        let zones: Vec<_> = zones.iter().map(|zone| json!({"name": zone})).collect();
        json!({"addresses": [format!("10.1.1.{number}")], "hints": {"forZones": zones}})
    };
    let zoned = world([
        plain(json!({})),
        apply_slice(slice_from(json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
            "endpoints": [hinted(1, &["a"]), hinted(2, &["b", "c"])],
        }))),
    ]);
    assert_eq!(
        zoned.endpoints("10.0.0.3:80"),
        [
            "in ready, and hinted for this node's zone a",
            "out hinted for zone b, c; this node is in zone a",
        ]
    );
    let last = world([
        plain(json!({})),
        apply_slice(slice("a", "web", P80, &["10.1.1.1 - !R S T"])),
    ]);
    assert_eq!(
        last.endpoints("10.0.0.3:80"),
        ["in terminating but serving, and none that could be used is ready"]
    );
}

/// What a client would see if nobody is there for it.
#[test]
fn what_a_client_would_see() {
    let mut world = world([
        plain(json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["203.0.113.0/25"],
        })),
        apply_slice(slice("a", "web", P80, &["10.1.65.2 node2"])),
        apply_service(service(
            json!({"name": "dns"}),
            json!({"clusterIP": "10.0.0.10", "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "sctp", "port": 9, "protocol": "SCTP"},
            ]}),
        )),
    ]);
    let seen = |told: api::Explanation| {
        let reason = told.outcome.reason.unwrap_or_default();
        (reason, told.outcome.words, told.others)
    };
    let (reason, words, others) = seen(world.ask("5.6.7.8:80", Some(OUTSIDE)));
    assert_eq!(reason, "no_local_endpoint");
    assert_eq!(
        words,
        "no answer: the policy is Local, and all endpoints are on other nodes"
    );
    assert_eq!(others, [""; 0]);
    let (reason, words, _) = seen(world.ask("5.6.7.8:80", Some(POD)));
    assert_eq!(reason, "source_range");
    assert_eq!(
        words,
        "no answer: the client is outside loadBalancerSourceRanges"
    );
    let (reason, words, others) = seen(world.ask("10.0.0.3:443", None));
    assert_eq!(reason, "unknown_port");
    assert_eq!(
        words,
        "connection refused (RST): the address has services, but none on this port"
    );
    assert_eq!(others, ["TCP 10.0.0.3:80"]);
    let (reason, words, _) = seen(world.ask_over(api::Protocol::Udp, "10.0.0.10:53", None));
    assert_eq!(reason, "no_endpoints");
    assert_eq!(
        words,
        "ICMP port unreachable: the service has no usable endpoint"
    );
    let sctp = world.ask_over(api::Protocol::Sctp, "10.0.0.10:9", None);
    assert_eq!(sctp.outcome.reason.as_deref(), Some("sctp"));
    assert_eq!(sctp.virtual_server.unwrap().service, "default/dns:sctp");
    let (reason, _, others) = seen(world.ask("10.0.0.99:80", None));
    assert_eq!((&*reason, others.len()), ("unknown_address", 0));

    world.serves_pods = false;
    let (reason, ..) = seen(world.ask("10.0.0.3:80", Some(POD)));
    assert_eq!(reason, "pod_traffic");
    assert_eq!(world.ask("10.0.0.3:80", None).outcome.verdict, "forward");
    // A node port is a listener of the kernel's.
    let told = world.ask("172.100.101.191:30080", Some(POD));
    assert_eq!(told.outcome.verdict, "forward");
}
