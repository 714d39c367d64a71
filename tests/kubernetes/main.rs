//! The source of a cluster against an API server that does as it is told, over
//! real HTTPS with the real client.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod access;
#[path = "../api_server/mod.rs"]
mod api_server;
mod cluster;
mod facts;
#[path = "../kubeconfig/mod.rs"]
mod kubeconfig;
mod lists;
mod permissions;
#[path = "../plain_api_server/mod.rs"]
mod plain_api_server;
mod scale;
mod watches;
