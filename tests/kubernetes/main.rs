//! The source of a cluster against an API server that does as it is told, over
//! real HTTPS with the real client.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod access;
#[path = "../api_server/mod.rs"]
mod api_server;
mod cluster;
mod facts;
mod lists;
mod permissions;
mod scale;
mod watches;
