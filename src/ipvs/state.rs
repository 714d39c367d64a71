//! What a virtual server keeps behind its lock: the rotation, those that drain,
//! the scheduler's position, persistence.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::persistence::Persistence;
use super::real_server::DEFAULT_WEIGHT;
use super::scheduler::{Candidates, Request, Scheduler, Update, build};
use super::{RealServer, RealServerView, SchedulerKind};

/// The state of one virtual server.
#[derive(Debug)]
pub(super) struct State {
    scheduler: Box<dyn Scheduler>,
    /// Those that take new flows, from the head of the kernel's list.
    rotation: Vec<Arc<RealServer>>,
    /// Those that were taken out of the rotation and still have flows.
    draining: Vec<Arc<RealServer>>,
    persistence: Option<Persistence>,
}

impl State {
    pub(super) fn new(scheduler: SchedulerKind) -> Self {
        Self {
            scheduler: build(scheduler),
            rotation: Vec::new(),
            draining: Vec::new(),
            persistence: None,
        }
    }

    /// The real server for a new flow: the persistent one if the client has one
    /// that was not tried yet, else the scheduler's choice.
    pub(super) fn schedule(
        &mut self,
        request: &Request,
        now: Instant,
        tried: &[SocketAddr],
    ) -> Option<Arc<RealServer>> {
        let client = request.client.ip();
        if let Some(persistence) = &mut self.persistence
            && let Some(real_server) = persistence.lookup(client, now)
            && !tried.contains(&real_server.address)
        {
            return Some(Arc::clone(real_server));
        }
        let candidates = Candidates::new(&self.rotation, tried);
        let picked = self.scheduler.pick(request, candidates)?;
        let real_server = Arc::clone(&self.rotation[picked]);
        if tried.is_empty()
            && let Some(persistence) = &mut self.persistence
        {
            persistence.reserve(client, &real_server, now);
        }
        Some(real_server)
    }

    /// A connection of `client` has succeeded. Returns what the connection holds
    /// while it is open.
    pub(super) fn connected(
        &mut self,
        client: IpAddr,
        real_server: &Arc<RealServer>,
        now: Instant,
    ) -> Option<Arc<()>> {
        // An endpoint may have gone while it was being dialled.
        if !real_server.takes_new_flows() {
            return None;
        }
        let persistence = self.persistence.as_mut()?;
        Some(persistence.confirm(client, real_server, now))
    }

    /// Programs the endpoints: `wanted` take new flows, `serving` keep the ones
    /// they have.
    pub(super) fn set_real_servers(&mut self, wanted: &[SocketAddr], serving: &[SocketAddr]) {
        // Before, so that one that comes back without a flow starts anew.
        self.forget_idle();
        self.set_rotation(wanted);
        self.forget_idle();
        if serving.is_empty() {
            // kube-proxy's rule: without any serving endpoint, nothing is stale.
            return;
        }
        let serving: HashSet<_> = serving.iter().chain(wanted).collect();
        for real_server in self.rotation.iter().chain(&self.draining) {
            real_server.set_retired(!serving.contains(&real_server.address));
        }
    }

    pub(super) fn set_persistence(&mut self, timeout: Option<Duration>) {
        match (&mut self.persistence, timeout) {
            (Some(persistence), Some(timeout)) => persistence.set_timeout(timeout),
            (persistence, timeout) => *persistence = timeout.map(Persistence::new),
        }
    }

    /// The virtual server is gone: nothing takes new flows, everything is retired.
    pub(super) fn remove(&mut self) {
        self.set_rotation(&[]);
        self.persistence = None;
        for real_server in self.draining.drain(..) {
            real_server.set_retired(true);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rotation.is_empty()
    }

    pub(super) fn persistence_timeout(&self) -> Option<Duration> {
        self.persistence.as_ref().map(Persistence::timeout)
    }

    /// Sorted by address; those that drain only while they have flows.
    pub(super) fn views(&self) -> Vec<RealServerView> {
        let draining = self
            .draining
            .iter()
            .filter(|real_server| real_server.active() > 0 || real_server.inactive() > 0);
        let mut views: Vec<_> = self
            .rotation
            .iter()
            .chain(draining)
            .map(|real_server| RealServerView::from(&**real_server))
            .collect();
        views.sort_unstable_by_key(|view| view.address);
        views
    }

    /// Adds, then removes, as kube-proxy's `syncEndpoint` does: new real servers
    /// go to the head of the list one after the other, so the last one of
    /// `wanted` stands first. One that comes back while it drains is added like a
    /// new one, with the flows and counters it has.
    fn set_rotation(&mut self, wanted: &[SocketAddr]) {
        let mut present: HashSet<_> = self.rotation.iter().map(|server| server.address).collect();
        let mut rotation = Vec::with_capacity(wanted.len());
        for address in wanted {
            // A duplicate would get a second share.
            if present.insert(*address) {
                rotation.push(self.revive_or_new(*address));
            }
        }
        rotation.reverse();
        let added = rotation.len();

        let wanted: HashSet<_> = wanted.iter().collect();
        let kept: Vec<_> = self
            .rotation
            .iter()
            .map(|server| wanted.contains(&server.address))
            .collect();
        if added == 0 && kept.iter().all(|kept| *kept) {
            return;
        }
        for (server, kept) in self.rotation.drain(..).zip(&kept) {
            if *kept {
                rotation.push(server);
            } else {
                server.set_weight(0);
                self.draining.push(server);
            }
        }
        self.rotation = rotation;
        self.scheduler.changed(&Update {
            servers: &self.rotation,
            added,
            kept: &kept,
        });
        if let Some(persistence) = &mut self.persistence {
            persistence.forget_drained();
        }
    }

    /// Forgets those that drain and have no flow left.
    fn forget_idle(&mut self) {
        // Whoever has a flow holds the real server, and nobody else can get hold
        // of one that only this list has.
        self.draining.retain(|server| Arc::strong_count(server) > 1);
    }

    fn revive_or_new(&mut self, address: SocketAddr) -> Arc<RealServer> {
        match self
            .draining
            .iter()
            .position(|server| server.address == address)
        {
            Some(index) => {
                let server = self.draining.swap_remove(index);
                server.set_weight(DEFAULT_WEIGHT);
                server
            }
            None => Arc::new(RealServer::new(address, DEFAULT_WEIGHT)),
        }
    }
}
