//! Which endpoint a client meets: affinity, hairpins, endpoints that terminate, UDP
//! flows whose server goes. By meaning kube-proxy's end-to-end tests
//! (kubernetes `test/e2e/network`: service.go, networking.go, conntrack.go).

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use kube_tun_proxy::lab::servers::{Server, Tcp, Udp};
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::kube::{at, serve, until_answered, until_refused, until_silent};
use crate::kube_stage::{KubeStage, cluster_ip, node_port, service, slice, with};
use crate::node_port_stage::{is_refused, until};
use crate::world::{LIMIT, Trials};

const NODE_PORT: u16 = 30_080;

const PODS: [&str; 3] = ["pod-5", "pod-6", "pod-7"];

/// Connections that confirm affinity (kubernetes `AffinityConfirmCount`).
const CONFIRM: usize = 15;

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_endpoints")
        .one("affinity_is_switched_on_and_off", affinity)
        .one("a_pod_reaches_itself", hairpin)
        .one("the_last_that_terminate_serve", || terminating(json!({})))
        .one("the_last_local_that_terminate_serve", || {
            terminating(json!({
                "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local",
                "type": "LoadBalancer",
                "healthCheckNodePort": HEALTH,
            }))
        })
        .one("policy_local_without_local_endpoints", nothing_local)
        .one("the_external_policy_changes", policy_changes)
        .one("a_node_is_an_endpoint_itself", host_network)
        .one("one_udp_client_whose_server_is_replaced", udp_cycles)
        .one("one_udp_client_whose_server_gets_ready", udp_gets_ready)
        .one("unready_endpoints_get_nothing", unready)
        .done()
}

const HEALTH: u16 = 31_000;

fn names(from: &Namespace, to: SocketAddr, times: usize) -> io::Result<BTreeSet<String>> {
    let asked = (0..times).map(|_| client::who(from, to, LIMIT));
    asked.map(|seen| seen.map(|seen| seen.name)).collect()
}

fn sticky(spec: Value, seconds: u32) -> Value {
    let config = json!({"clientIP": {"timeoutSeconds": seconds}});
    let fields = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
    with(spec, &fields)
}

fn affinity() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &PODS)?;
    let spec = node_port("10.0.0.3", NODE_PORT);
    stage.serve("web", spec.clone(), &PODS);
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let places = [
        (stage.master(), at("10.0.0.3:80")),
        (stage.client(), at("10.0.0.3:80")),
        (outside, stage.at_master(NODE_PORT)),
    ];
    let all = |n: usize| move |names: &io::Result<BTreeSet<String>>| matches!(names, Ok(names) if names.len() == n);
    for (from, to) in places {
        assert_eq!(names(from, to, 3)?.len(), 3, "{to}");
    }
    stage
        .api
        .apply("services", service("web", sticky(spec.clone(), 10_800)));
    for (from, to) in places {
        until(|| names(from, to, CONFIRM), all(1))?;
        let udp: Result<BTreeSet<_>, _> = (0..CONFIRM)
            .map(|_| client::who_udp(from, to, LIMIT).map(|seen| seen.name))
            .collect();
        assert_eq!(udp?.len(), 1, "{to}");
    }
    stage.api.apply("services", service("web", spec));
    for (from, to) in places {
        until(|| names(from, to, 3), all(3))?;
    }
    Ok(())
}

fn hairpin() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["client"])?;
    stage.serve("self", node_port("10.0.0.3", NODE_PORT), &["client"]);
    stage.start(&[])?;
    let bridge = stage.cluster.node("master").bridge_address();
    for to in [at("10.0.0.3:80"), stage.at_master(NODE_PORT)] {
        let seen = [
            client::who(stage.client(), to, LIMIT)?,
            client::who_udp(stage.client(), to, LIMIT)?,
        ];
        for seen in seen {
            assert_eq!(
                (seen.name.as_str(), seen.peer.ip()),
                ("client", bridge.into())
            );
        }
    }
    Ok(())
}

/// A Service whose only endpoint terminates is served by it still, from everywhere;
/// a load balancer is told to go elsewhere.
fn terminating(policy: Value) -> Result<(), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let _servers = serve(&stage, &["here"])?;
    let is_checked = policy["healthCheckNodePort"].is_number();
    stage.serve(
        "web",
        with(node_port("10.0.0.3", NODE_PORT), &policy),
        &["here"],
    );
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let checked = stage.at_master(HEALTH);
    let status = || client::http_get(outside, checked, "/", LIMIT).map(|answer| answer.0);
    if is_checked {
        until(status, |status| matches!(status, Ok(200)))?;
    }
    stage.endpoints("web", &[stage.terminating("here")]);
    if is_checked {
        until(status, |status| matches!(status, Ok(503)))?;
    }
    stage.wait_for_real_servers("10.0.0.3:80", &["here"])?;
    for (from, to) in [
        (stage.master(), at("10.0.0.3:80")),
        (stage.client(), at("10.0.0.3:80")),
        (stage.client(), stage.at_master(NODE_PORT)),
        (outside, stage.at_master(NODE_PORT)),
    ] {
        assert_eq!(client::who(from, to, LIMIT)?.name, "here", "{to}");
        assert_eq!(client::who_udp(from, to, LIMIT)?.name, "here", "{to}");
    }
    // It serves no more.
    let mut gone = stage.terminating("here");
    gone["conditions"]["serving"] = false.into();
    stage.endpoints("web", &[gone]);
    until_refused(stage.master(), at("10.0.0.3:80"))?;
    until_refused(outside, stage.at_master(NODE_PORT))
}

