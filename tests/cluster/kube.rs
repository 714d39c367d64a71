//! Whole clusters with an API server: what comes, goes and changes there, and what
//! goes wrong with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::Ipv4Net;
use kube_tun_proxy::lab::servers::{Server, Tcp, Udp};
use kube_tun_proxy::lab::{Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::api_server::Fault;
use crate::kube_stage::{
    KubeStage, Place, cluster_ip, everywhere, node_object, node_port, service, service_cidr, slice,
    with,
};
use crate::node_port_stage::{is_refused, until};
use crate::world::{Family, LIMIT, Trials};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

const NODE_PORT: u16 = 30_080;

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube")
        .one("services_come_and_go", come_and_go)
        .one("a_service_changes_its_type", changes_type)
        .one("ports_change", ports_change)
        .one("labels_take_a_service_out_and_in", labels)
        .one("service_ranges_are_followed", service_ranges)
        .one("without_permission_each_address_has_a_route", host_routes)
        .one("a_node_that_leaves_is_told_to_load_balancers", leaving)
        .one("network_policies_keep_pods_out", network_policies)
        .one("network_policies_are_known_before_a_take_over", taken_over)
        .one("the_api_server_fails_while_traffic_runs", api_server_fails)
        .one("every_pod_is_replaced_under_load", || {
            rolling_replacement("Cluster")
        })
        .one("every_local_pod_is_replaced_under_load", || {
            rolling_replacement("Local")
        })
        .done()
}

/// Servers on port 80 of pods, over TCP and UDP, that say their pod's name.
pub(crate) fn serve(stage: &KubeStage, pods: &[&str]) -> Result<Vec<Server>, Failed> {
    let mut servers = Vec::new();
    for name in pods {
        let pod = stage.cluster.pod(name);
        servers.push(pod.serve_tcp(80, Tcp::Who((*name).to_owned()))?);
        servers.push(pod.serve_udp(80, Udp::Who((*name).to_owned()))?);
    }
    Ok(servers)
}

/// Waits until one who asks is answered by this pod.
pub(crate) fn until_answered(from: &Namespace, to: SocketAddr, pod: &str) -> Result<(), Failed> {
    until(
        || client::who(from, to, SILENCE),
        |seen| matches!(seen, Ok(seen) if seen.name == pod),
    )
}

/// Waits until nothing answers there, nor refuses.
pub(crate) fn until_silent(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    until(
        || client::connect(from, to, SILENCE).map(drop),
        |seen| matches!(seen, Err(error) if error.kind() == std::io::ErrorKind::TimedOut),
    )
}

pub(crate) fn until_refused(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    until(|| client::connect(from, to, SILENCE), is_refused)
}

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and port")
}

fn come_and_go() -> Result<(), Failed> {
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

fn changes_type() -> Result<(), Failed> {
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
fn ports_change() -> Result<(), Failed> {
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
fn labels() -> Result<(), Failed> {
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

fn nets(texts: &[&str]) -> Result<BTreeSet<Ipv4Net>, Failed> {
    let parsed: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    Ok(parsed?)
}

fn until_routes(stage: &KubeStage, texts: &[&str]) -> Result<(), Failed> {
    let wanted = nets(texts)?;
    until(
        || stage.routes(),
        |routes| routes.as_ref().is_ok_and(|routes| *routes == wanted),
    )
}

fn service_ranges() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    until_routes(&stage, &["10.0.0.0/16"])?;
    assert_eq!(
        client::who(stage.master(), at("10.0.0.3:80"), LIMIT)?.name,
        "pod-5"
    );

    stage
        .api
        .apply("servicecidrs", service_cidr("more", &["10.77.0.0/24"]));
    until_routes(&stage, &["10.0.0.0/16", "10.77.0.0/24"])?;
    stage.serve("far", cluster_ip("10.77.0.5"), &["pod-5"]);
    until_answered(stage.client(), at("10.77.0.5:80"), "pod-5")?;
    // Its Service outlives the range.
    stage.api.delete("servicecidrs", "more");
    until_routes(&stage, &["10.0.0.0/16", "10.77.0.5/32"])?;
    assert_eq!(
        client::who(stage.client(), at("10.77.0.5:80"), LIMIT)?.name,
        "pod-5"
    );
    stage.api.delete("services", "default/far");
    until_routes(&stage, &["10.0.0.0/16"])
}

fn host_routes() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    stage.api.refuse("servicecidrs", Some(403));
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    until_routes(&stage, &["10.0.0.3/32"])?;
    for from in [stage.master(), stage.client()] {
        assert_eq!(client::who(from, at("10.0.0.3:80"), LIMIT)?.name, "pod-5");
    }
    stage.serve("more", cluster_ip("10.0.7.3"), &["pod-5"]);
    until_routes(&stage, &["10.0.0.3/32", "10.0.7.3/32"])?;
    until_answered(stage.client(), at("10.0.7.3:80"), "pod-5")?;
    stage.api.delete("services", "default/web");
    until_routes(&stage, &["10.0.7.3/32"])?;
    let log = stage.proxy().log();
    assert_eq!(
        log.matches("each service address gets a route").count(),
        1,
        "{log}"
    );
    Ok(())
}

fn leaving() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    stage.start(&[])?;
    let healthz = stage.proxy().healthz();
    let get = |path| client::http_get(stage.master(), healthz, path, LIMIT);
    let says = |path, status: u16, part: &'static str| {
        until(
            || get(path),
            |answer| matches!(answer, Ok((code, text)) if *code == status && text.contains(part)),
        )
    };
    let node = node_object(stage.cluster.node("master"));
    says("/healthz", 200, "\"nodeEligible\":true")?;
    let mut tainted = node.clone();
    tainted["spec"]["taints"] = json!([{
        "key": "ToBeDeletedByClusterAutoscaler", "value": "1792000000", "effect": "NoSchedule",
    }]);
    stage.api.apply("nodes", tainted);
    says("/healthz", 503, "\"nodeEligible\":false")?;
    says("/livez", 200, "\"healthy\":true")?;
    stage.api.apply("nodes", node.clone());
    says("/healthz", 200, "\"nodeEligible\":true")?;
    let mut deleted = node;
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    stage.api.apply("nodes", deleted);
    says("/healthz", 503, "\"nodeEligible\":false")?;
    // The Node itself is gone in the end, and nothing is known that was not before.
    stage.api.delete("nodes", "master");
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.wait_for_real_servers("10.0.0.3:80", &["pod-5"])?;
    says("/healthz", 503, "\"nodeEligible\":false")
}

