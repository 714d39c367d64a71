//! What a thread may do beyond an ordinary user: read, and taken away.
//!
//! Capabilities belong to threads (capabilities(7)), and a new thread has those of the
//! one that made it. So a thread is confined before it starts others, or as the first
//! thing that it does.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use caps::{CapSet, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

/// A capability that this program has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// CAP_DAC_READ_SEARCH: to read configuration files of another user.
    DacReadSearch,
    /// CAP_NET_ADMIN: to make devices and change routes.
    NetAdmin,
    /// CAP_NET_BIND_SERVICE: to listen on ports below 1024.
    NetBindService,
    /// CAP_NET_RAW: to open raw sockets, for ICMP errors to UDP clients of node ports.
    NetRaw,
}

impl Capability {
    fn kernel(self) -> caps::Capability {
        match self {
            Self::DacReadSearch => caps::Capability::CAP_DAC_READ_SEARCH,
            Self::NetAdmin => caps::Capability::CAP_NET_ADMIN,
            Self::NetBindService => caps::Capability::CAP_NET_BIND_SERVICE,
            Self::NetRaw => caps::Capability::CAP_NET_RAW,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetRaw => "CAP_NET_RAW",
        })
    }
}

/// A set of capabilities, printed as `CAP_NET_ADMIN,CAP_NET_BIND_SERVICE` or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// No capability.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of the calling thread, of the ones that matter here.
    ///
    /// # Errors
    ///
    /// capget(2)'s.
    pub fn of_this_thread() -> io::Result<Self> {
        let effective = caps::read(None, CapSet::Effective).map_err(io::Error::other)?;
        let all = [
            Capability::DacReadSearch,
            Capability::NetAdmin,
            Capability::NetBindService,
            Capability::NetRaw,
        ];
        let here = all
            .into_iter()
            .filter(|one| effective.contains(&one.kernel()));
        Ok(here.collect())
    }

    /// Whether it is in the set.
    pub fn contains(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        Self(capabilities.into_iter().collect())
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, capability) in self.0.iter().enumerate() {
            write!(f, "{}{capability}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Takes every capability but those of `keep` from the calling thread, for good, and
/// keeps programs that it starts from gaining others (no_new_privs). What it has not,
/// it does not get.
///
/// # Errors
///
/// capset(2)'s and prctl(2)'s.
pub fn confine(keep: &Capabilities) -> io::Result<()> {
    set_no_new_privs()?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = keep
        .0
        .iter()
        .map(|capability| capability.kernel())
        .filter(|capability| permitted.contains(capability))
        .collect();
    // Ambient and inheritable are for programs that are started.
    let clear = |set| caps::clear(None, set).map_err(io::Error::other);
    if caps::runtime::ambient_set_supported().is_ok() {
        clear(CapSet::Ambient)?;
    }
    // Needs CAP_SETPCAP, without which there is nothing to be won from the bounding set
    // either: no_new_privs stands before it.
    if permitted.contains(&caps::Capability::CAP_SETPCAP) {
        clear(CapSet::Bounding)?;
    }
    let set = |which| caps::set(None, which, &kept).map_err(io::Error::other);
    set(CapSet::Effective)?;
    set(CapSet::Permitted)?;
    clear(CapSet::Inheritable)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_confined_thread_has_nothing_and_neither_has_its_child() {
        let before = Capabilities::of_this_thread().unwrap();
        thread::spawn(|| {
            confine(&Capabilities::none()).unwrap();
            let child = thread::spawn(|| fs_status("CapPrm:"));
            assert_eq!(
                Capabilities::of_this_thread().unwrap(),
                Capabilities::none()
            );
            assert_eq!(fs_status("NoNewPrivs:"), "1");
            assert_eq!(child.join().unwrap(), "0000000000000000");
            // What is gone does not come back.
            confine(&[Capability::NetAdmin].into_iter().collect()).unwrap();
            assert_eq!(
                Capabilities::of_this_thread().unwrap(),
                Capabilities::none()
            );
        })
        .join()
        .unwrap();
        assert_eq!(Capabilities::of_this_thread().unwrap(), before);
    }

    fn fs_status(field: &str) -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line[field.len()..].trim().to_owned()
    }

    #[test]
    fn a_set_prints_its_names() {
        assert_eq!(Capabilities::none().to_string(), "none");
        let set: Capabilities = [Capability::NetBindService, Capability::NetAdmin]
            .into_iter()
            .collect();
        assert_eq!(set.to_string(), "CAP_NET_ADMIN,CAP_NET_BIND_SERVICE");
    }
}
