//! Ways into a cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use kube_tun_proxy::source::kubernetes::{Access, AccessError, Connection};

use crate::api_server::ApiServer;
use crate::cluster::{Followed, impatient, service};

#[tokio::test]
async fn a_token_that_is_replaced_is_read_again() {
    let server = ApiServer::start("first").await;
    let user = json!({"token": "first"});
    let (directory, path) = server.kubeconfig(&server.url(), &user);
    let mut followed = Followed::of(directory, path.clone(), None, impatient()).await;
    followed.until_complete().await;

    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("first", "second")).unwrap();
    server.set_token("second");
    server.cut_watches("services");
    server.apply("services", service("cart", "10.0.0.7"));
    followed.until(&["TCP 10.0.0.7:80 > "]).await;
}

#[tokio::test]
async fn an_exec_plugin_gives_the_token() {
    let server = ApiServer::start("from-a-plugin").await;
    server.apply("services", service("cart", "10.0.0.7"));
    let scripts = tempfile::tempdir().unwrap();
    let plugin = scripts.path().join("plugin");
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-a-plugin"},
    });
    fs::write(&plugin, format!("#!/bin/sh\necho '{credential}'\n")).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o700)).unwrap();
    let user = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": plugin,
        "interactiveMode": "Never",
    }});
    let (directory, path) = server.kubeconfig(&server.url(), &user);
    let mut followed = Followed::of(directory, path, None, impatient()).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), ["TCP 10.0.0.7:80 > "]);
}

#[tokio::test]
async fn a_client_certificate_lets_in() {
    let server = ApiServer::start("nobody has it").await;
    server.apply("services", service("cart", "10.0.0.7"));
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = server.client_certificate();
    let (certificate_file, key_file) = (files.path().join("crt"), files.path().join("key"));
    fs::write(&certificate_file, certificate).unwrap();
    fs::write(&key_file, key).unwrap();
    let user = json!({"client-certificate": certificate_file, "client-key": key_file});
    let (directory, path) = server.kubeconfig(&server.url(), &user);
    let mut followed = Followed::of(directory, path, None, impatient()).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), ["TCP 10.0.0.7:80 > "]);
}

#[tokio::test]
async fn another_address_of_the_server_replaces_the_configured_one() {
    let server = ApiServer::start("secret").await;
    server.apply("services", service("cart", "10.0.0.7"));
    let user = json!({"token": "secret"});
    // Nobody listens there.
    let (directory, path) = server.kubeconfig("https://127.0.0.1:1", &user);
    let mut followed = Followed::of(directory, path, Some(&server.url()), impatient()).await;
    followed.until_complete().await;
    assert_eq!(followed.servers(), ["TCP 10.0.0.7:80 > "]);
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    for text in ["not: [a, kubeconfig", "{}", "clusters: 7"] {
        fs::write(&path, text).unwrap();
        let access = Access {
            kubeconfig: Some(path.clone()),
            master: None,
        };
        let error = Connection::open(access).await.unwrap_err();
        assert!(matches!(error, AccessError::Kubeconfig { .. }), "{error}");
        let name = path.to_str().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
}
