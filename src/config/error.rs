//! Why there is no configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use thiserror::Error;

use super::ADMIN_SOCKET_MAX;

/// Why there is no configuration. Names the flag and the value, or file, document
/// and field.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that makes no sense, or goes with nothing else that was given.
    #[error("--config '{}': {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FileError,
    },
    /// The source is not there.
    #[error("{flag} '{}' cannot be read", path.display())]
    Source {
        /// The flag that names it.
        flag: &'static str,
        /// What was given.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Two networks that share addresses.
    #[error("--service-cidr '{first},{second}': the one contains the other")]
    ServiceCidrOverlap {
        /// One of them.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// Fixed routes with nothing to route.
    #[error("--fixed-routes needs --service-cidr, whose routes they are")]
    FixedRoutesOfNothing,
    /// Fixed routes that were to come and go.
    #[error(
        "--fixed-routes and --mode fallback contradict each other: that sets and removes routes"
    )]
    FixedRoutesFallBack,
    /// A second address of a family.
    #[error("--tun-address '{first},{second}': at most one IPv4 and one IPv6 address")]
    TunAddressTwice {
        /// The first given.
        first: IpAddr,
        /// The second given.
        second: IpAddr,
    },
    /// The machine's name cannot serve as the node's.
    #[error("the host name {reason}: name the node with --hostname-override NAME")]
    HostName {
        /// What is wrong with it.
        reason: String,
    },
    /// The admin socket's path does not fit into a socket address.
    #[error("--admin-socket '{}': a socket's path has 1 to {ADMIN_SOCKET_MAX} bytes", path.display())]
    AdminSocketPath {
        /// What was given.
        path: PathBuf,
    },
}

impl ConfigError {
    pub(super) fn file(path: &Path, error: FileError) -> Self {
        Self::File {
            path: path.to_owned(),
            error,
        }
    }

    /// The flag whose value is wrong.
    pub(super) fn flag(&self) -> Option<&'static str> {
        match self {
            Self::Source { flag, .. } => Some(flag),
            Self::ServiceCidrOverlap { .. } => Some("--service-cidr"),
            Self::FixedRoutesOfNothing | Self::FixedRoutesFallBack => Some("--fixed-routes"),
            Self::TunAddressTwice { .. } => Some("--tun-address"),
            Self::AdminSocketPath { .. } => Some("--admin-socket"),
            Self::File { .. } | Self::HostName { .. } => None,
        }
    }
}

/// What is wrong with a file of settings. Documents are counted from 1, without
/// those that are empty.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FileError {
    /// It is no YAML.
    #[error("{0}")]
    Syntax(String),
    /// A document is none that is known, or one too many.
    #[error("document {number} {reason}")]
    Document {
        /// Which.
        number: usize,
        /// What is wrong, without a subject.
        reason: String,
    },
    /// A field does not exist, or may not hold what it holds.
    #[error("document {document}, {field}: {reason}")]
    Field {
        /// In which document.
        document: usize,
        /// Its path, names joined by points.
        field: String,
        /// What is wrong, without a subject.
        reason: String,
    },
    /// Settings that are good one by one exclude each other.
    #[error("with what else is given: {0}")]
    Together(String),
}

impl FileError {
    pub(super) fn document(number: usize, reason: String) -> Self {
        Self::Document { number, reason }
    }

    pub(super) fn field(document: usize, field: String, reason: String) -> Self {
        Self::Field {
            document,
            field,
            reason,
        }
    }
}
