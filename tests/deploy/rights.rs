//! The rights that the program asks an API server about.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use kube_tun_proxy::source::kubernetes::{Access, Connection, permissions};
use serde_json::{Value, json};
use tokio::net::TcpListener;

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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, server).await });
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "test", "user": {"token": "secret"}}],
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    let access = Access {
        kubeconfig: Some(kubeconfig),
        master: None,
    };
    let connection = Connection::open(access).await.unwrap();
    permissions(&connection, "node-1").await.unwrap();
    serving.abort();
    let asked = asked.lock().unwrap();
    asked.clone()
}
