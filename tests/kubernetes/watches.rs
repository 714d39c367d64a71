//! How changes are followed, and what happens when a watch ends.

use std::time::Duration;

use serde_json::json;

use kube_tun_proxy::source::kubernetes::Timing;

use crate::api_server::{ApiServer, Fault};
use crate::cluster::{Followed, impatient, service, slice};
use crate::lists::error;

const CART: &str = "TCP 10.0.0.7:80 > 10.1.65.5:8080";
const TILL: &str = "TCP 10.0.0.8:80 > 10.1.65.6:8080";

async fn shop() -> (ApiServer, Followed) {
    shop_with(impatient()).await
}

async fn shop_with(timing: Timing) -> (ApiServer, Followed) {
    let server = ApiServer::start("secret").await;
    server.apply("services", service("cart", "10.0.0.7"));
    server.apply("endpointslices", slice("cart", &["10.1.65.5"]));
    let mut followed = Followed::with(&server, timing).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), [CART]);
    (server, followed)
}

/// Waits until there is a watch after as many requests as there were.
async fn until_watched(server: &ApiServer, resource: &str, after: usize) {
    server
        .until_seen(resource, |seen| {
            seen.iter().skip(after).any(|seen| seen.is_watch())
        })
        .await;
}

#[tokio::test]
async fn changes_come_as_they_happen() {
    let (server, mut followed) = shop().await;
    server.apply("endpointslices", slice("cart", &["10.1.65.5", "10.1.65.7"]));
    followed
        .until(&["TCP 10.0.0.7:80 > 10.1.65.5:8080 10.1.65.7:8080"])
        .await;
    server.apply("services", service("till", "10.0.0.8"));
    server.delete("endpointslices", "shop/cart-1");
    while followed.servers() != ["TCP 10.0.0.7:80 > ", "TCP 10.0.0.8:80 > "] {
        followed.batch().await;
    }
    server.delete("services", "shop/till");
    followed.until(&["TCP 10.0.0.7:80 > "]).await;
}

#[tokio::test]
async fn an_object_that_is_as_it_was_is_no_news() {
    let (server, mut followed) = shop().await;
    let mut cart = service("cart", "10.0.0.7");
    cart["metadata"]["annotations"] = json!({"anything": "else"});
    server.apply("services", cart);
    server.bookmark("services");
    server.apply("services", service("till", "10.0.0.8"));
    followed.batch().await;
    assert_eq!(followed.servers(), [CART, "TCP 10.0.0.8:80 > "]);
    followed.nothing_more();
}

#[tokio::test]
async fn a_watch_that_ends_is_taken_up_where_it_was() {
    let (server, mut followed) = shop().await;
    // Something else moves the version on, which a bookmark tells.
    server.apply("pods", json!({"metadata": {"namespace": "a", "name": "b"}}));
    server.bookmark("services");
    let version = server.version();
    let before = server.seen("services").len();
    server.end_watches("services");
    until_watched(&server, "services", before).await;
    let seen = server.seen("services").split_off(before);
    assert!(seen[0].is_newest() && seen[1].is_watch(), "{seen:?}");
    assert_eq!(seen[1].query["resourceVersion"], version.to_string());
    assert_eq!(seen[1].query["allowWatchBookmarks"], "true");

    server.apply("endpointslices", slice("till", &["10.1.65.6"]));
    server.apply("services", service("till", "10.0.0.8"));
    while followed.servers() != [CART, TILL] {
        followed.batch().await;
    }
    assert!(!server.seen("services").iter().any(|seen| seen.is_list()));
}

#[tokio::test]
async fn nothing_is_lost_when_watches_break_amid_a_line() {
    let (server, mut followed) = shop().await;
    for round in 0..10 {
        server.cut_watches("services");
        server.cut_watches("endpointslices");
        // While nobody watches.
        server.apply(
            "endpointslices",
            slice("cart", &[&format!("10.1.65.{}", 100 + round)]),
        );
        let expected = format!("TCP 10.0.0.7:80 > 10.1.65.{}:8080", 100 + round);
        followed.until(&[&expected]).await;
    }
    let lists = server.seen("services").into_iter().filter(|s| s.is_list());
    assert_eq!(lists.count(), 0);
}

#[tokio::test]
async fn what_vanished_while_the_history_was_lost_is_deleted() {
    let (server, mut followed) = shop().await;
    server.apply("services", service("till", "10.0.0.8"));
    followed.until(&[CART, "TCP 10.0.0.8:80 > "]).await;
    // The watch's 410 is an event in a 200; the list's a status.
    for fault in [Fault::Status(503), Fault::Status(410)] {
        server.fault("services", fault);
    }
    server.cut_watches("services");
    server.delete("services", "shop/cart");
    server.apply("services", service("desk", "10.0.0.9"));
    server.compact("services");
    followed
        .until(&["TCP 10.0.0.8:80 > ", "TCP 10.0.0.9:80 > "])
        .await;
}

