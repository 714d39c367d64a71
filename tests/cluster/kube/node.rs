//! The Node object of the node.

use kube_tun_proxy::lab::client;
use libtest_mimic::Failed;
use serde_json::json;

use crate::kube_stage::{KubeStage, cluster_ip, node_object};
use crate::node_port_stage::until;
use crate::world::LIMIT;

pub(super) fn leaving() -> Result<(), Failed> {
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
