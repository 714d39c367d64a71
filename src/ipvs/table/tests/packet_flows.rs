//! From objects to endpoints: `{source, destination} → endpoints or outcome`,
//! through index and table. The thirty flows are those of kube-proxy's
//! `TestInternalExternalMasquerade` (pkg/proxy/iptables and nftables,
//! proxier_test.go), less its slip: there, "node to NodePort with eTP:Local"
//! asks for the node port of another Service.
//!
//! kube-proxy runs them in four configurations: with and without a detector of
//! local traffic, each with and without `--masquerade-all`. A real server of ours
//! sees the node in every flow, as if `--masquerade-all` were always set, so the
//! column of masquerading is "yes" throughout all 120. Two more configurations are
//! those of `--ipvs-compat`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::word;
use super::*;
use crate::ipvs::ForwardMethod;
use crate::service::fixtures::{apply, apply_service, apply_slice, service_with_status, slice};
use crate::service::index::{Index, Outcome};
use crate::service::object::{Event, NamespacedName, Node, Object};

pub(super) const NODE: &str = "192.168.0.2";
const LOCALHOST: &str = "127.0.0.1";
pub(super) const POD: &str = "10.0.0.2";
pub(super) const OUTSIDE: &str = "203.0.113.2";

/// The objects of a cluster and what `test-node` makes of them.
pub(super) struct Cluster {
    pub(super) index: Index,
    table: Table,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::with(Index::new("test-node"), true)
    }

    pub(super) fn as_ipvs() -> Self {
        Self::with(Index::new("test-node").with_ipvs_compat(true), true)
    }

    fn with(index: Index, detector: bool) -> Self {
        let table = table();
        let mut cluster = Self { index, table };
        let pod_cidrs = detector.then(|| "10.0.0.0/24".parse().unwrap());
        cluster.apply([apply(Object::Node(Arc::new(Node {
            name: NamespacedName::new("", "test-node"),
            zone: None,
            network: NodeNetwork {
                pod_cidrs: pod_cidrs.into_iter().collect(),
                addresses: vec![NODE.parse().unwrap()],
                leaving: false,
            },
        })))]);
        cluster
    }

    pub(super) fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Outcome {
        let outcome = self.index.apply_all(events);
        for change in &outcome.changes {
            self.table.apply(change);
        }
        outcome
    }

    /// What a flow comes to: endpoints by text, or `refused`, `dropped`, or
    /// another reason of the table.
    pub(super) fn flow(&self, source: &str, destination: &str) -> String {
        self.flow_over(Protocol::Tcp, source, destination)
    }

    fn verdict(&self, protocol: Protocol, source: &str, to: &str) -> Verdict {
        let to: SocketAddr = to.parse().unwrap();
        let client: IpAddr = source.parse().unwrap();
        let own = [NODE, LOCALHOST].map(|ip| ip.parse().unwrap());
        let is_node = || own.contains(&client);
        if own.contains(&to.ip()) {
            return self.table.node_port(to, protocol, client, is_node);
        }
        let (ip, port) = (to.ip(), to.port());
        let address = VirtualAddress { ip, port, protocol };
        self.table.verdict(address, client, is_node)
    }

    /// The virtual server that a flow comes to.
    pub(super) fn server(&self, protocol: Protocol, source: &str, to: &str) -> Arc<VirtualServer> {
        match self.verdict(protocol, source, to) {
            Verdict::Forward(server) => server,
            refused @ (Verdict::Reject(_) | Verdict::Drop(_)) => panic!("{to}: {refused:?}"),
        }
    }

    /// The real server of one flow.
    pub(super) fn pick(&self, protocol: Protocol, source: &str, to: &str) -> Arc<RealServer> {
        let client = SocketAddr::new(source.parse().unwrap(), 40_000);
        let server = self.server(protocol, source, to);
        server.schedule(client, Instant::now(), &[]).unwrap()
    }

    pub(super) fn flow_over(&self, protocol: Protocol, source: &str, to: &str) -> String {
        let client: IpAddr = source.parse().unwrap();
        let verdict = self.verdict(protocol, source, to);
        let Verdict::Forward(server) = verdict else {
            return match word(&verdict) {
                "no_endpoints" => "refused".to_owned(),
                "no_local_endpoint" => "dropped".to_owned(),
                other => other.to_owned(),
            };
        };
        // Enough to meet every one of a rotation.
        let picks = (0..8).map(|port| {
            let client = SocketAddr::new(client, 40_000 + port);
            let picked = server.schedule(client, Instant::now(), &[]).unwrap();
            picked.address.to_string()
        });
        let endpoints: BTreeSet<_> = picks.collect();
        endpoints.into_iter().collect::<Vec<_>>().join(" ")
    }
}

/// A LoadBalancer Service with every kind of address and these extras.
pub(super) fn balanced(name: &str, cluster_ip: &str, extra: Value, ingress: Value) -> Event {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": cluster_ip});
    let extra = extra.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(extra);
    let status = json!({"loadBalancer": {"ingress": ingress}});
    apply_service(service_with_status(json!({"name": name}), spec, status))
}

/// One local and one remote endpoint for each of three Services.
fn three_services() -> Vec<Event> {
    let policies = [
        json!({}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"internalTrafficPolicy": "Local"}),
    ];
    let balancers = ["1.2.3.4", "5.6.7.8", "9.10.11.12"];
    let mut events = Vec::new();
    for (i, (mut extra, balancer)) in policies.into_iter().zip(balancers).enumerate() {
        let n = i + 1;
        extra["ports"] = json!([{"name": "p80", "port": 80, "nodePort": 3000 + n}]);
        events.push(balanced(
            &format!("svc{n}"),
            &format!("172.30.0.4{n}"),
            extra,
            json!([{"ip": balancer}]),
        ));
        events.push(apply_slice(slice(
            &format!("svc{n}-a"),
            &format!("svc{n}"),
            &[("p80", 80)],
            &[
                &format!("10.180.0.{n} test-node"),
                &format!("10.180.1.{n} other-node"),
            ],
        )));
    }
    events
}

