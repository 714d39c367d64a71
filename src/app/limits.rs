//! The limit on open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::RESERVED_FILES;

/// Raises the soft limit on open files to the hard one, and warns if `max_flows`
/// do not fit: each flow has a socket.
pub(super) fn raise_open_files(max_flows: usize) {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "the limit on open files cannot be read");
            return;
        }
    };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            warn!(%error, soft, hard, "the limit on open files cannot be raised");
            soft
        }
    };
    debug!(limit, "open files");
    let needed = u64::try_from(max_flows)
        .unwrap_or(u64::MAX)
        .saturating_add(RESERVED_FILES);
    if limit < needed {
        warn!(
            limit,
            needed, "--max-flows is more than open files allow: raise the hard limit (ulimit -Hn)"
        );
    }
}
