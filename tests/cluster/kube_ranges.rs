//! `loadBalancerSourceRanges` over the wire: at the IPs of a load balancer whoever is in
//! no range hears nothing (kubernetes `TestLoadBalancer`, `TestLoadBalancerSourceRanges`).

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube_tun_proxy::lab::servers::Server;
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::kube::serve;
use crate::kube_stage::{KubeStage, Place, everywhere};
use crate::node_port_stage::{is_refused, until};
use crate::world::{FAMILIES, Family, LIMIT, Trials};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_ranges")
        .both("whoever_is_in_none_hears_nothing", who_is_let_in)
        .both("the_node_is_let_in_by_any_of_its_addresses", the_node)
        .both("at_an_address_of_the_node_too", at_the_node)
        .one("they_change", changes)
        .one("without_endpoints_everybody_is_refused", without_endpoints)
        .done()
}

fn stage(ranges: &[&str], pods: &[&str]) -> Result<(KubeStage, Vec<Server>), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("other", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let servers = serve(&stage, &["pod-5"])?;
    let fields = json!({"loadBalancerSourceRanges": ranges});
    stage.serve_in_both(everywhere("web", 3, &fields), pods);
    stage.start(&[])?;
    for network in [
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001:db8:7::/64",
        "2001:db8:8::/64",
    ] {
        stage.lead_from_outside(network.parse()?)?;
    }
    Ok((stage, servers))
}

fn own(stage: &KubeStage, pod: &str, family: Family) -> IpAddr {
    family.at(stage.cluster.pod(pod), 0).ip()
}

fn is_served(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    for ask in [client::who, client::who_udp] {
        let seen =
            ask(from, to, LIMIT).map_err(|error| format!("{} to {to}: {error}", from.name()))?;
        assert_eq!(seen.name, "pod-5");
    }
    Ok(())
}

fn hears_nothing(from: &Namespace, to: SocketAddr) {
    let tcp = client::connect(from, to, SILENCE).map_err(|error| error.kind());
    assert!(
        matches!(tcp, Err(ErrorKind::TimedOut)),
        "{} to {to}: {tcp:?}",
        from.name()
    );
    let udp = client::who_udp(from, to, SILENCE).map_err(|error| error.kind());
    assert!(
        matches!(udp, Err(ErrorKind::WouldBlock)),
        "{} to {to}: {udp:?}",
        from.name()
    );
}

/// A pod is let in by its own address and nobody else by that; other addresses of the
/// Service know no ranges.
fn who_is_let_in(family: Family) -> Result<(), Failed> {
    // The client pod's, of both families, in notations that kube-proxy takes: with
    // space around it, and with host bits.
    let ranges = [" 10.1.15.7/32", "192.0.2.9/24 ", "fd00:10:1:15::7/128"];
    let (stage, _servers) = stage(&ranges, &["pod-5"])?;
    let to = stage.place(family, 3, Place::Balancer);
    assert!(own(&stage, "client", family) != own(&stage, "other", family));
    is_served(stage.client(), to)?;
    let other = stage.cluster.pod("other").namespace();
    for from in [other, stage.master(), stage.cluster.outside()] {
        hears_nothing(from, to);
    }
    let counted = stage
        .proxy()
        .command(&["list", "--counters", "-o", "json"])?;
    let counted: serde_json::Value = serde_json::from_slice(&counted.stdout)?;
    let dropped = counted["tun"]["dropped"]["source_range"].as_u64();
    assert!(dropped >= Some(6), "{counted}");
    for place in [Place::External, Place::NodePort] {
        for from in [
            stage.client(),
            other,
            stage.master(),
            stage.cluster.outside(),
        ] {
            is_served(from, stage.place(family, 3, place))?;
        }
    }
    is_served(other, stage.place(family, 3, Place::ClusterIp))
}

/// A range with one of its addresses lets the node in, whatever source its packets
/// have: the TUN's own address here (`KUBE-FW` chains).
fn the_node(family: Family) -> Result<(), Failed> {
    let ranges = ["172.100.101.192/32", "fd00:172:100:101::/64"];
    let (stage, _servers) = stage(&ranges, &["pod-5"])?;
    let to = stage.place(family, 3, Place::Balancer);
    is_served(stage.master(), to)?;
    hears_nothing(stage.client(), to);
    Ok(())
}

/// A load balancer's IP that the node has itself, as kube-vip gives it: by a listener.
fn at_the_node(family: Family) -> Result<(), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("other", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let _servers = serve(&stage, &["pod-5"])?;
    let fields = json!({"loadBalancerSourceRanges": ["10.1.15.7/32", "fd00:10:1:15::7/128"]});
    let mut service = everywhere("web", 3, &fields);
    let master = stage.cluster.node("master");
    let own: [IpAddr; 2] = [
        master.bridge_address().into(),
        master.bridge_address6().into(),
    ];
    let ingress = own.map(|ip| json!({"ip": ip.to_string()}));
    service["status"]["loadBalancer"]["ingress"] = json!(ingress);
    stage.serve_in_both(service, &["pod-5"]);
    stage.start(&[])?;
    let to = SocketAddr::new(own[usize::from(family == Family::V6)], 80);
    is_served(stage.client(), to)?;
    let other = stage.cluster.pod("other").namespace();
    for from in [other, stage.master()] {
        hears_nothing(from, to);
    }
    Ok(())
}

fn changes() -> Result<(), Failed> {
    let (stage, _servers) = stage(&["192.0.2.0/24", "2001:db8:9::/64"], &["pod-5"])?;
    for family in FAMILIES {
        let to = stage.place(family, 3, Place::Balancer);
        hears_nothing(stage.client(), to);
    }
    let apply = |ranges: &[&str]| {
        let fields = json!({"loadBalancerSourceRanges": ranges});
        stage.api.apply("services", everywhere("web", 3, &fields));
    };
    let to = |family| stage.place(family, 3, Place::Balancer);
    let served = |from: &Namespace, family| {
        let ask = || client::who(from, to(family), SILENCE).map(|seen| seen.name);
        until(ask, |name| matches!(name, Ok(name) if name == "pod-5"))
    };
    apply(&["10.1.0.0/16"]);
    served(stage.client(), Family::V4)?;
    // Of the other family none is named: it has no ranges any more.
    served(stage.client(), Family::V6)?;
    hears_nothing(stage.cluster.outside(), to(Family::V4));
    // All of a family is no restriction.
    apply(&["10.1.0.0/16", "0.0.0.0/0", "::/0"]);
    for family in FAMILIES {
        for from in [stage.client(), stage.master(), stage.cluster.outside()] {
            served(from, family)?;
        }
    }
    apply(&["192.0.2.0/24"]);
    until(
        || client::connect(stage.client(), to(Family::V4), SILENCE).map_err(|e| e.kind()),
        |result| matches!(result, Err(ErrorKind::TimedOut)),
    )?;
    apply(&[]);
    for family in FAMILIES {
        served(stage.cluster.outside(), family)?;
    }
    Ok(())
}

fn without_endpoints() -> Result<(), Failed> {
    let (stage, _servers) = stage(&["10.1.15.7/32"], &[])?;
    for family in FAMILIES {
        let to = stage.place(family, 3, Place::Balancer);
        for from in [stage.client(), stage.master(), stage.cluster.outside()] {
            let tcp = client::connect(from, to, LIMIT);
            assert!(is_refused(&tcp), "{} to {to}: {tcp:?}", from.name());
            let udp = client::who_udp(from, to, LIMIT);
            assert!(is_refused(&udp), "{} to {to}: {udp:?}", from.name());
        }
    }
    Ok(())
}
