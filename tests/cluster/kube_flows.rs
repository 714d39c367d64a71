//! kube-proxy's thirty packet flows (`TestInternalExternalMasquerade`) over the wire:
//! from a pod, the node, its loopback and from outside, to cluster IPs, node ports and
//! load balancer IPs of three Services, with and without knowledge of the pods'
//! networks. The table's own tests have the rest of the configurations; real servers
//! see the node in every one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kube_tun_proxy::lab::{ClusterBuilder, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::kube::serve;
use crate::kube_stage::{KubeStage, node_object, node_port, service, with};
use crate::world::{LIMIT, Trials};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_flows")
        .one("thirty_with_the_networks_of_pods", || thirty(true))
        .one("thirty_without_them", || thirty(false))
        .done()
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Pod,
    Node,
    Loopback,
    Outside,
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    ClusterIp,
    NodePort,
    Balancer,
}

/// Ten for each Service.
const FLOWS: [(From, To); 10] = [
    (From::Pod, To::ClusterIp),
    (From::Pod, To::NodePort),
    (From::Pod, To::Balancer),
    (From::Node, To::ClusterIp),
    (From::Node, To::NodePort),
    (From::Loopback, To::NodePort),
    (From::Node, To::Balancer),
    (From::Outside, To::ClusterIp),
    (From::Outside, To::NodePort),
    (From::Outside, To::Balancer),
];

fn thirty(detector: bool) -> Result<(), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let _servers = serve(&stage, &["here", "pod-5"])?;
    if !detector {
        let mut node = node_object(stage.cluster.node("master"));
        node["spec"] = json!({});
        stage.api.apply("nodes", node);
    }
    let policies = [
        json!({}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"internalTrafficPolicy": "Local"}),
    ];
    for (n, policy) in (1..).zip(&policies) {
        let name = format!("svc{n}");
        let spec = node_port(&format!("10.0.0.4{n}"), 30_000 + n);
        stage.serve(&name, spec.clone(), &["here", "pod-5"]);
        let spec = with(with(spec, &json!({"type": "LoadBalancer"})), policy);
        let mut balanced = service(&name, spec);
        let ingress = json!([{"ip": format!("198.51.100.{n}")}]);
        balanced["status"]["loadBalancer"]["ingress"] = ingress;
        stage.api.apply("services", balanced);
    }
    stage.start(&[])?;
    stage.lead_from_outside("10.0.0.0/16".parse()?)?;
    stage.lead_from_outside("198.51.100.0/24".parse()?)?;
    let master = stage.cluster.node("master");
    let seen_as: [IpAddr; 2] = [
        master.bridge_address().into(),
        master.overlay_address().into(),
    ];
    let mut flows = 0;
    for n in 1..=3u8 {
        for (from, to) in FLOWS {
            let source = match from {
                From::Pod => stage.client(),
                From::Node | From::Loopback => stage.master(),
                From::Outside => stage.cluster.outside(),
            };
            let port = 30_000 + u16::from(n);
            let address = match to {
                To::ClusterIp => SocketAddr::new(Ipv4Addr::new(10, 0, 0, 40 + n).into(), 80),
                To::Balancer => SocketAddr::new(Ipv4Addr::new(198, 51, 100, n).into(), 80),
                To::NodePort if from == From::Loopback => {
                    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
                }
                To::NodePort => stage.at_master(port),
            };
            let mut names = BTreeSet::new();
            for _ in 0..4 {
                let seen = client::who(source, address, LIMIT)
                    .map_err(|error| format!("{from:?} to {address}: {error}"))?;
                assert!(
                    seen_as.contains(&seen.peer.ip()),
                    "{from:?} {to:?}: {seen:?}"
                );
                names.insert(seen.name);
            }
            // Pods of this node are told from others by their networks.
            let is_outside = from == From::Outside || (from == From::Pod && !detector);
            let local = match n {
                2 => is_outside && to != To::ClusterIp,
                3 => to == To::ClusterIp,
                _ => false,
            };
            let expected: &[&str] = if local { &["here"] } else { &["here", "pod-5"] };
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            assert_eq!(names, expected, "{from:?} to {to:?} of svc{n}");
            flows += 1;
        }
    }
    assert_eq!(flows, 30);
    Ok(())
}
