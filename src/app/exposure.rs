//! What is reached from outside: node ports, external and load balancer IPs, health
//! checks. An external or load balancer IP that the node has as its own address is
//! served by a listener, any other by a route into the TUN; which of them is decided
//! again whenever the node's addresses change.
//!
//! [`Exposure::follow`] is one task, which ends with its future.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::limits;
use super::routes::Wanted;
use crate::admin::health::Health;
use crate::admin::health_check::HealthChecks;
use crate::node_port::{AddressWatch, NodePorts};
use crate::service::{self, Change};

/// Passes changes on to those who serve from outside.
#[derive(Debug)]
pub(super) struct Exposure {
    node_ports: Arc<NodePorts>,
    routes: Wanted,
    checks: Mutex<HealthChecks>,
    gate: Mutex<Gate>,
    /// The first full state is in.
    complete: Notify,
    health: Health,
    max_flows: usize,
    /// Node ports were seen, and what they need was looked at.
    limits_told: AtomicBool,
}

/// What it takes for listeners to be open.
#[derive(Clone, Copy, Debug)]
struct Gate {
    /// The first full state is in.
    complete: bool,
    /// This proxy takes part.
    active: bool,
    /// Another process has the listeners, and nothing is opened here.
    held: bool,
    /// The process ends: no listener is opened any more, and health checks tell of it.
    draining: bool,
}

impl Gate {
    fn is_open(self) -> bool {
        self.complete && self.active && !self.held && !self.draining
    }
}

impl Exposure {
    /// Must be called within a tokio runtime, as the other functions.
    pub(super) fn new(
        node_ports: Arc<NodePorts>,
        routes: Wanted,
        health: Health,
        max_flows: usize,
        held: bool,
    ) -> Self {
        let new = Self {
            node_ports,
            routes,
            checks: Mutex::new(HealthChecks::new(health.clone())),
            gate: Mutex::new(Gate {
                complete: false,
                active: true,
                held,
                draining: false,
            }),
            complete: Notify::new(),
            health,
            max_flows,
            limits_told: AtomicBool::new(false),
        };
        new.addresses_changed();
        new
    }

    /// Returns when the first full state is in; for one caller.
    pub(super) async fn completed(&self) {
        self.complete.notified().await;
    }

    /// Opens what was held back.
    pub(super) fn let_go(&self) {
        self.set_gate(|gate| gate.held = false);
        self.addresses_changed();
        // What is not listened on any more.
        self.inherit_checks(Vec::new());
    }

    /// The sockets of the health check node ports, for another process.
    pub(super) fn lend_checks(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        self.checks().lend()
    }

    /// Goes on with those of another process once [`Exposure::let_go`] opens them.
    pub(super) fn inherit_checks(&self, lent: Vec<(SocketAddr, OwnedFd)>) {
        self.checks().inherit(lent);
    }

    /// Another process has the listeners now, those of the health check node ports too:
    /// closes here what it has.
    pub(super) fn release(&self) {
        let mut gate = self.gate();
        gate.held = true;
        self.node_ports.release();
        drop(gate);
        self.addresses_changed();
    }

    /// The process ends: listeners close, as [`NodePorts::drain`] has it.
    pub(super) fn drain(&self) {
        let mut gate = self.gate();
        gate.draining = true;
        self.node_ports.drain();
    }

    /// Takes changes that the table has taken, and whether the first full state is in.
    pub(super) fn programmed(&self, changes: &[Change], complete: bool) {
        self.node_ports.program(changes);
        self.routes.programmed(changes, complete);
        let mut node = false;
        let mut checks = self.checks();
        for change in changes {
            match change {
                Change::HealthCheck(check) => checks.set(check),
                Change::RemoveHealthCheck(service) => checks.remove(service),
                Change::Node(network) => {
                    self.health.set_eligible(!network.leaving);
                    node = true;
                }
                Change::Upsert(spec) if spec.exposure == service::Exposure::NodePort => {
                    if !self.limits_told.swap(true, Ordering::Relaxed) {
                        limits::warn_of_node_ports(self.max_flows);
                    }
                }
                Change::Upsert(_) | Change::Remove(_) => {}
            }
        }
        drop(checks);
        if node {
            // Which of its addresses is the primary one may have changed.
            self.addresses_changed();
        }
        if complete {
            self.set_gate(|gate| gate.complete = true);
            self.complete.notify_one();
        }
    }

    /// Opens the listeners, or closes them: while the kernel carries services, health
    /// checks are kube-proxy's, and so are node ports. Flows go on.
    pub(super) fn set_active(&self, active: bool) {
        self.set_gate(|gate| gate.active = active);
        self.addresses_changed();
    }

    fn set_gate(&self, change: impl FnOnce(&mut Gate)) {
        let mut gate = self.gate();
        change(&mut gate);
        self.node_ports.set_open(gate.is_open());
    }

    /// Follows the node's addresses, for ever.
    pub(super) async fn follow(&self, mut watch: AddressWatch) {
        loop {
            watch.changed().await;
            if self.node_ports.addresses_changed() {
                self.addresses_changed();
            }
        }
    }

    /// Looks again which addresses are served how.
    pub(super) fn addresses_changed(&self) {
        self.routes.set_own(self.node_ports.own_addresses());
        let gate = *self.gate();
        let addresses = if gate.active && !gate.held {
            self.node_ports.addresses()
        } else {
            BTreeSet::new()
        };
        self.checks().set_addresses(addresses);
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checks(&self) -> MutexGuard<'_, HealthChecks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
