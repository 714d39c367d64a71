//! By meaning: the tables of kube-proxy's `proxier_test.go` that concern
//! traffic policies and terminating endpoints.

use serde_json::json;

use super::packet_flows::{Cluster, NODE, OUTSIDE, POD, balanced};
use crate::service::fixtures::{apply_service, apply_slice, service, slice};
use crate::service::object::Event;

pub(super) const P80: &[(&str, i32)] = &[("p80", 80)];
pub(super) const CLUSTER_IP: &str = "172.30.0.41:80";
pub(super) const BALANCER: &str = "1.2.3.4:80";
pub(super) const NODE_PORT: &str = "192.168.0.2:3001";
const EXTERNAL: &str = "192.168.99.11:80";

/// A Service with a cluster IP, a node port, an external and a load balancer IP.
pub(super) fn web(extra: serde_json::Value) -> Event {
    let mut all = json!({
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}],
        "externalIPs": ["192.168.99.11"],
    });
    let extra = extra.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(extra);
    balanced("web", "172.30.0.41", all, json!([{"ip": "1.2.3.4"}]))
}

/// A Service with a cluster IP only.
fn internal(policy: &str) -> Event {
    apply_service(service(
        json!({"name": "web"}),
        json!({
            "clusterIP": "172.30.0.41", "internalTrafficPolicy": policy,
            "ports": [{"name": "p80", "port": 80}],
        }),
    ))
}

pub(super) fn endpoints_of_web(endpoints: &[&str]) -> Event {
    apply_slice(slice("web-a", "web", P80, endpoints))
}

#[track_caller]
pub(super) fn assert_flows(cluster: &Cluster, flows: &[(&str, &str, &str)]) {
    for (source, destination, expected) in flows {
        let outcome = cluster.flow(source, destination);
        assert_eq!(outcome, *expected, "{source} to {destination}");
    }
}

/// TestNoEndpointsReject.
#[test]
fn without_endpoints_everything_is_refused() {
    for policy in ["Cluster", "Local"] {
        let mut cluster = Cluster::new();
        cluster.apply([web(json!({"externalTrafficPolicy": policy}))]);
        let refused = "refused";
        assert_flows(
            &cluster,
            &[
                (POD, CLUSTER_IP, refused),
                (OUTSIDE, EXTERNAL, refused),
                (POD, NODE_PORT, refused),
                (OUTSIDE, NODE_PORT, refused),
                (POD, BALANCER, refused),
                (OUTSIDE, BALANCER, refused),
            ],
        );
    }
}

/// TestTerminatingEndpointsTrafficPolicyLocal.
#[test]
fn terminating_endpoints_under_external_policy_local() {
    let mut cluster = Cluster::new();
    cluster.apply([web(json!({"externalTrafficPolicy": "Local"}))]);
    let mut steps = |endpoints: &[&str], inside: &str, outside: &str| {
        cluster.apply([endpoints_of_web(endpoints)]);
        let flows = [
            (POD, CLUSTER_IP, inside),
            (POD, BALANCER, inside),
            (NODE, NODE_PORT, inside),
            (OUTSIDE, BALANCER, outside),
            (OUTSIDE, NODE_PORT, outside),
            (OUTSIDE, EXTERNAL, outside),
        ];
        assert_flows(&cluster, &flows);
    };
    // Two local ready, two local terminating, one of them serving, one remote.
    steps(
        &[
            "10.0.1.1 test-node R S",
            "10.0.1.2 test-node R S",
            "10.0.1.3 test-node !R S T",
            "10.0.1.4 test-node !R !S T",
            "10.0.1.5 host-1 R S",
        ],
        "10.0.1.1:80 10.0.1.2:80 10.0.1.5:80",
        "10.0.1.1:80 10.0.1.2:80",
    );
    // Locally only terminating ones.
    steps(
        &[
            "10.0.1.2 test-node !R S T",
            "10.0.1.3 test-node !R !S T",
            "10.0.1.5 host-1 R S",
        ],
        "10.0.1.5:80",
        "10.0.1.2:80",
    );
    // None but terminating ones anywhere.
    steps(
        &["10.0.1.1 test-node !R S T", "10.0.1.5 host-1 !R S T"],
        "10.0.1.1:80 10.0.1.5:80",
        "10.0.1.1:80",
    );
    // Only a remote one.
    steps(&["10.0.1.5 host-1 R S"], "10.0.1.5:80", "dropped");
    // None that serves.
    steps(
        &["10.0.1.1 test-node !R !S T", "10.0.1.5 host-1 !R !S T"],
        "refused",
        "refused",
    );
    steps(&[], "refused", "refused");
}

