//! Whole clusters with an API server: what comes, goes and changes there, and what
//! goes wrong with it.

use std::net::SocketAddr;
use std::time::Duration;

use kube_tun_proxy::lab::servers::{Server, Tcp, Udp};
use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::{Failed, Trial};

use crate::kube_stage::KubeStage;
use crate::node_port_stage::{is_refused, until};
use crate::world::Trials;
use node::leaving;
use policies::{network_policies, taken_over};
use routes::{host_routes, service_ranges};
use services::{changes_type, come_and_go, labels, ports_change};
use under_load::{api_server_fails, rolling_replacement};

#[path = "kube/load.rs"]
mod load;
#[path = "kube/node.rs"]
mod node;
#[path = "kube/policies.rs"]
mod policies;
#[path = "kube/routes.rs"]
mod routes;
#[path = "kube/services.rs"]
mod services;
#[path = "kube/under_load.rs"]
mod under_load;

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
