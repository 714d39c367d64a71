//! kube-proxy's thirty packet flows (`TestInternalExternalMasquerade`) over the wire:
//! from a pod, the node, its loopback and from outside, to cluster IPs, node ports and
//! load balancer IPs of three Services, with and without knowledge of the pods'
//! networks and as its IPVS mode has them; and what a client sees where a policy
//! leaves nobody. In both families, over TCP and UDP. The table's own tests have the
//! rest of the configurations; real servers see the node in every one.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube_tun_proxy::lab::servers::Server;
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::kube::serve;
use crate::kube_stage::{KubeStage, Place, everywhere, node_object, service, with};
use crate::world::{Family, LIMIT, Trials};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_flows")
        .both("thirty_with_the_networks_of_pods", |family| {
            thirty(family, Way::Detector)
        })
        .both("thirty_without_them", |family| {
            thirty(family, Way::NoDetector)
        })
        .both("thirty_as_ipvs_has_them", |family| {
            thirty(family, Way::Ipvs)
        })
        .both("pods_are_told_by_the_networks_of_the_cluster", cluster_cidr)
        .one(
            "pods_are_told_by_their_node_where_it_is_asked_for",
            node_cidr,
        )
        .both("where_nobody_is_local", |family| nobody(family, false))
        .both("where_nobody_is_local_as_ipvs_has_it", |family| {
            nobody(family, true)
        })
        .both("pings", |family| pings(family, true))
        .both("pings_unanswered", |family| pings(family, false))
        .done()
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Pod,
    Node,
    Outside,
}

/// What decides about policy Local.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Detector,
    NoDetector,
    Ipvs,
}

/// Ten for each Service.
const FLOWS: [(From, Place); 10] = [
    (From::Pod, Place::ClusterIp),
    (From::Pod, Place::NodePort),
    (From::Pod, Place::Balancer),
    (From::Node, Place::ClusterIp),
    (From::Node, Place::NodePort),
    (From::Node, Place::Loopback),
    (From::Node, Place::Balancer),
    (From::Outside, Place::ClusterIp),
    (From::Outside, Place::NodePort),
    (From::Outside, Place::Balancer),
];

impl From {
    fn of(self, stage: &KubeStage) -> &Namespace {
        match self {
            Self::Pod => stage.client(),
            Self::Node => stage.master(),
            Self::Outside => stage.cluster.outside(),
        }
    }
}

fn lead_from_outside(stage: &KubeStage, family: Family) -> Result<(), Failed> {
    let networks = match family {
        Family::V4 => ["10.0.0.0/16", "198.51.100.0/24", "203.0.113.0/24"],
        Family::V6 => ["fd00:10::/112", "2001:db8:7::/64", "2001:db8:8::/64"],
    };
    for network in networks {
        stage.lead_from_outside(network.parse()?)?;
    }
    Ok(())
}

fn thirty(family: Family, way: Way) -> Result<(), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let _servers = serve(&stage, &["here", "pod-5"])?;
    if way == Way::NoDetector {
        let mut node = node_object(stage.cluster.node("master"));
        node["spec"] = json!({});
        stage.api.apply("nodes", node);
    }
    let policies = [
        json!({}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"internalTrafficPolicy": "Local"}),
    ];
    for (n, policy) in (41..).zip(&policies) {
        let name = format!("svc{n}");
        stage.serve_in_both(everywhere(&name, n, policy), &["here", "pod-5"]);
    }
    let compat: &[&str] = match way {
        Way::Ipvs => &["--ipvs-compat"],
        Way::Detector | Way::NoDetector => &[],
    };
    stage.start(compat)?;
    lead_from_outside(&stage, family)?;
    let master = stage.cluster.node("master");
    let seen_as: [IpAddr; 2] = match family {
        Family::V4 => [
            master.bridge_address().into(),
            master.overlay_address().into(),
        ],
        Family::V6 => [
            master.bridge_address6().into(),
            master.overlay_address6().into(),
        ],
    };
    let mut flows = 0;
    for n in 41..=43u8 {
        for (from, place) in FLOWS {
            let to = stage.place(family, n, place);
            // Pods of this node are told from others by their networks.
            let is_outside = from == From::Outside || (from == From::Pod && way == Way::NoDetector);
            let local = match n {
                42 => (is_outside || way == Way::Ipvs) && place != Place::ClusterIp,
                43 => place == Place::ClusterIp,
                _ => false,
            };
            let expected: &[&str] = if local { &["here"] } else { &["here", "pod-5"] };
            for ask in [client::who, client::who_udp] {
                let mut names = BTreeSet::new();
                for _ in 0..4 {
                    let seen = ask(from.of(&stage), to, LIMIT)
                        .map_err(|error| format!("{from:?} to {to}: {error}"))?;
                    let peer = seen.peer.ip();
                    assert!(seen_as.contains(&peer), "{from:?} {place:?}: {seen:?}");
                    names.insert(seen.name);
                }
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                assert_eq!(names, expected, "{from:?} to {place:?} of svc{n}");
            }
            flows += 1;
        }
    }
    assert_eq!(flows, 30);
    Ok(())
}