/// This node and its pods go to the endpoint elsewhere, at every address of the node
/// (KEP-1669); to those outside the node is silent, so that they try another.
fn nothing_local() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    let policy = json!({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.7"]});
    stage.serve(
        "web",
        with(node_port("10.0.0.3", NODE_PORT), &policy),
        &["pod-5"],
    );
    let internal = json!({"internalTrafficPolicy": "Local"});
    stage.serve("inner", with(cluster_ip("10.0.0.4"), &internal), &["pod-5"]);
    stage.start(&[])?;
    stage.lead_from_outside("198.51.100.7/32".parse()?)?;
    let (on_node, external) = (stage.at_master(NODE_PORT), at("198.51.100.7:80"));
    let bridge = stage.cluster.node("master").bridge_address();
    let bridge = SocketAddr::new(bridge.into(), NODE_PORT);
    let loopback = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
    let inside = [
        (stage.master(), on_node),
        (stage.master(), bridge),
        (stage.master(), loopback),
        (stage.master(), external),
        (stage.client(), on_node),
        (stage.client(), bridge),
        (stage.client(), external),
    ];
    for (from, to) in inside {
        assert_eq!(client::who(from, to, LIMIT)?.name, "pod-5", "{to}");
        assert_eq!(client::who_udp(from, to, LIMIT)?.name, "pod-5", "{to}");
    }
    let outside = stage.cluster.outside();
    for to in [on_node, external] {
        until_silent(outside, to)?;
        let silent = client::who_udp(outside, to, Duration::from_millis(300));
        assert!(
            matches!(&silent, Err(e) if e.kind() == io::ErrorKind::WouldBlock),
            "{silent:?}"
        );
    }
    until_silent(stage.master(), at("10.0.0.4:80"))?;
    // One comes here, and one goes: everybody is served, and then silent again.
    stage.cluster.add_pod("master", PodSpec::new("here", 20))?;
    let _here = serve(&stage, &["here"])?;
    let outside = stage.cluster.outside();
    stage.endpoints("web", &[stage.endpoint("pod-5"), stage.endpoint("here")]);
    for to in [on_node, external] {
        until_answered(outside, to, "here")?;
    }
    stage.endpoints("web", &[stage.endpoint("pod-5")]);
    for to in [on_node, external] {
        until_silent(outside, to)?;
    }
    assert_eq!(client::who(stage.client(), on_node, LIMIT)?.name, "pod-5");
    Ok(())
}

/// To Local and back: which endpoints clients from outside meet, and whether a load
/// balancer is told how many there are (service.go, "should implement NodePort and
/// HealthCheckNodePort correctly when ExternalTrafficPolicy changes").
fn policy_changes() -> Result<(), Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let _servers = serve(&stage, &["here", "pod-5"])?;
    let balanced = |policy: Value| {
        let spec = with(
            node_port("10.0.0.3", NODE_PORT),
            &json!({"type": "LoadBalancer"}),
        );
        service("web", with(spec, &policy))
    };
    let cluster = balanced(json!({"externalTrafficPolicy": "Cluster"}));
    let local = balanced(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH}));
    stage.serve("web", cluster["spec"].clone(), &["here", "pod-5"]);
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let (on_node, checked) = (stage.at_master(NODE_PORT), stage.at_master(HEALTH));
    let both = BTreeSet::from(["here".to_owned(), "pod-5".to_owned()]);
    let here = BTreeSet::from(["here".to_owned()]);
    let meets = |expected: &BTreeSet<String>| {
        until(
            || names(outside, on_node, 4),
            |met| matches!(met, Ok(met) if met == expected),
        )
    };
    for _ in 0..2 {
        meets(&both)?;
        until_refused(outside, checked)?;
        stage.api.apply("services", local.clone());
        meets(&here)?;
        until(
            || client::http_get(outside, checked, "/", LIMIT).map(|answer| answer.0),
            |status| matches!(status, Ok(200)),
        )?;
        assert_eq!(names(stage.client(), on_node, 4)?, both);
        stage.api.apply("services", cluster.clone());
    }
    Ok(())
}