/// TestTerminatingEndpointsTrafficPolicyCluster.
#[test]
fn terminating_endpoints_under_external_policy_cluster() {
    let mut cluster = Cluster::new();
    cluster.apply([web(json!({}))]);
    let mut steps = |endpoints: &[&str], expected: &str| {
        cluster.apply([endpoints_of_web(endpoints)]);
        for destination in [CLUSTER_IP, NODE_PORT, BALANCER, EXTERNAL] {
            for source in [POD, NODE, OUTSIDE] {
                assert_flows(&cluster, &[(source, destination, expected)]);
            }
        }
    };
    steps(
        &[
            "10.0.1.1 test-node R S",
            "10.0.1.3 test-node !R S T",
            "10.0.1.5 host-1 R S",
        ],
        "10.0.1.1:80 10.0.1.5:80",
    );
    steps(
        &["10.0.1.3 test-node !R S T", "10.0.1.5 host-1 R S"],
        "10.0.1.5:80",
    );
    steps(
        &[
            "10.0.1.3 test-node !R S T",
            "10.0.1.4 test-node !R !S T",
            "10.0.1.5 host-1 !R S T",
        ],
        "10.0.1.3:80 10.0.1.5:80",
    );
    steps(&["10.0.1.5 host-1 !R !S T"], "refused");
    steps(&[], "refused");
}

/// TestInternalTrafficPolicy and ipvs' TestTestInternalTrafficPolicyE2E.
#[test]
fn internal_policy_local() {
    let mut ipvs = Cluster::as_ipvs();
    let mut cluster = Cluster::new();
    let mut after = |event: Event| {
        ipvs.apply([event.clone()]);
        cluster.apply([event]);
        let ask = |cluster: &Cluster| {
            let all = [POD, NODE, OUTSIDE].map(|source| cluster.flow(source, CLUSTER_IP));
            assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
            all[0].clone()
        };
        (ask(&cluster), ask(&ipvs))
    };
    let both = |text: &str| (text.to_owned(), text.to_owned());
    assert_eq!(after(internal("Cluster")), both("refused"));
    let mixed = endpoints_of_web(&["10.0.1.1 test-node", "10.0.1.2 host-1", "10.0.1.3 host-2"]);
    assert_eq!(after(mixed), both("10.0.1.1:80 10.0.1.2:80 10.0.1.3:80"));
    assert_eq!(after(internal("Local")), both("10.0.1.1:80"));
    let local = endpoints_of_web(&["10.0.1.1 test-node", "10.0.1.2 test-node"]);
    assert_eq!(after(local), both("10.0.1.1:80 10.0.1.2:80"));
    // IPVS has no cluster list for it either: a virtual server without real
    // servers, which refuses.
    let remote = endpoints_of_web(&["10.0.1.2 host-1"]);
    assert_eq!(after(remote), ("dropped".to_owned(), "refused".to_owned()));
    assert_eq!(after(endpoints_of_web(&[])), both("refused"));
}

/// IPVS falls back to all endpoints (kubernetes PR #97081): TestOnlyLocalExternalIPs,
/// TestOnlyLocalNodePorts, TestOnlyLocalLoadBalancing.
#[test]
fn as_ipvs_an_empty_local_list_gives_way_where_the_service_is_external() {
    let mut cluster = Cluster::as_ipvs();
    cluster.apply([
        web(json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"})),
        endpoints_of_web(&["10.0.1.1 test-node", "10.0.1.2 host-1"]),
    ]);
    let everywhere = |cluster: &Cluster, expected: &str| {
        for destination in [CLUSTER_IP, NODE_PORT, BALANCER, EXTERNAL] {
            for source in [POD, NODE, OUTSIDE] {
                assert_flows(cluster, &[(source, destination, expected)]);
            }
        }
    };
    everywhere(&cluster, "10.0.1.1:80");
    cluster.apply([endpoints_of_web(&["10.0.1.2 host-1", "10.0.1.3 host-2"])]);
    everywhere(&cluster, "10.0.1.2:80 10.0.1.3:80");
    cluster.apply([endpoints_of_web(&["10.0.1.2 host-1 !R"])]);
    everywhere(&cluster, "refused");
}

/// TestExternalTrafficPolicyLocal with session affinity.
#[test]
fn affinity_under_external_policy_local() {
    let mut cluster = Cluster::new();
    cluster.apply([
        web(json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"})),
        endpoints_of_web(&[
            "10.0.1.1 test-node",
            "10.0.1.2 test-node",
            "10.0.1.3 host-1",
        ]),
    ]);
    // One each, and from the local ones outside; each address remembers for
    // itself.
    for destination in [BALANCER, NODE_PORT, EXTERNAL] {
        assert_eq!(cluster.flow(OUTSIDE, destination), "10.0.1.2:80");
        assert_eq!(cluster.flow("203.0.113.3", destination), "10.0.1.1:80");
        assert_eq!(cluster.flow(POD, destination), "10.0.1.3:80");
        assert_eq!(cluster.flow(OUTSIDE, destination), "10.0.1.2:80");
    }
}
