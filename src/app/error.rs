//! Why a proxy does not start, or ends.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use tokio::task::JoinError;

use super::takeover::TakeoverError;
use crate::admin::socket::BindError;
use crate::dataplane::StartError;
use crate::source::kubernetes::AccessError;
use crate::tun::TunError;

/// Why the proxy did not start.
#[derive(Debug, Error)]
pub enum AppError {
    /// There is no way to the cluster.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// An address to be served on is not to be had.
    #[error("{flag} {address}: cannot listen")]
    Listen {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The admin socket is not to be had.
    #[error(transparent)]
    AdminSocket(#[from] BindError),
    /// The node lacks something that the TUN needs.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The workers did not start.
    #[error("cannot start the data plane")]
    Dataplane(#[from] StartError),
    /// A worker cannot go on, as when somebody has deleted the device.
    #[error("the data plane has failed: {reason}")]
    Worker {
        /// What the worker says.
        reason: String,
    },
    /// The node cannot be looked at.
    #[error("cannot open a netlink socket to look at the node")]
    Node(#[source] io::Error),
    /// No thread to start others from.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    /// Signals cannot be handled.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    /// The proxy that runs was not taken over from.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// There is no descriptor left.
    #[error("no descriptors are left")]
    Descriptors(#[source] io::Error),
    /// A part that should run for ever has ended.
    #[error("{part} has ended by itself")]
    Ended {
        /// Which.
        part: &'static str,
        /// How, if it said so.
        source: Option<io::Error>,
    },
    /// A part has panicked.
    #[error("a part of the proxy has failed")]
    Panicked(#[from] JoinError),
}

impl AppError {
    /// Whether it is the node that lacks something, rather than the proxy that
    /// failed.
    pub fn node_lacks(&self) -> bool {
        matches!(self, Self::Tun(_))
    }

    /// Whether the configuration is wrong.
    pub fn misconfigured(&self) -> bool {
        matches!(
            self,
            Self::Access(
                AccessError::Kubeconfig { .. }
                    | AccessError::InCluster { .. }
                    | AccessError::Client { .. }
            )
        )
    }

    /// What mends it, where that is known.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::Listen { flag, source, .. } => listen_mend(flag, source),
            Self::AdminSocket(_) => Some("choose another path with --admin-socket PATH".to_owned()),
            Self::Tun(error) => error.mend(),
            Self::Access(AccessError::InCluster { .. }) => Some(
                "run it in a pod with a service account, or give --kubeconfig FILE or \
                 --manifests PATH"
                    .to_owned(),
            ),
            Self::Access(_) => None,
            Self::Takeover(TakeoverError::Unknown | TakeoverError::Protocol { .. }) => {
                Some("stop the running proxy, then start this one without --takeover".to_owned())
            }
            Self::Takeover(TakeoverError::Ask { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it as the user of the running proxy, or stop that one first".to_owned())
            }
            Self::Takeover(_)
            | Self::Dataplane(_)
            | Self::Worker { .. }
            | Self::Signals(_)
            | Self::Descriptors(_)
            | Self::Node(_)
            | Self::Threads(_)
            | Self::Ended { .. }
            | Self::Panicked(_) => None,
        }
    }
}

fn listen_mend(flag: &str, error: &io::Error) -> Option<String> {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        Some(format!(
            "another process, kube-proxy perhaps, has the port: choose another with \
             {flag} ADDRESS:PORT, or none with {flag} ''"
        ))
    } else if kind == io::ErrorKind::AddrNotAvailable {
        Some("give an address that this node has, or 0.0.0.0".to_owned())
    } else {
        None
    }
}
