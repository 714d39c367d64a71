//! The rights that the program asks an API server about.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use kube_tun_proxy::source::kubernetes::permissions;
use serde_json::{Value, json};

use crate::plain_api_server::connect_to;

/// Group, resource and verb.
pub(crate) type Rights = BTreeSet<(String, String, String)>;

/// All that `check` asks whether it may be done, which is all that is followed.
pub(crate) async fn asked_for() -> Rights {
    let asked = Arc::new(Mutex::new(Rights::new()));
    let review = {
        let asked = Arc::clone(&asked);
        async move |Json(review): Json<Value>| {
            let of = |name: &str| {
                let value = &review["spec"]["resourceAttributes"][name];
                value.as_str().unwrap().to_owned()
            };
            let one = (of("group"), of("resource"), of("verb"));
            asked.lock().unwrap().insert(one);
            let answer = json!({"status": {"allowed": true}});
            (StatusCode::CREATED, Json(answer))
        }
    };
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let server = Router::new().route(path, post(review));
    let (_directory, connection) = connect_to(server).await;
    permissions(&connection, "node-1").await.unwrap();
    let asked = asked.lock().unwrap();
    asked.clone()
}
