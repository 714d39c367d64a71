//! What the node offers: facts read from the kernel, and what follows from them.
//!
//! [`genetlink`] and [`nftables`] ask netlink families for which there is no crate of
//! calls; [`links`] reads devices, addresses, routes and
//! rules; [`local_ports`] which ports connections get; [`flannel`] reads its subnet file; [`kube_proxy`] asks whether kube-proxy is
//! well; [`kernel_proxy`] puts together whether the kernel carries services, and
//! [`fallback`] decides from that, with time as an argument, whether this proxy takes
//! part. [`privileges`] knows what a thread may do and takes it away.
//!
//! All of it reads, in the network namespace of the calling thread; nothing is changed
//! but the privileges of a thread. No threads and no tasks, except that a [`links::Node`]
//! owns the task of its netlink socket, which ends with it.

pub mod fallback;
pub mod flannel;
pub mod genetlink;
pub mod kernel_proxy;
pub mod kube_proxy;
pub mod links;
pub mod local_ports;
mod netlink;
pub mod nftables;
pub mod privileges;