/// Pods in the network of their node have its address (networking.go, "should support
/// basic nodePort … service endpoints using hostNetwork").
fn host_network() -> Result<(), Failed> {
    const PORT: u16 = 8088;
    let mut stage = KubeStage::seed()?;
    let mut servers = Vec::new();
    let mut endpoints = Vec::new();
    for node in stage.cluster.nodes() {
        let at = SocketAddr::new(node.address().into(), PORT);
        let name = node.name().to_owned();
        servers.push(Server::tcp(node.namespace(), at, Tcp::Who(name.clone()))?);
        servers.push(Server::udp(node.namespace(), at, Udp::Who(name.clone()))?);
        endpoints.push(json!({
            "addresses": [node.address().to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": name,
        }));
    }
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": PORT},
        {"name": "udp", "protocol": "UDP", "port": PORT},
    ]);
    stage
        .api
        .apply("endpointslices", slice("web", "a", &ports, &endpoints));
    stage
        .api
        .apply("services", service("web", node_port("10.0.0.3", NODE_PORT)));
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let (vip, on_node) = (at("10.0.0.3:80"), stage.at_master(NODE_PORT));
    let both = BTreeSet::from(["master".to_owned(), "node2".to_owned()]);
    for (from, to) in [
        (stage.master(), vip),
        (stage.client(), vip),
        (stage.master(), on_node),
        (stage.client(), on_node),
        (outside, on_node),
    ] {
        assert_eq!(names(from, to, 4)?, both, "{to}");
        let udp: Result<BTreeSet<_>, _> = (0..4)
            .map(|_| client::who_udp(from, to, LIMIT).map(|seen| seen.name))
            .collect();
        assert_eq!(udp?, both, "{to}");
    }
    Ok(())
}

/// Asks over UDP from the same port each time.
fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who?")?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    Ok(client::Seen::parse(&String::from_utf8_lossy(&answer[..length]))?.name)
}

fn is_pod(pod: &'static str) -> impl Fn(&io::Result<String>) -> bool {
    move |name| matches!(name, Ok(name) if name == pod)
}

fn udp_cycles() -> Result<(), Failed> {
    let plan = ClusterBuilder::seed()
        .pod("master", PodSpec::new("here", 20))
        .pod("master", PodSpec::new("there", 21));
    let mut stage = KubeStage::of(plan.build()?)?;
    let mut first = serve(&stage, &["here"])?;
    let _second = serve(&stage, &["there"])?;
    stage.serve("plain", node_port("10.0.0.3", NODE_PORT), &["here"]);
    let local = json!({"internalTrafficPolicy": "Local"});
    stage.serve("local", with(cluster_ip("10.0.0.4"), &local), &["here"]);
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let mut sockets = Vec::new();
    for (from, to) in [
        (stage.master(), at("10.0.0.3:80")),
        (stage.client(), at("10.0.0.3:80")),
        (stage.client(), at("10.0.0.4:80")),
        (stage.master(), stage.at_master(NODE_PORT)),
        (outside, stage.at_master(NODE_PORT)),
    ] {
        let socket = client::udp_socket(from, to, Duration::from_millis(300))?;
        assert_eq!(ask(&socket)?, "here", "{to}");
        sockets.push(socket);
    }
    for service in ["plain", "local"] {
        stage.endpoints(
            service,
            &[stage.terminating("here"), stage.endpoint("there")],
        );
    }
    stage.wait_for_real_servers("10.0.0.3:80", &["there"])?;
    // Those who have it keep it while it serves.
    for socket in &sockets {
        assert_eq!(ask(socket)?, "here");
    }
    first.clear();
    for service in ["plain", "local"] {
        stage.endpoints(service, &[stage.endpoint("there")]);
    }
    for socket in &sockets {
        until(|| ask(socket), is_pod("there"))?;
    }
    Ok(())
}

fn udp_gets_ready() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    stage.serve("web", node_port("10.0.0.3", NODE_PORT), &[]);
    let mut unready = stage.endpoint("pod-5");
    unready["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    stage.endpoints("web", &[unready]);
    stage.start(&[])?;
    let outside = stage.cluster.outside();
    let mut sockets = Vec::new();
    for (from, to) in [
        (stage.master(), at("10.0.0.3:80")),
        (stage.client(), at("10.0.0.3:80")),
        (outside, stage.at_master(NODE_PORT)),
    ] {
        let socket = client::udp_socket(from, to, LIMIT)?;
        let refused = ask(&socket);
        assert!(is_refused(&refused), "{to}: {refused:?}");
        sockets.push(socket);
    }
    stage.endpoints("web", &[stage.endpoint("pod-5")]);
    for socket in &sockets {
        until(|| ask(socket), is_pod("pod-5"))?;
    }
    Ok(())
}

fn unready() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &PODS)?;
    stage.serve("web", cluster_ip("10.0.0.3"), &PODS);
    stage.start(&[])?;
    let to = at("10.0.0.3:80");
    assert_eq!(names(stage.client(), to, 3)?.len(), 3);
    let mut unready = stage.endpoint("pod-6");
    unready["conditions"]["ready"] = false.into();
    let (five, seven) = (stage.endpoint("pod-5"), stage.terminating("pod-7"));
    stage.endpoints("web", &[five, unready.clone(), seven]);
    stage.wait_for_real_servers("10.0.0.3:80", &["pod-5"])?;
    assert_eq!(names(stage.client(), to, 4)?.len(), 1);
    // Published all the same (publishNotReadyAddresses): the controller says ready.
    let mut published = stage.terminating("pod-7");
    published["conditions"]["ready"] = true.into();
    stage.endpoints("web", &[unready, published]);
    until_answered(stage.client(), to, "pod-7")
}
