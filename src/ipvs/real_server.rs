//! One endpoint as one virtual server sees it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The weight kube-proxy gives every real server.
pub(super) const DEFAULT_WEIGHT: u32 = 1;

/// Marks one that is retired, beside its weight.
const RETIRED: u32 = 1 << 31;

/// A real server of one virtual server, with its counters.
///
/// It is shared by every flow to it and outlives its place in the rotation: an
/// endpoint that was removed lives on, with weight 0, until its last flow ends.
/// All counters are relaxed atomics: they are for people and for the least
/// connection schedulers, and order nothing.
#[derive(Debug)]
pub struct RealServer {
    /// Where flows are sent to.
    pub address: SocketAddr,
    /// Its weight, and [`RETIRED`]: of real servers there are many.
    standing: AtomicU32,
    active: AtomicU32,
    inactive: AtomicU32,
    connections: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl RealServer {
    /// Whether flows to it should end where the protocol has no end of its own:
    /// UDP flows must move at once, TCP flows go on until they end.
    ///
    /// True when other endpoints of the service serve and this one does not, or
    /// when the service is gone. A service left without any serving endpoint
    /// retires nothing: kube-proxy's rule for stale flows since 1.32
    /// (`pkg/proxy/conntrack/cleanup.go`).
    pub fn is_retired(&self) -> bool {
        self.standing.load(Relaxed) & RETIRED != 0
    }

    /// Whether schedulers may choose it: its weight is above 0.
    pub fn takes_new_flows(&self) -> bool {
        self.weight() > 0
    }

    /// Its weight: 1 in the rotation, 0 while it drains.
    pub fn weight(&self) -> u32 {
        self.standing.load(Relaxed) & !RETIRED
    }

    /// ActiveConn of ipvsadm: established TCP connections.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// InActConn of ipvsadm: every other flow, UDP included.
    pub fn inactive(&self) -> u32 {
        self.inactive.load(Relaxed)
    }

    /// Flows it was ever chosen for, the failed attempts among them: Conns of
    /// `ipvsadm --stats`.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Attempts to connect to it that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Payload bytes from clients to it.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Relaxed)
    }

    /// Payload bytes from it to clients.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    /// Counts one attempt to connect that was refused, timed out or could not be
    /// made.
    pub fn attempt_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Counts payload bytes sent to it.
    pub fn add_bytes_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    /// Counts payload bytes received from it.
    pub fn add_bytes_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    pub(super) fn new(address: SocketAddr, weight: u32) -> Self {
        Self {
            address,
            standing: AtomicU32::new(weight & !RETIRED),
            active: AtomicU32::new(0),
            inactive: AtomicU32::new(0),
            connections: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    pub(super) fn set_weight(&self, weight: u32) {
        // Each bit is written under the virtual server's lock only.
        let retired = self.standing.load(Relaxed) & RETIRED;
        self.standing.store(weight & !RETIRED | retired, Relaxed);
    }

    pub(super) fn set_retired(&self, retired: bool) {
        if retired {
            self.standing.fetch_or(RETIRED, Relaxed);
        } else {
            self.standing.fetch_and(!RETIRED, Relaxed);
        }
    }

    pub(super) fn bind(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.inactive.fetch_add(1, Relaxed);
    }

    pub(super) fn unbind(&self, active: bool) {
        let counter = if active { &self.active } else { &self.inactive };
        counter.fetch_sub(1, Relaxed);
    }

    pub(super) fn set_active(&self, active: bool) {
        if active {
            self.active.fetch_add(1, Relaxed);
            self.inactive.fetch_sub(1, Relaxed);
        } else {
            self.inactive.fetch_add(1, Relaxed);
            self.active.fetch_sub(1, Relaxed);
        }
    }
}
