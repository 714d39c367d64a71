//! Why an attempt to connect to a real server failed.

use std::io;

/// Why one attempt failed, by what the system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// The real server said no.
    Refused,
    /// It said nothing within `--connect-timeout`.
    TimedOut,
    /// There is no way to it, or a router said so.
    Unreachable,
    /// This node has no descriptor, port, memory or source address left for it.
    NoResources,
    /// It is a virtual IP: the connection would come back for ever.
    Loop,
    /// Anything else.
    Other,
}

impl DialFailure {
    /// All of them; `failure as usize` is the index.
    pub const ALL: [Self; 6] = [
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::NoResources,
        Self::Loop,
        Self::Other,
    ];

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::NoResources => "no_resources",
            Self::Loop => "loop",
            Self::Other => "other",
        }
    }

    /// What kind of failure this error is.
    pub fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::TimedOut;
        }
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => Self::Refused,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN | libc::EACCES) => {
                Self::Unreachable
            }
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::EADDRNOTAVAIL
                | libc::EAGAIN
                | libc::ENOBUFS
                | libc::ENOMEM,
            ) => Self::NoResources,
            Some(libc::ELOOP) => Self::Loop,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_have_their_reason() {
        for (errno, failure) in [
            (libc::ECONNREFUSED, DialFailure::Refused),
            (libc::ETIMEDOUT, DialFailure::TimedOut),
            (libc::ENETUNREACH, DialFailure::Unreachable),
            (libc::EADDRNOTAVAIL, DialFailure::NoResources),
            (libc::ELOOP, DialFailure::Loop),
            (libc::EINVAL, DialFailure::Other),
        ] {
            assert_eq!(
                DialFailure::of(&io::Error::from_raw_os_error(errno)),
                failure
            );
        }
        let ours = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(DialFailure::of(&ours), DialFailure::TimedOut);
        for (at, failure) in DialFailure::ALL.iter().enumerate() {
            assert_eq!(*failure as usize, at);
        }
    }
}
