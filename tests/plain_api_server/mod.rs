//! An API server that answers a few paths, over plain HTTP.

use std::fs;

use axum::Router;
use kube_tun_proxy::source::kubernetes::{Access, Connection};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::kubeconfig;

/// Serves until the test's runtime ends, and connects to it. The directory is where the
/// kubeconfig lies.
pub(crate) async fn connect_to(server: Router) -> (TempDir, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, server).await });
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("kubeconfig");
    let cluster = json!({"server": format!("http://{address}")});
    fs::write(
        &path,
        kubeconfig::text(&cluster, &json!({"token": "secret"})),
    )
    .unwrap();
    let access = Access {
        kubeconfig: Some(path),
        master: None,
    };
    (directory, Connection::open(access).await.unwrap())
}