fn network_policies() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    let external = with(
        node_port("10.0.0.3", NODE_PORT),
        &json!({"externalIPs": ["198.51.100.7"]}),
    );
    stage.serve("web", external, &["pod-5"]);
    stage.start(&[])?;
    stage.lead_from_outside("198.51.100.7/32".parse()?)?;
    let (vip, external) = (at("10.0.0.3:80"), at("198.51.100.7:80"));
    until_answered(stage.client(), vip, "pod-5")?;
    let policy = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": {}});
    stage.api.apply("networkpolicies", policy);
    for to in [vip, external] {
        until_silent(stage.client(), to)?;
        let silent = client::who_udp(stage.client(), to, SILENCE);
        assert!(silent.is_err(), "{silent:?}");
        assert_eq!(client::who(stage.master(), to, LIMIT)?.name, "pod-5");
        assert_eq!(client::who_udp(stage.master(), to, LIMIT)?.name, "pod-5");
    }
    // Whoever is no pod is not meant.
    let outside = stage.cluster.outside();
    for to in [external, stage.at_master(NODE_PORT)] {
        assert_eq!(client::who(outside, to, LIMIT)?.name, "pod-5");
        assert_eq!(client::who_udp(outside, to, LIMIT)?.name, "pod-5");
    }
    stage.api.delete("networkpolicies", "shop/p");
    until_answered(stage.client(), vip, "pod-5")
}

/// A process that takes over knows first what decides about pods, and so they are
/// served all the time.
fn taken_over() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5"])?;
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    let vip = at("10.0.0.3:80");
    until_answered(stage.client(), vip, "pod-5")?;
    let load = Load::within(&[stage.client()], vip, SECOND);
    load.run_on(10)?;
    // Its first questions are not answered, and the one after some time.
    for resource in ["networkpolicies", "servicecidrs"] {
        for _ in 0..3 {
            stage.api.fault(resource, Fault::Status(500));
        }
    }
    let asked = stage.api.seen("networkpolicies").len();
    let former = stage.take_over(|stage, new| {
        let seen = || stage.api.seen("networkpolicies").len();
        until(seen, |seen| *seen >= asked + 2)?;
        // The objects are long read.
        load.run_on(10)?;
        let log = new.log();
        assert!(!log.contains("taken over: "), "{log}");
        Ok(())
    })?;
    load.run_on(50)?;
    load.end()?;
    let log = stage.proxy().log();
    let policies = log.find("the cluster has no NetworkPolicies");
    assert!(
        policies.is_some() && policies < log.find("taken over: "),
        "{log}"
    );
    drop(former);
    Ok(())
}

/// Less than until a SYN that was lost is sent again (RFC 6298 section 2).
const SECOND: Duration = Duration::from_millis(900);

/// Clients that connect without a pause, and what failed them.
struct Load {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn start(from: &[&Namespace], to: SocketAddr) -> Self {
        Self::within(from, to, LIMIT)
    }

