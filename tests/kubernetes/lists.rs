//! How everything is listed.

use std::time::Duration;

use serde_json::json;

use crate::api_server::{ApiServer, Fault};
use crate::cluster::{Followed, service, slice};

const CART: &str = "TCP 10.0.0.7:80 > 10.1.65.5:8080";
const TILL: &str = "TCP 10.0.0.8:80 > 10.1.65.6:8080";

async fn shop() -> ApiServer {
    let server = ApiServer::start("secret").await;
    server.apply("services", service("cart", "10.0.0.7"));
    server.apply("endpointslices", slice("cart", &["10.1.65.5"]));
    server
}

#[tokio::test]
async fn the_first_state_comes_by_stream_and_is_complete_when_all_is_in() {
    let server = shop().await;
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART]);
    for (resource, selector, value) in [
        (
            "services",
            "labelSelector",
            "!service.kubernetes.io/service-proxy-name",
        ),
        ("services", "fieldSelector", "spec.clusterIP!=None"),
        (
            "endpointslices",
            "labelSelector",
            "!service.kubernetes.io/headless",
        ),
        ("nodes", "fieldSelector", "metadata.name=master"),
    ] {
        let seen = server.seen(resource);
        assert!(seen.iter().all(|seen| seen.is_stream()), "{seen:?}");
        assert_eq!(seen[0].query[selector], value);
        assert_eq!(seen[0].query["allowWatchBookmarks"], "true");
    }
    followed.hang_up().await;
}

#[tokio::test]
async fn it_is_not_complete_while_slices_are_missing() {
    let server = shop().await;
    server.fault("endpointslices", Fault::Silence);
    let mut followed = Followed::start(&server).await;
    followed.batch().await;
    assert_eq!(followed.servers(), ["TCP 10.0.0.7:80 > "]);
    assert!(!followed.complete);
    server
        .until_seen("networkpolicies", |seen| seen.iter().any(|s| s.is_watch()))
        .await;
    assert!(!followed.complete);
}

#[tokio::test]
async fn without_streams_there_are_pages() {
    let server = ApiServer::start("secret").await;
    server.without_streams("services");
    for i in 0..1_201 {
        let ip = format!("10.0.{}.{}", i / 250, i % 250);
        server.apply("services", service(&format!("s{i:04}"), &ip));
    }
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers().len(), 1_201);
    let seen = server.seen("services");
    let kinds: Vec<_> = seen.iter().map(|s| (s.is_stream(), s.is_list())).collect();
    let page = (false, true);
    assert_eq!(kinds[..4], [(true, false), page, page, page]);
    assert!(seen[1..4].iter().all(|s| s.query["limit"] == "500"));

    // It does not ask for a stream again.
    server.compact("services");
    server.fault("services", Fault::ErrorEvent(410));
    server.end_watches("services");
    server
        .until_seen("services", |seen| {
            seen.iter().filter(|s| s.is_list()).count() == 6
        })
        .await;
    let streams = server
        .seen("services")
        .into_iter()
        .filter(|s| s.is_stream());
    assert_eq!(streams.count(), 1);
}

#[tokio::test]
async fn an_etcd_too_old_for_streams_is_found_by_its_event() {
    let server = shop().await;
    server.fault("services", Fault::ErrorEvent(500));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART]);
    server.until_seen("services", |seen| seen.len() == 3).await;
    let seen = server.seen("services");
    assert!(seen[0].is_stream() && seen[1].is_list() && seen[2].is_watch());
}

#[tokio::test]
async fn a_stream_that_never_says_its_beginning_is_complete_is_given_up() {
    let server = shop().await;
    server.fault("services", Fault::Silence);
    let timing = kube_tun_proxy::source::kubernetes::Timing {
        answer: Duration::from_millis(300),
        ..crate::cluster::impatient()
    };
    let mut followed = Followed::with(&server, timing).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART]);
    assert!(server.seen("services")[1].is_list());
}

#[tokio::test]
async fn pages_that_have_expired_are_listed_in_one() {
    let server = ApiServer::start("secret").await;
    server.without_streams("services");
    for i in 0..600 {
        let ip = format!("10.0.{}.{}", i / 250, i % 250);
        server.apply("services", service(&format!("s{i:03}"), &ip));
    }
    // Meets the stream, which is refused, the first page, and the second.
    for fault in [422, 500, 410] {
        server.fault("services", Fault::Status(fault));
    }
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers().len(), 600);
    let seen = server.seen("services");
    assert!(seen[2].query.contains_key("limit"));
    assert!(seen[3].is_list() && !seen[3].query.contains_key("limit"));
}

#[tokio::test]
async fn a_list_that_breaks_off_tears_nothing_down() {
    let server = shop().await;
    server.apply("services", service("till", "10.0.0.8"));
    server.apply("endpointslices", slice("till", &["10.1.65.6"]));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART, TILL]);

    // The history is gone; the next lists fail, each in its way, and till is
    // deleted meanwhile.
    for fault in [Fault::Half, Fault::Status(500), Fault::Half] {
        server.fault("endpointslices", fault.clone());
        server.fault("services", fault);
    }
    server.delete("services", "shop/till");
    server.compact("services");
    server.say("services", &error(410));
    server
        .until_seen("services", |seen| seen.iter().any(|s| s.is_list()))
        .await;
    followed.until(&[CART]).await;
}

#[tokio::test]
async fn what_makes_no_sense_is_skipped_and_keeps_its_last_good_form() {
    let server = shop().await;
    let mut broken = service("till", "10.0.0.8");
    broken["spec"]["ports"] = json!("eighty");
    server.apply("services", broken.clone());
    server.apply("endpointslices", slice("till", &["10.1.65.6"]));
    let mut followed = Followed::start(&server).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART]);

    server.apply("services", service("till", "10.0.0.8"));
    followed.until(&[CART, TILL]).await;
    // By watch, then by list: still the last good form.
    server.apply("services", broken);
    server.compact("services");
    server.say("services", &error(410));
    server
        .until_seen("services", |seen| {
            seen.iter().filter(|s| s.is_stream()).count() == 2
        })
        .await;
    server.apply("services", service("cart", "10.0.0.9"));
    followed
        .until(&[TILL, "TCP 10.0.0.9:80 > 10.1.65.5:8080"])
        .await;
    server.delete("services", "shop/till");
    followed.until(&["TCP 10.0.0.9:80 > 10.1.65.5:8080"]).await;
}

pub(crate) fn error(code: u16) -> String {
    json!({"type": "ERROR", "object": {"kind": "Status", "code": code}}).to_string()
}
