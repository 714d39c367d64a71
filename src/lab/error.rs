//! What can go wrong in the lab, each with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// [`super::enter`] came too late: a user namespace is entered by a whole
    /// process or not at all (unshare(2), EINVAL).
    #[error("lab: the process already has {0} threads; enter the lab before any thread starts")]
    Threads(usize),
    /// The machine forbids user namespaces to this user.
    #[error("lab: cannot make a user namespace: {source}\n  mend: {mend}")]
    UserNamespace {
        /// What the kernel said.
        source: io::Error,
        /// What to type.
        mend: String,
    },
    /// Another step on the way in failed.
    #[error("lab: {step}: {source}\n  mend: {mend}")]
    Enter {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to type.
        mend: String,
    },
    /// `/dev/net/tun` is missing or closed.
    #[error("lab: cannot open /dev/net/tun: {source}\n  mend: {mend}")]
    Tun {
        /// What the kernel said.
        source: io::Error,
        /// What to type.
        mend: String,
    },
    /// A network namespace could not be made.
    #[error("lab: namespace {name}: {step}: {source}")]
    Namespace {
        /// The namespace's name.
        name: String,
        /// The step.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A setting under `/proc/sys/net` could not be read or written.
    #[error("lab: namespace {name}: sysctl {key}: {source}")]
    Sysctl {
        /// The namespace's name.
        name: String,
        /// The setting, with dots.
        key: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("lab: namespace {name}: {step}: {source}")]
    Netlink {
        /// The namespace's name.
        name: String,
        /// The request, as `ip` would put it.
        step: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The plan of a cluster makes no sense.
    #[error("lab: {0}")]
    Plan(String),
    /// Interfaces did not come up in time.
    #[error("lab: namespace {name}: {what} not ready within {seconds} s")]
    NotReady {
        /// The namespace's name.
        name: String,
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// A server could not take its address.
    #[error("lab: server {behaviour} at {address}: {source}")]
    Server {
        /// The address.
        address: SocketAddr,
        /// What the server would have done.
        behaviour: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A packet capture could not start.
    #[error("lab: capture on {interface}: {step}: {source}")]
    Capture {
        /// The interface.
        interface: String,
        /// The step.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the lab could not be made.
    #[error("lab: {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The proxy could not be started.
    #[error("lab: cannot start {binary}: {source}")]
    ProxyStart {
        /// The binary.
        binary: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The proxy ended, or did not become ready in time.
    #[error("lab: proxy {what}; its log:\n{log}")]
    ProxyNotReady {
        /// What happened instead.
        what: String,
        /// What it logged.
        log: String,
    },
}