#[tokio::test]
async fn a_server_that_was_away_is_listed_anew() {
    let (mut server, mut followed) = shop().await;
    server.go_away().await;
    server.delete("services", "shop/cart");
    server.apply("services", service("till", "10.0.0.8"));
    server.apply("endpointslices", slice("till", &["10.1.65.6"]));
    // Some attempts are made in vain; the last good state stays.
    tokio::time::sleep(Duration::from_millis(300)).await;
    followed.nothing_more();
    assert_eq!(followed.servers(), [CART]);
    server.come_back().await;
    while followed.servers() != [TILL] {
        followed.batch().await;
    }
}

#[tokio::test]
async fn a_server_restored_from_an_older_backup_is_found_out() {
    let (server, mut followed) = shop().await;
    for ip in ["10.0.0.20", "10.0.0.21", "10.0.0.22"] {
        server.apply("services", service("till", ip));
        followed.until(&[CART, &format!("TCP {ip}:80 > ")]).await;
    }
    // A watch from our version would be silent for ever.
    server.restore(50, "services", vec![service("desk", "10.0.0.9")]);
    server.end_watches("services");
    followed.until(&["TCP 10.0.0.9:80 > "]).await;
    server.apply("services", service("cart", "10.0.0.7"));
    followed.until(&[CART, "TCP 10.0.0.9:80 > "]).await;
}

#[tokio::test]
async fn versions_that_run_backwards_are_another_history() {
    let (server, mut followed) = shop().await;
    server.restore(60, "services", vec![service("desk", "10.0.0.9")]);
    server.bookmark("services");
    followed.until(&["TCP 10.0.0.9:80 > "]).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_replaced() {
    let timing = Timing {
        silence: Duration::from_millis(500),
        answer: Duration::from_millis(500),
        ..impatient()
    };
    let (server, mut followed) = shop_with(timing).await;
    let before = server.seen("services").len();
    // So does the answer that comes after it.
    server.fault("services", Fault::Silence);
    until_watched(&server, "services", before).await;
    server.apply("services", service("till", "10.0.0.8"));
    followed.until(&[CART, "TCP 10.0.0.8:80 > "]).await;
}

#[tokio::test]
async fn a_busy_server_is_left_alone_as_long_as_it_asks() {
    let (server, mut followed) = shop().await;
    let before = server.seen("services").len();
    server.fault("services", Fault::RetryAfter(429, 1));
    server.cut_watches("services");
    until_watched(&server, "services", before).await;
    let seen = server.seen("services").split_off(before);
    let waited = seen[1].at - seen[0].at;
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    server.apply("services", service("till", "10.0.0.8"));
    followed.until(&[CART, "TCP 10.0.0.8:80 > "]).await;
}

#[tokio::test]
async fn whatever_a_server_says_the_state_comes_right_in_the_end() {
    let (server, mut followed) = shop().await;
    for said in [
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":",
        "nonsense",
        "",
        "{\"type\":\"NEWS\",\"object\":{}}",
        "{\"type\":\"MODIFIED\",\"object\":7}",
        &error(500),
        &error(410),
    ] {
        let streams =
            |seen: &[crate::api_server::Seen]| seen.iter().filter(|seen| seen.is_stream()).count();
        let before = streams(&server.seen("services"));
        server.say("services", said);
        server
            .until_seen("services", |seen| streams(seen) > before)
            .await;
    }
    for code in [500, 502, 503, 504] {
        server.fault("services", Fault::Status(code));
    }
    server.cut_watches("services");
    server.apply("services", service("till", "10.0.0.8"));
    followed.until(&[CART, "TCP 10.0.0.8:80 > "]).await;
}

#[tokio::test]
async fn trigger_times_since_the_start_are_told() {
    let (server, mut followed) = shop().await;
    let with_trigger = |ip: &str, time: &str| {
        let mut slice = slice("cart", &[ip]);
        slice["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        slice
    };
    let old = with_trigger("10.1.65.8", "2020-01-01T00:00:00Z");
    server.apply("endpointslices", old);
    followed.until(&["TCP 10.0.0.7:80 > 10.1.65.8:8080"]).await;
    assert_eq!(followed.triggers, 0);
    let new = with_trigger("10.1.65.9", "2999-01-01T00:00:00.123456Z");
    server.apply("endpointslices", new);
    followed.until(&["TCP 10.0.0.7:80 > 10.1.65.9:8080"]).await;
    assert_eq!(followed.triggers, 1);
}
