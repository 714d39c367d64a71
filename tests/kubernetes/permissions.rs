//! What may be done, asked of an API server that says no to some of it.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use kube_tun_proxy::source::kubernetes::{permissions, version};
use serde_json::{Value, json};

use crate::plain_api_server::connect_to;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Denies to watch EndpointSlices and everything about ServiceCIDRs.
async fn review(body: String) -> (StatusCode, String) {
    let review: Value = serde_json::from_str(&body).unwrap();
    let asked = &review["spec"]["resourceAttributes"];
    let denied = asked["resource"] == "servicecidrs" && asked["group"] == "networking.k8s.io"
        || asked["resource"] == "endpointslices"
            && asked["group"] == "discovery.k8s.io"
            && asked["verb"] == "watch";
    let answer = json!({"status": {"allowed": !denied}});
    (StatusCode::CREATED, answer.to_string())
}

#[tokio::test]
async fn each_resource_is_asked_for_with_its_group_and_verbs() {
    let server = Router::new()
        .route("/version", get(async || r#"{"gitVersion": "v1.36.2"}"#))
        .route(REVIEWS, post(review));
    let (_directory, connection) = connect_to(server).await;
    assert_eq!(version(&connection).await.unwrap(), "v1.36.2");
    let permissions = permissions(&connection, "edge-a").await.unwrap();
    let told: Vec<(&str, &[&str], bool)> = permissions
        .iter()
        .map(|one| (one.resource, one.denied.as_slice(), one.without.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            ("services", &[][..], false),
            ("endpointslices", &["watch"], false),
            ("nodes", &[], true),
            ("namespaces", &[], true),
            ("servicecidrs", &["list", "watch"], true),
            ("networkpolicies", &[], true),
        ]
    );
}

#[tokio::test]
async fn a_server_that_does_not_say_is_no_permission() {
    let refusing = Router::new()
        .route("/version", get(async || StatusCode::FORBIDDEN))
        .route(REVIEWS, post(async || StatusCode::UNAUTHORIZED));
    let (_directory, connection) = connect_to(refusing).await;
    let error = version(&connection).await.unwrap_err();
    assert!(error.contains("403"), "{error}");
    let error = permissions(&connection, "edge-a").await.unwrap_err();
    assert!(error.contains("401"), "{error}");
}
