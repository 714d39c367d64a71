//! A Kubernetes service proxy in userspace: no kernel module, no netfilter, no eBPF.
//!
//! It routes the service CIDR into a TUN device, ends TCP in smoltcp, picks a
//! real server as IPVS would and dials it with a kernel socket. This is the map;
//! ARCHITECTURE.md has threads, the way of a packet, decisions and words.
//!
//! | module | is |
//! | --- | --- |
//! | [`cli`] | arguments to subcommand |
//! | [`app`] | wiring, in the order of starting up |
//! | [`config`] | options, parsed once into one checked value |
//! | [`check`] | what a node has and lacks, a finding each |
//! | [`node`] | facts of the node, whether the kernel carries services, privileges |
//! | [`source`] | where objects come from |
//! | [`service`] | desired state, as kube-proxy reads the objects; pure |
//! | [`ipvs`] | the engine: virtual servers, real servers, schedulers, verdicts; pure |
//! | [`dataplane`] | workers, and the flows they carry |
//! | [`node_port`] | kernel listeners for addresses that are the node's own |
//! | [`netstack`] | the glue around smoltcp |
//! | [`packet`] | packets as checked views and as bytes to send; pure |
//! | [`tun`] | the device: queues, virtio-net header, address and routes |
//! | [`admin`] | what the proxy tells about itself |
//! | [`capture`] | packets of chosen flows, both sides, as pcapng |
//! | [`lab`] | clusters of network namespaces, for the demo and the tests |
//!
//! An object goes from [`source`] through [`service`] into [`ipvs::Table`], which
//! is where control plane and data plane meet. A packet goes from [`tun`] through
//! [`packet`] to a flow of a worker in [`dataplane`], which asks the table only for
//! a new flow.
//!
//! Imports point one way: `cli` → `app` → everything below it; [`source`] →
//! [`service`]; [`ipvs`] → [`service`] (types only); [`netstack`] and [`tun`] →
//! [`packet`]; [`dataplane`] → [`ipvs`], [`netstack`], [`packet`], [`tun`].
//! `tests/layering.rs` has them all, and checks them.

pub mod admin;
pub mod app;
pub mod capture;
pub mod check;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod ipvs;
pub mod lab;
pub mod netstack;
pub mod node;
pub mod node_port;
pub mod packet;
pub mod service;
pub mod source;
pub mod tun;
