//! Which routes lead to services, as ServiceCIDR objects have it.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use kube_tun_proxy::lab::client;
use libtest_mimic::Failed;

use super::{at, serve, until_answered};
use crate::kube_stage::{KubeStage, cluster_ip, service_cidr};
use crate::node_port_stage::until;
use crate::world::LIMIT;

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

pub(super) fn service_ranges() -> Result<(), Failed> {
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

pub(super) fn host_routes() -> Result<(), Failed> {
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
