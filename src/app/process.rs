//! What the system says of this process.

use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

use crate::admin::metrics::ProcessValues;

/// The process now; what cannot be read is 0.
pub(super) fn values(started: SystemTime) -> ProcessValues {
    let cpu_seconds = getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        seconds(usage.user_time()) + seconds(usage.system_time())
    });
    let started = started.duration_since(SystemTime::UNIX_EPOCH);
    ProcessValues {
        cpu_seconds,
        resident_bytes: resident_bytes().unwrap_or(0),
        open_fds: open_fds().unwrap_or(0),
        max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        start_seconds: started.map_or(0.0, |since| since.as_secs_f64()),
    }
}

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// VmRSS of proc_pid_status(5), there in units of 1024 bytes.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The size of the directory since Linux 6.2 (proc_pid_fd(5)); before, its entries.
fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok(),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_descriptors_and_a_past() {
        let values = values(SystemTime::now());
        assert!(values.cpu_seconds > 0.0);
        assert!(values.resident_bytes > 1 << 20);
        assert!(values.open_fds > 2 && values.open_fds <= values.max_fds);
        assert!(values.start_seconds > 1.7e9);
    }
}
