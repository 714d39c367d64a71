//! What one virtual server has carried, whichever real server it was.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of a virtual server: those of its real servers together, and of those it
/// has had. Relaxed, for people only; written when flows open and once in a while.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    opened: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// The counters at one moment. They begin anew when the address goes to another Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficView {
    /// Flows that got a real server.
    pub opened: u64,
    /// Attempts to connect to a real server that failed.
    pub failed: u64,
    /// Payload bytes from clients to real servers.
    pub bytes_in: u64,
    /// Payload bytes from real servers to clients.
    pub bytes_out: u64,
}

impl Traffic {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(super) fn attempt_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(super) fn carried(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        self.bytes_out.fetch_add(bytes_out, Relaxed);
    }

    pub(super) fn view(&self) -> TrafficView {
        TrafficView {
            opened: self.opened.load(Relaxed),
            failed: self.failed.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}