    /// Each connection must be made and answered in this time.
    fn within(from: &[&Namespace], to: SocketAddr, limit: Duration) -> Self {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let ask = |from: &&Namespace| {
            let (from, over, asked) = ((*from).clone(), Arc::clone(&over), Arc::clone(&asked));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    client::who(&from, to, limit).map_err(|error| error.to_string())?;
                    let _ = AtomicUsize::fetch_add(&asked, 1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let threads = from.iter().map(ask).collect();
        Self {
            over,
            asked,
            threads,
        }
    }

    /// Waits until so many more have been answered.
    fn run_on(&self, connections: usize) -> Result<(), Failed> {
        let asked = || self.asked.load(Ordering::Relaxed);
        let enough = asked() + connections;
        let failed = || self.threads.iter().any(JoinHandle::is_finished);
        until(
            || (asked(), failed()),
            |(n, failed)| *n >= enough || *failed,
        )
    }

    /// Ends it.
    fn end(self) -> Result<(), Failed> {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    }
}

fn api_server_fails() -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    let _servers = serve(&stage, &["pod-5", "pod-6", "pod-7"])?;
    stage.serve("web", cluster_ip("10.0.0.3"), &["pod-5"]);
    stage.start(&[])?;
    let vip = at("10.0.0.3:80");
    let load = Load::start(&[stage.master(), stage.client()], vip);
    load.run_on(20)?;

    // It is away, and things happen meanwhile that no watch will tell.
    stage.api_goes_away();
    stage.endpoints("web", &[stage.endpoint("pod-6")]);
    stage.serve("new", cluster_ip("10.0.0.4"), &["pod-7"]);
    load.run_on(20)?;
    assert_eq!(client::who(stage.master(), vip, LIMIT)?.name, "pod-5");
    for resource in ["services", "endpointslices"] {
        stage.api.compact(resource);
    }
    stage.api_comes_back();
    until_answered(stage.master(), vip, "pod-6")?;
    until_answered(stage.master(), at("10.0.0.4:80"), "pod-7")?;

    // Watches expire, the lists behind them are refused, cut, told half, and silent.
    for resource in ["services", "endpointslices"] {
        stage.api.fault(resource, Fault::ErrorEvent(410));
        stage.api.fault(resource, Fault::Status(500));
        stage.api.fault(resource, Fault::Half);
        stage.api.fault(resource, Fault::Silence);
        let before = stage.api.seen(resource).len();
        stage.api.end_watches(resource);
        let seen = || stage.api.seen(resource).len();
        until(seen, |seen| *seen >= before + 4)?;
    }
    load.run_on(20)?;
    // What fell silent breaks off, and all is well again.
    stage.api_goes_away();
    stage.endpoints("web", &[stage.endpoint("pod-7")]);
    stage.api_comes_back();
    until_answered(stage.master(), vip, "pod-7")?;
    load.end()
}

/// By cluster IP, node port and load balancer IP.
fn rolling_replacement(policy: &str) -> Result<(), Failed> {
    let mut stage = KubeStage::seed()?;
    // Under policy Local clients from outside meet those on the node alone.
    let (old, on) = match policy {
        "Local" => (["old-1", "old-2", "old-3"], "master"),
        _ => (["pod-5", "pod-6", "pod-7"], "node2"),
    };
    if on == "master" {
        for (name, host) in old.into_iter().zip(21..) {
            stage.cluster.add_pod(on, PodSpec::new(name, host))?;
        }
    }
    let new = ["new-1", "new-2", "new-3"];
    for (name, host) in new.into_iter().zip(11..) {
        stage.cluster.add_pod(on, PodSpec::new(name, host))?;
    }
    let mut servers: Vec<_> = old
        .iter()
        .map(|pod| serve(&stage, &[pod]))
        .collect::<Result<_, _>>()?;
    stage.serve("web", cluster_ip("10.0.0.3"), &old);
    stage.api.apply(
        "services",
        everywhere("web", 3, &json!({"externalTrafficPolicy": policy})),
    );
    stage.start(&[])?;
    stage.lead_from_outside("198.51.100.0/24".parse()?)?;
    let place = |place| stage.place(Family::V4, 3, place);
    let inside = [stage.master(), stage.client(), stage.client()];
    let outside = [stage.cluster.outside(), stage.client()];
    let loads = [
        Load::start(&inside, place(Place::ClusterIp)),
        Load::start(&outside, place(Place::NodePort)),
        Load::start(&outside, place(Place::Balancer)),
    ];
    let run_on = || loads.iter().try_for_each(|load| load.run_on(10));
    let mut running = old.to_vec();
    for (gone, comes) in old.into_iter().zip(new) {
        servers.push(serve(&stage, &[comes])?);
        running.push(comes);
        let all = |stage: &KubeStage, pods: &[&str]| -> Vec<_> {
            pods.iter().map(|pod| stage.endpoint(pod)).collect()
        };
        stage.endpoints("web", &all(&stage, &running));
        stage.wait_for_real_servers("10.0.0.3:80", &running)?;
        run_on()?;
        // It is told to stop, and serves until it has: first as one that terminates,
        // then not at all.
        running.retain(|pod| *pod != gone);
        let mut endpoints = all(&stage, &running);
        endpoints.push(stage.terminating(gone));
        stage.endpoints("web", &endpoints);
        stage.wait_for_real_servers("10.0.0.3:80", &running)?;
        run_on()?;
        stage.endpoints("web", &all(&stage, &running));
        drop(servers.remove(0));
        run_on()?;
    }
    for load in loads {
        load.end()?;
    }
    assert_eq!(running, new);
    Ok(())
}