/// Under policy Local a pod gets every endpoint, and one of another node too: by what
/// is said of the cluster, when the node has nothing to say.
fn cluster_cidr(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = local(&["--cluster-cidr", "10.1.0.0/16,fd00:10:1::/48"])?;
    for pod in ["client", "pod-6"] {
        meets(&stage, family, pod, &["here", "pod-5"])?;
    }
    lead_from_outside(&stage, family)?;
    for place in [Place::Balancer, Place::NodePort] {
        for _ in 0..4 {
            let to = stage.place(family, 41, place);
            let seen = client::who(stage.cluster.outside(), to, LIMIT)?;
            assert_eq!(seen.name, "here", "{place:?}");
        }
    }
    Ok(())
}

fn node_cidr() -> Result<(), Failed> {
    let cluster = ["--cluster-cidr", "10.1.0.0/16"];
    let arguments = [&cluster[..], &["--detect-local-mode", "NodeCIDR"]].concat();
    let (stage, _servers) = local(&arguments)?;
    // Its Node says nothing of networks.
    meets(&stage, Family::V4, "client", &["here"])?;
    stage
        .api
        .apply("nodes", node_object(stage.cluster.node("master")));
    crate::node_port_stage::until(
        || meets(&stage, Family::V4, "client", &["here", "pod-5"]).map_err(|_| "not yet"),
        Result::is_ok,
    )?;
    // A pod of another node is none of this one's.
    meets(&stage, Family::V4, "pod-6", &["here"])?;
    drop(stage);
    // What cannot be done is said, and this is what is done.
    let bridge = [&cluster[..], &["--detect-local-mode", "BridgeInterface"]].concat();
    let (stage, _servers) = local(&bridge)?;
    meets(&stage, Family::V4, "client", &["here"])?;
    let log = stage.proxy().log();
    let told = "the interface that a packet came in by is not seen here";
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert!(log.contains("BridgeInterface"), "{log}");
    Ok(())
}

/// A Service under policy Local with an endpoint here and one elsewhere, on a node
/// whose object tells of no networks of pods.
fn local(arguments: &[&str]) -> Result<(KubeStage, Vec<Server>), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let servers = serve(&stage, &["here", "pod-5"])?;
    let mut node = node_object(stage.cluster.node("master"));
    node["spec"] = json!({});
    stage.api.apply("nodes", node);
    let policy = json!({"externalTrafficPolicy": "Local"});
    stage.serve_in_both(everywhere("web", 41, &policy), &["here", "pod-5"]);
    stage.start(arguments)?;
    Ok((stage, servers))
}

/// Whom a pod meets at the node port.
fn meets(stage: &KubeStage, family: Family, pod: &str, expected: &[&str]) -> Result<(), Failed> {
    let from = stage.cluster.pod(pod).namespace();
    let to = stage.place(family, 41, Place::NodePort);
    let mut names = BTreeSet::new();
    for ask in [client::who, client::who_udp] {
        for _ in 0..4 {
            names.insert(ask(from, to, LIMIT)?.name);
        }
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    if names == expected {
        Ok(())
    } else {
        Err(format!("{pod} meets {names:?}, not {expected:?}").into())
    }
}

/// What a client sees.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sees {
    Pod,
    Silence,
    Refusal,
    /// Something else, or not the same over TCP and UDP.
    Else,
}

fn sees(from: &Namespace, to: SocketAddr) -> Sees {
    let one = |result: io::Result<client::Seen>| match result {
        Ok(seen) if seen.name == "pod-5" => Sees::Pod,
        Ok(_) => Sees::Else,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Sees::Refusal,
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Sees::Silence
        }
        Err(_) => Sees::Else,
    };
    let tcp = one(client::who(from, to, SILENCE));
    let udp = one(client::who_udp(from, to, SILENCE));
    if tcp == udp { tcp } else { Sees::Else }
}

