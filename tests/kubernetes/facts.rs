//! Service ranges, NetworkPolicies and the node; and where they are not to be had.

use std::time::Duration;

use serde_json::json;

use kube_tun_proxy::source::kubernetes::{NetworkPolicies, ServiceCidrs, Timing};

use crate::api_server::{ApiServer, Fault};
use crate::cluster::{Followed, impatient, service};

fn known(nets: &[&str]) -> ServiceCidrs {
    ServiceCidrs::Known(nets.iter().map(|net| net.parse().unwrap()).collect())
}

fn cidr(name: &str, nets: &[&str]) -> serde_json::Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": nets}})
}

fn policy(name: &str) -> serde_json::Value {
    json!({"metadata": {"namespace": "shop", "name": name}})
}

#[tokio::test]
async fn service_ranges_are_known_when_the_first_state_is_and_followed() {
    let server = ApiServer::start("secret").await;
    server.apply("servicecidrs", cidr("kubernetes", &["10.0.0.0/16"]));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(*followed.cidrs.borrow(), known(&["10.0.0.0/16"]));

    server.apply(
        "servicecidrs",
        cidr("more", &["10.96.0.0/12", "fd00:10::/108"]),
    );
    let all = known(&["10.0.0.0/16", "10.96.0.0/12", "fd00:10::/108"]);
    followed.until_cidrs(&all).await;
    // What would take everything, or what hosts need themselves, is left out.
    let wild = ["0.0.0.0/0", "127.0.0.0/8", "no", "10.128.0.0/16"];
    server.apply("servicecidrs", cidr("wild", &wild));
    let all = [
        "10.0.0.0/16",
        "10.96.0.0/12",
        "10.128.0.0/16",
        "fd00:10::/108",
    ];
    followed.until_cidrs(&known(&all)).await;
    server.delete("servicecidrs", "more");
    let left = known(&["10.0.0.0/16", "10.128.0.0/16"]);
    followed.until_cidrs(&left).await;
}

#[tokio::test]
async fn a_policy_is_noticed_and_so_is_the_end_of_the_last() {
    let server = ApiServer::start("secret").await;
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(*followed.policies.borrow(), NetworkPolicies::Absent);
    let first = &server.seen("networkpolicies")[0];
    assert_eq!(first.query["limit"], "1");
    assert!(first.accept.contains("PartialObjectMetadata"));

    server.apply("networkpolicies", policy("a"));
    followed.until_policies(NetworkPolicies::Present).await;
    server.apply("networkpolicies", policy("b"));
    let before = server.seen("networkpolicies").len();
    server.delete("networkpolicies", "shop/a");
    // The other one is found, and nothing else was ever said.
    server
        .until_seen("networkpolicies", |seen| {
            seen.iter().skip(before).any(|seen| seen.is_watch())
        })
        .await;
    assert_eq!(*followed.policies.borrow(), NetworkPolicies::Present);
    server.delete("networkpolicies", "shop/b");
    followed.until_policies(NetworkPolicies::Absent).await;
}

#[tokio::test]
async fn what_is_forbidden_or_missing_costs_only_itself() {
    let server = ApiServer::start("secret").await;
    server.apply("services", service("cart", "10.0.0.7"));
    for _ in 0..3 {
        server.fault("servicecidrs", Fault::Status(404));
        server.fault("networkpolicies", Fault::Status(403));
        server.fault("nodes", Fault::Status(403));
        server.fault("namespaces", Fault::Status(403));
    }
    server.apply("servicecidrs", cidr("kubernetes", &["10.0.0.0/16"]));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), ["TCP 10.0.0.7:80 > "]);
    // It is tried again, and then they may be there.
    followed.until_cidrs(&known(&["10.0.0.0/16"])).await;
    followed.until_policies(NetworkPolicies::Absent).await;
    assert!(server.seen("servicecidrs").len() > 3);
}

#[tokio::test]
async fn permission_that_is_taken_away_leaves_what_was_known() {
    let server = ApiServer::start("secret").await;
    server.apply("servicecidrs", cidr("kubernetes", &["10.0.0.0/16"]));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(*followed.cidrs.borrow_and_update(), known(&["10.0.0.0/16"]));
    server.refuse("servicecidrs", Some(403));
    let before = server.seen("servicecidrs").len();
    server.end_watches("servicecidrs");
    server
        .until_seen("servicecidrs", |seen| seen.len() > before + 3)
        .await;
    assert!(!followed.cidrs.has_changed().unwrap());
}

#[tokio::test]
async fn what_namespaces_say_is_followed() {
    let server = ApiServer::start("secret").await;
    let namespace = |text: &str| {
        json!({
            "metadata": {"name": "shop", "annotations": {"kube-tun-proxy.io/access-log": text}},
        })
    };
    server.apply("services", service("cart", "10.0.0.7"));
    server.apply("namespaces", namespace("false"));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    let logged = |followed: &Followed| followed.index.virtual_servers()[0].access_log;
    assert_eq!(logged(&followed), Some(false));
    server.apply("namespaces", namespace("true"));
    while logged(&followed) != Some(true) {
        followed.batch().await;
    }
    server.delete("namespaces", "shop");
    while logged(&followed).is_some() {
        followed.batch().await;
    }
}

#[tokio::test]
async fn the_nodes_zone_is_followed() {
    let server = ApiServer::start("secret").await;
    let node = |zone: &str| {
        json!({
            "metadata": {"name": "master", "labels": {"topology.kubernetes.io/zone": zone}},
        })
    };
    server.apply("nodes", node("east"));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.index.node().zone.as_deref(), Some("east"));
    server.apply("nodes", node("west"));
    while followed.index.node().zone.as_deref() != Some("west") {
        followed.batch().await;
    }
}

/// kube-apiserver 1.36 under RBAC answers 403 to everything for some seconds after it
/// has started: until its authoriser has read the roles.
#[tokio::test]
async fn a_server_that_starts_denies_for_a_while() {
    let server = ApiServer::start("secret").await;
    server.apply("servicecidrs", cidr("kubernetes", &["10.0.0.0/16"]));
    let timing = Timing {
        unavailable: Duration::from_secs(300),
        ..impatient()
    };
    let mut followed = Followed::with(&server, timing).await;
    followed.until_complete().await;
    let before = server.seen("servicecidrs").len();
    server.refuse("servicecidrs", Some(403));
    server.end_watches("servicecidrs");
    server
        .until_seen("servicecidrs", |seen| seen.len() >= before + 3)
        .await;
    assert_eq!(*followed.cidrs.borrow(), known(&["10.0.0.0/16"]));
    server.refuse("servicecidrs", None);
    server.apply("servicecidrs", cidr("more", &["10.96.0.0/12"]));
    let both = known(&["10.0.0.0/16", "10.96.0.0/12"]);
    followed.until_cidrs(&both).await;
}
