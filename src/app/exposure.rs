//! What is reached from outside: node ports, external and load balancer IPs, health
//! checks. An external or load balancer IP that the node has as its own address is
//! served by a listener, any other by a route into the TUN; which of them is decided
//! again whenever the node's addresses change.
//!
//! [`Exposure::follow`] is one task, which ends with its future.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::routes::Wanted;
use crate::admin::health::Health;
use crate::admin::health_check::HealthChecks;
use crate::node_port::{AddressWatch, NodePorts};
use crate::service::Change;

/// Passes changes on to those who serve from outside.
#[derive(Debug)]
pub(super) struct Exposure {
    node_ports: Arc<NodePorts>,
    routes: Wanted,
    checks: Mutex<HealthChecks>,
    /// Nothing is opened, since another process still has what would be.
    held: AtomicBool,
    /// The first full state is in.
    complete: Notify,
}

impl Exposure {
    /// Must be called within a tokio runtime, as the other functions.
    pub(super) fn new(
        node_ports: Arc<NodePorts>,
        routes: Wanted,
        health: Health,
        held: bool,
    ) -> Self {
        let new = Self {
            node_ports,
            routes,
            checks: Mutex::new(HealthChecks::new(health)),
            held: AtomicBool::new(held),
            complete: Notify::new(),
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
        self.held.store(false, Ordering::Relaxed);
        self.addresses_changed();
        self.node_ports.open();
    }

    /// Closes the health check node ports: another process opens them.
    pub(super) fn release(&self) {
        self.held.store(true, Ordering::Relaxed);
        self.checks().set_addresses(BTreeSet::new());
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
                Change::Node(_) => node = true,
                Change::Upsert(_) | Change::Remove(_) => {}
            }
        }
        drop(checks);
        if node {
            // Which of its addresses is the primary one may have changed.
            self.addresses_changed();
        }
        if complete {
            self.complete.notify_one();
            if !self.held.load(Ordering::Relaxed) {
                self.node_ports.open();
            }
        }
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

    fn addresses_changed(&self) {
        self.routes.set_own(self.node_ports.own_addresses());
        if !self.held.load(Ordering::Relaxed) {
            self.checks().set_addresses(self.node_ports.addresses());
        }
    }

    fn checks(&self) -> MutexGuard<'_, HealthChecks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
