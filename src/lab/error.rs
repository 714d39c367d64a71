//! What can go wrong in the lab, each with what to do about it.
//!
//! Each text holds its cause, which is therefore not given as a source besides:
//! a failed trial shows the text alone.

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
    #[error("lab: cannot make a user namespace: {cause}")]
    UserNamespace {
        /// What the kernel said.
        cause: io::Error,
        /// What to type.
        mend: String,
    },
    /// Another step on the way in failed.
    #[error("lab: {step}: {cause}")]
    Enter {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
        /// What to type.
        mend: String,
    },
    /// `/dev/net/tun` is missing or closed.
    #[error("lab: cannot open /dev/net/tun: {cause}")]
    Tun {
        /// What the kernel said.
        cause: io::Error,
        /// What to type.
        mend: String,
    },
    /// A network namespace could not be made.
    #[error("lab: namespace {name}: {step}: {cause}")]
    Namespace {
        /// The namespace's name.
        name: String,
        /// The step.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A setting under `/proc/sys/net` could not be read or written.
    #[error("lab: namespace {name}: sysctl {key}: {cause}")]
    Sysctl {
        /// The namespace's name.
        name: String,
        /// The setting, with dots.
        key: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("lab: namespace {name}: {step}: {cause}")]
    Netlink {
        /// The namespace's name.
        name: String,
        /// The request, as `ip` would put it.
        step: String,
        /// What the kernel said.
        cause: rtnetlink::Error,
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
    #[error("lab: server {behaviour} at {address}: {cause}")]
    Server {
        /// The address.
        address: SocketAddr,
        /// What the server would have done.
        behaviour: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A packet capture could not start.
    #[error("lab: capture on {interface}: {step}: {cause}")]
    Capture {
        /// The interface.
        interface: String,
        /// The step.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A file of the lab could not be made.
    #[error("lab: {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The proxy could not be started.
    #[error("lab: cannot start {binary}: {cause}")]
    ProxyStart {
        /// The binary.
        binary: PathBuf,
        /// What the kernel said.
        cause: io::Error,
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

impl LabError {
    /// What to type so that it works, where that is known.
    pub fn mend(&self) -> Option<&str> {
        match self {
            Self::UserNamespace { mend, .. }
            | Self::Enter { mend, .. }
            | Self::Tun { mend, .. } => Some(mend),
            Self::Threads(_)
            | Self::Namespace { .. }
            | Self::Sysctl { .. }
            | Self::Netlink { .. }
            | Self::Plan(_)
            | Self::NotReady { .. }
            | Self::Server { .. }
            | Self::Capture { .. }
            | Self::File { .. }
            | Self::ProxyStart { .. }
            | Self::ProxyNotReady { .. } => None,
        }
    }
}
