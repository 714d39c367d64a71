//! What clients that are there all the while must not notice.

use kube_tun_proxy::lab::{PodSpec, client};
use libtest_mimic::Failed;
use serde_json::json;

use super::load::Load;
use super::{at, serve, until_answered};
use crate::api_server::Fault;
use crate::kube_stage::{KubeStage, Place, cluster_ip, everywhere};
use crate::node_port_stage::until;
use crate::world::{Family, LIMIT};

pub(super) fn api_server_fails() -> Result<(), Failed> {
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
pub(super) fn rolling_replacement(policy: &str) -> Result<(), Failed> {
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
