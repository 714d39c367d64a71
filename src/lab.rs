//! Clusters made of network namespaces, for the demo, the tests and the benchmarks.
//!
//! Nodes with a veth underlay and flannel's vxlan overlay, pods behind a
//! `cni0` bridge, IPv4 and IPv6: all through netlink and syscalls, with no
//! program but ours, as root or as an ordinary user.
//!
//! 1. [`enter`] once, while the process has one thread: a fresh user, network
//!    and mount namespace, so that nothing outside is touched.
//! 2. [`ClusterBuilder`] makes a [`Cluster`] of [`Namespace`]s without names
//!    on disk; any number of them live side by side.
//! 3. [`servers`] answer in the pods, [`client`] asks, [`capture`] shows what
//!    was on the wire, [`ProxyProcess`] runs the real binary on a node.
//!
//! Threads: [`Namespace::run`] uses one for as long as its closure; a
//! [`servers::Server`], a [`capture::Capture`] and a [`ProxyProcess`] own one
//! each, which their drop ends and joins. A namespace vanishes with the last
//! descriptor, socket or process in it, so dropping the [`Cluster`] and what
//! runs in it removes every trace, also while a panic unwinds.

pub mod capture;
pub mod client;
mod cluster;
mod entry;
mod error;
pub mod manifests;
mod namespace;
mod netlink;
mod plan;
mod proxy;
pub mod servers;
mod temp_dir;
mod wiring;

pub use cluster::{Cluster, Node, Pod};
pub use entry::{enter, require_tun};
pub use error::LabError;
pub use namespace::Namespace;
pub use plan::{ClusterBuilder, NodeSpec, PodSpec};
pub use proxy::{ProxyOptions, ProxyProcess};
pub use temp_dir::TempDir;