/// One endpoint, elsewhere, or none: each cell of the table of empty lists.
fn nobody(family: Family, ipvs: bool) -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    let external = json!({"externalTrafficPolicy": "Local"});
    let internal = json!({"internalTrafficPolicy": "Local"});
    let both = with(external.clone(), &internal);
    stage.serve_in_both(everywhere("external", 41, &external), &["pod-5"]);
    stage.serve_in_both(everywhere("both", 42, &both), &["pod-5"]);
    stage.serve_in_both(everywhere("empty", 43, &both), &[]);
    let inner: Value = json!({
        "type": "ClusterIP",
        "clusterIP": "10.0.0.44",
        "clusterIPs": ["10.0.0.44", "fd00:10::2c"],
        "internalTrafficPolicy": "Local",
        "ports": [
            {"name": "tcp", "protocol": "TCP", "port": 80},
            {"name": "udp", "protocol": "UDP", "port": 80},
        ],
    });
    stage.serve_in_both(service("inner", inner), &["pod-5"]);
    stage.start(if ipvs { &["--ipvs-compat"] } else { &[] })?;
    lead_from_outside(&stage, family)?;
    let cells = [
        // Where: from inside and from outside, by default and as IPVS mode has it.
        (41, Place::ClusterIp, [Sees::Pod; 2], [Sees::Pod; 2]),
        (
            41,
            Place::Balancer,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (
            41,
            Place::External,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (
            41,
            Place::NodePort,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (42, Place::ClusterIp, [Sees::Silence; 2], [Sees::Pod; 2]),
        (
            42,
            Place::Balancer,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (
            42,
            Place::External,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (
            42,
            Place::NodePort,
            [Sees::Pod, Sees::Silence],
            [Sees::Pod; 2],
        ),
        (43, Place::ClusterIp, [Sees::Refusal; 2], [Sees::Refusal; 2]),
        (43, Place::Balancer, [Sees::Refusal; 2], [Sees::Refusal; 2]),
        (43, Place::External, [Sees::Refusal; 2], [Sees::Refusal; 2]),
        (43, Place::NodePort, [Sees::Refusal; 2], [Sees::Refusal; 2]),
        (44, Place::ClusterIp, [Sees::Silence; 2], [Sees::Refusal; 2]),
    ];
    for (host, place, by_default, as_ipvs) in cells {
        let [inside, outside] = if ipvs { as_ipvs } else { by_default };
        let to = stage.place(family, host, place);
        for (from, expected) in [
            (From::Node, inside),
            (From::Pod, inside),
            (From::Outside, outside),
        ] {
            let seen = sees(from.of(&stage), to);
            assert_eq!(seen, expected, "{from:?} to {place:?} of {host}, {to}");
        }
    }
    Ok(())
}

/// Of every address that a Service has and the node has not, whether it has endpoints
/// or none.
fn pings(family: Family, answered: bool) -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    stage.serve_in_both(everywhere("web", 41, &json!({})), &["pod-5"]);
    stage.serve_in_both(everywhere("empty", 42, &json!({})), &[]);
    stage.start(if answered {
        &[]
    } else {
        &["--answer-ping=false"]
    })?;
    lead_from_outside(&stage, family)?;
    for host in [41, 42] {
        for place in [Place::ClusterIp, Place::Balancer, Place::External] {
            let to = stage.place(family, host, place).ip();
            for from in [From::Node, From::Pod, From::Outside] {
                let limit = if answered { LIMIT } else { SILENCE };
                match client::ping(from.of(&stage), to, 56, limit) {
                    Ok(_) if answered => {}
                    Err(error) if !answered && error.kind() == ErrorKind::WouldBlock => {}
                    other => return Err(format!("{from:?} to {to}: {other:?}").into()),
                }
            }
        }
    }
    // Where no Service is, whatever is set.
    let nowhere = stage.place(family, 99, Place::ClusterIp).ip();
    let silent = client::ping(stage.master(), nowhere, 56, SILENCE);
    assert!(
        matches!(&silent, Err(error) if error.kind() == ErrorKind::WouldBlock),
        "{silent:?}"
    );
    Ok(())
}
