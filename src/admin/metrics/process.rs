//! The process, by the names that every Prometheus client library uses.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::write::{counter, gauge};

/// What the system says of this process; what it does not say is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessValues {
    /// CPU time, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is in RAM, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Most descriptors that it may open.
    pub max_fds: u64,
    /// When it was started, in seconds since 1970.
    pub start_seconds: f64,
}

pub(super) fn encode(process: &ProcessValues, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    counter(
        out,
        "process_cpu_seconds",
        "CPU time of the process, user and system, in seconds",
        process.cpu_seconds,
    )?;
    gauge(
        out,
        "process_resident_memory_bytes",
        "Memory of the process that is in RAM, in bytes",
        process.resident_bytes,
    )?;
    gauge(
        out,
        "process_open_fds",
        "Open file descriptors of the process",
        process.open_fds,
    )?;
    gauge(
        out,
        "process_max_fds",
        "Most file descriptors that the process may open",
        process.max_fds,
    )?;
    gauge(
        out,
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970",
        process.start_seconds,
    )
}
