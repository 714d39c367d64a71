//! Names of schedulers, as `--ipvs-scheduler` and the annotation
//! [`ANNOTATION_SCHEDULER`](super::service_port::ANNOTATION_SCHEDULER) give them.

use std::fmt;
use std::str::FromStr;

/// Which scheduler a virtual server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connection.
    Lc,
    /// Weighted least connection.
    Wlc,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Source hashing, by the client's address.
    Sh,
    /// Destination hashing, by the virtual IP.
    Dh,
    /// Maglev hashing, by the client's address and port: kube-proxy always sets
    /// the flag `mh-port`.
    Mh,
}

impl SchedulerKind {
    /// Every scheduler.
    pub const ALL: &[Self] = &[
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Sed,
        Self::Nq,
        Self::Sh,
        Self::Dh,
        Self::Mh,
    ];

    /// The name ipvsadm and kube-proxy use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Mh => "mh",
        }
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no scheduler's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheduler {0:?}: it must be one of rr, wrr, lc, wlc, sed, nq, sh, dh, mh")]
pub struct UnknownScheduler(pub String);

impl FromStr for SchedulerKind {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}
