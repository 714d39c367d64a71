//! A Kubernetes service proxy in userspace.
//!
//! The crate doc is the map; ARCHITECTURE.md has the page that goes with it.
//! Imports point one way: `cli` → `app` → everything below it; `source` →
//! [`service`]; [`ipvs`] → [`service`] (types only); [`netstack`] and [`tun`] →
//! [`packet`]; [`dataplane`] → [`ipvs`], [`netstack`], [`packet`], [`tun`].

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod ipvs;
pub mod lab;
pub mod netstack;
pub mod node_port;
pub mod packet;
pub mod service;
pub mod source;
pub mod tun;
