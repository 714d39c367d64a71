//! NetworkPolicies, which keep pods out.

use std::time::Duration;

use kube_tun_proxy::lab::client;
use libtest_mimic::Failed;
use serde_json::json;

use super::load::Load;
use super::{NODE_PORT, SILENCE, at, serve, until_answered, until_silent};
use crate::api_server::Fault;
use crate::kube_stage::{KubeStage, cluster_ip, node_port, with};
use crate::node_port_stage::until;
use crate::world::LIMIT;

/// Less than until a SYN that was lost is sent again (RFC 6298 section 2).
const SECOND: Duration = Duration::from_millis(900);

pub(super) fn network_policies() -> Result<(), Failed> {
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
pub(super) fn taken_over() -> Result<(), Failed> {
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