/// Endpoints that a flow may come to: both, or the local one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Endpoints {
    All,
    Local,
}
use Endpoints::{All, Local};

/// Where a flow goes: cluster IP, node port or load balancer IP.
#[derive(Clone, Copy, Debug)]
enum To {
    ClusterIp,
    NodePort,
    Balancer,
}
use To::{Balancer, ClusterIp, NodePort};

struct Flow {
    from: &'static str,
    to: To,
    /// 1: policies Cluster, 2: external Local, 3: internal Local.
    service: usize,
    /// With a detector, that is while the networks of pods are known.
    detector: Endpoints,
    no_detector: Endpoints,
    /// With `--ipvs-compat`, where the detector changes nothing.
    ipvs: Endpoints,
}

const fn flow(
    from: &'static str,
    to: To,
    service: usize,
    [detector, no_detector, ipvs]: [Endpoints; 3],
) -> Flow {
    Flow {
        from,
        to,
        service,
        detector,
        no_detector,
        ipvs,
    }
}

#[rustfmt::skip]
const FLOWS: &[Flow] = &[
    flow(POD,       ClusterIp, 1, [All,   All,   All]),
    flow(POD,       NodePort,  1, [All,   All,   All]),
    flow(POD,       Balancer,  1, [All,   All,   All]),
    flow(NODE,      ClusterIp, 1, [All,   All,   All]),
    flow(NODE,      NodePort,  1, [All,   All,   All]),
    flow(LOCALHOST, NodePort,  1, [All,   All,   All]),
    flow(NODE,      Balancer,  1, [All,   All,   All]),
    flow(OUTSIDE,   ClusterIp, 1, [All,   All,   All]),
    flow(OUTSIDE,   NodePort,  1, [All,   All,   All]),
    flow(OUTSIDE,   Balancer,  1, [All,   All,   All]),
    flow(POD,       ClusterIp, 2, [All,   All,   All]),
    flow(POD,       NodePort,  2, [All,   Local, Local]),
    flow(POD,       Balancer,  2, [All,   Local, Local]),
    flow(NODE,      ClusterIp, 2, [All,   All,   All]),
    flow(NODE,      NodePort,  2, [All,   All,   Local]),
    flow(LOCALHOST, NodePort,  2, [All,   All,   Local]),
    flow(NODE,      Balancer,  2, [All,   All,   Local]),
    flow(OUTSIDE,   ClusterIp, 2, [All,   All,   All]),
    flow(OUTSIDE,   NodePort,  2, [Local, Local, Local]),
    flow(OUTSIDE,   Balancer,  2, [Local, Local, Local]),
    flow(POD,       ClusterIp, 3, [Local, Local, Local]),
    flow(POD,       NodePort,  3, [All,   All,   All]),
    flow(POD,       Balancer,  3, [All,   All,   All]),
    flow(NODE,      ClusterIp, 3, [Local, Local, Local]),
    flow(NODE,      NodePort,  3, [All,   All,   All]),
    flow(LOCALHOST, NodePort,  3, [All,   All,   All]),
    flow(NODE,      Balancer,  3, [All,   All,   All]),
    flow(OUTSIDE,   ClusterIp, 3, [Local, Local, Local]),
    flow(OUTSIDE,   NodePort,  3, [All,   All,   All]),
    flow(OUTSIDE,   Balancer,  3, [All,   All,   All]),
];

#[test]
fn thirty_flows() {
    assert_eq!(FLOWS.len(), 30);
    let set_up = |mut cluster: Cluster| {
        cluster.apply(three_services());
        cluster
    };
    let index = || Index::new("test-node");
    // The name, the cluster, and the column.
    type Column = fn(&Flow) -> Endpoints;
    let with = || Cluster::with(index(), true);
    let without = || Cluster::with(index(), false);
    let configurations: [(&str, Cluster, Column); 6] = [
        ("detector", with(), |f| f.detector),
        ("detector, masquerade all", with(), |f| f.detector),
        ("no detector", without(), |f| f.no_detector),
        ("no detector, masquerade all", without(), |f| f.no_detector),
        ("ipvs", Cluster::as_ipvs(), |f| f.ipvs),
        (
            "ipvs without detector",
            Cluster::with(index().with_ipvs_compat(true), false),
            |f| f.ipvs,
        ),
    ];
    let mut checked = 0;
    for (name, cluster, expected) in configurations {
        let cluster = set_up(cluster);
        for flow in FLOWS {
            let n = flow.service;
            let destination = match flow.to {
                ClusterIp => format!("172.30.0.4{n}:80"),
                NodePort if flow.from == LOCALHOST => format!("{LOCALHOST}:300{n}"),
                NodePort => format!("{NODE}:300{n}"),
                Balancer => format!("{}:80", ["1.2.3.4", "5.6.7.8", "9.10.11.12"][n - 1]),
            };
            let endpoints = match expected(flow) {
                All => format!("10.180.0.{n}:80 10.180.1.{n}:80"),
                Local => format!("10.180.0.{n}:80"),
            };
            assert_eq!(
                cluster.flow(flow.from, &destination),
                endpoints,
                "{name}: {} to {destination}",
                flow.from
            );
            let server = cluster.server(Protocol::Tcp, flow.from, &destination);
            let mut real = server.real_servers().into_iter();
            assert!(real.all(|server| server.forward == ForwardMethod::Masq));
            checked += 1;
        }
    }
    assert_eq!(checked, 4 * 30 + 2 * 30);
}
