//! Services and their ports, types and labels, as they come, go and change.

use std::collections::BTreeSet;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::Failed;
use serde_json::json;

use super::{NODE_PORT, SILENCE, at, serve, until_answered, until_refused, until_silent};
use crate::kube_stage::{KubeStage, cluster_ip, node_port, service, slice, with};
use crate::node_port_stage::{is_refused, until};
use crate::world::LIMIT;

pub(super) fn come_and_go() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5", "pod-6"])?;
    stage.serve("a", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    let (a, b) = (at("10.0.0.3:80"), at("10.0.0.4:80"));
    for from in [stage.master(), stage.client()] {
        assert_eq!(client::who(from, a, LIMIT)?.name, "pod-5");
        assert_eq!(client::who_udp(from, a, LIMIT)?.name, "pod-5");
    }
    stage.serve("b", cluster_ip("10.0.0.4"), &["pod-6"]);
    until_answered(stage.master(), b, "pod-6")?;
    assert_eq!(client::who(stage.master(), a, LIMIT)?.name, "pod-5");

    stage.api.delete("services", "default/a");
    stage.api.delete("endpointslices", "default/a-a");
    until_silent(stage.master(), a)?;
    assert_eq!(client::who(stage.client(), b, LIMIT)?.name, "pod-6");
    // The same name and address again.
    stage.serve("a", cluster_ip("10.0.0.3"), &["pod-6"]);
    until_answered(stage.client(), a, "pod-6")?;
    // Its endpoints go, and it stays.
    stage.endpoints("a", &[]);
    until_refused(stage.master(), a)?;
    Ok(())
}

pub(super) fn changes_type() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    let (vip, balancer) = (at("10.0.0.3:80"), at("198.51.100.7:80"));
    let on_node = stage.at_master(NODE_PORT);
    let apply = |stage: &KubeStage, spec| stage.api.apply("services", service("web", spec));
    let outside = |stage: &KubeStage| stage.cluster.outside().clone();
    assert_eq!(client::who(stage.master(), vip, LIMIT)?.name, "pod-5");
    assert!(is_refused(&client::connect(
        &outside(&stage),
        on_node,
        LIMIT
    )));

    apply(&stage, node_port("10.0.0.3", NODE_PORT));
    until_answered(&outside(&stage), on_node, "pod-5")?;
    assert_eq!(
        client::who_udp(&outside(&stage), on_node, LIMIT)?.name,
        "pod-5"
    );
    assert_eq!(client::who(stage.client(), vip, LIMIT)?.name, "pod-5");

    let balanced = with(
        node_port("10.0.0.3", NODE_PORT),
        &json!({"type": "LoadBalancer"}),
    );
    let mut balanced = service("web", balanced);
    balanced["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.7"}]);
    stage.api.apply("services", balanced);
    for from in [stage.master(), stage.client()] {
        until_answered(from, balancer, "pod-5")?;
    }
    assert_eq!(client::who(&outside(&stage), on_node, LIMIT)?.name, "pod-5");

    let name = json!({"type": "ExternalName", "externalName": "example.org"});
    apply(&stage, name.clone());
    until_silent(stage.master(), vip)?;
    until_refused(&outside(&stage), on_node)?;
    until(
        || client::connect(stage.master(), balancer, SILENCE).map(drop),
        Result::is_err,
    )?;

    apply(&stage, cluster_ip("10.0.0.3"));
    until_answered(stage.master(), vip, "pod-5")?;
    apply(&stage, node_port("10.0.0.3", NODE_PORT));
    until_answered(&outside(&stage), on_node, "pod-5")?;
    apply(&stage, name);
    until_refused(&outside(&stage), on_node)?;
    until_silent(stage.master(), vip)
}

/// Numbers and names of ports, one number for two protocols, and a name that leads to
/// different numbers at different endpoints.
pub(super) fn ports_change() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5", "pod-6"])?;
    let _other = stage
        .cluster
        .pod("pod-7")
        .serve_tcp(8080, Tcp::Who("pod-7".to_owned()))?;
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    let from = stage.master();
    assert_eq!(client::who(from, at("10.0.0.3:80"), LIMIT)?.name, "pod-5");
    assert_eq!(
        client::who_udp(from, at("10.0.0.3:80"), LIMIT)?.name,
        "pod-5"
    );

    let ports = json!([{"name": "tcp", "protocol": "TCP", "port": 81, "targetPort": 80}]);
    let spec = with(cluster_ip("10.0.0.3"), &json!({"ports": ports}));
    stage.api.apply("services", service("web", spec));
    until_answered(from, at("10.0.0.3:81"), "pod-5")?;
    // Of a known address every other port is refused, over UDP too.
    until_refused(from, at("10.0.0.3:80"))?;
    let refused = client::udp_exchange(from, at("10.0.0.3:80"), b"who?", LIMIT);
    assert!(is_refused(&refused), "{refused:?}");

    // Two slices, in which the port of that name has different numbers.
    let number = |port: u16| json!([{"name": "tcp", "protocol": "TCP", "port": port}]);
    let (six, seven) = (stage.endpoint("pod-6"), stage.endpoint("pod-7"));
    let slices = [
        slice("web", "a", &number(80), &[six]),
        slice("web", "b", &number(8080), &[seven]),
    ];
    for slice in slices {
        stage.api.apply("endpointslices", slice);
    }
    let both = BTreeSet::from(["pod-6".to_owned(), "pod-7".to_owned()]);
    until(
        || {
            let asked = (0..4).map(|_| client::who(from, at("10.0.0.3:81"), SILENCE));
            let names: Result<BTreeSet<_>, _> = asked.map(|s| s.map(|s| s.name)).collect();
            names
        },
        |names| matches!(names, Ok(names) if *names == both),
    )?;
    Ok(())
}

/// kube-proxy's selectors: a label that names another proxy, and headless slices.
pub(super) fn labels() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    let labelled = |label: Option<&str>| {
        let mut object = service("web", cluster_ip("10.0.0.3"));
        if let Some(label) = label {
            object["metadata"]["labels"] = json!({label: "other"});
        }
        object
    };
    let proxy_name = "service.kubernetes.io/service-proxy-name";
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.serve(
        "headless",
        with(cluster_ip("None"), &json!({"clusterIPs": ["None"]})),
        &["pod-5"],
    );
    stage.api.apply("services", labelled(Some(proxy_name)));
    stage.start(&[])?;
    let vip = at("10.0.0.3:80");
    until_silent(stage.master(), vip)?;
    stage.api.apply("services", labelled(None));
    until_answered(stage.master(), vip, "pod-5")?;
    stage.api.apply("services", labelled(Some(proxy_name)));
    until_silent(stage.master(), vip)?;

    stage.api.apply("services", labelled(None));
    until_answered(stage.master(), vip, "pod-5")?;
    let ports = json!([{"name": "tcp", "protocol": "TCP", "port": 80}]);
    let mut headless = slice("web", "a", &ports, &[stage.endpoint("pod-5")]);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    stage.api.apply("endpointslices", headless);
    until_refused(stage.master(), vip)
}
