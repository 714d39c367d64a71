//! What a virtual server keeps behind its lock: the rotation, a second one for
//! clients from outside where they get other real servers, and those that drain.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::memory::{RotationMemory, ServerMemory};
use super::real_server::DEFAULT_WEIGHT;
use super::rotation::Rotation;
use super::virtual_server::Side;
use super::{RealServer, RealServerView, SchedulerKind};
use crate::service::VirtualServerSpec;

/// The state of one virtual server. A real server that is in both rotations is
/// one object with one set of counters.
#[derive(Debug)]
pub(super) struct State {
    inside: Rotation,
    /// Set where clients from outside get other real servers.
    outside: Option<Rotation>,
    /// Those that are in no rotation any more and still have flows.
    draining: Vec<Arc<RealServer>>,
}

impl State {
    pub(super) fn new(scheduler: SchedulerKind) -> Self {
        Self {
            inside: Rotation::new(scheduler),
            outside: None,
            draining: Vec::new(),
        }
    }

    /// The rotation for clients on that side.
    pub(super) fn rotation(&self, side: Side) -> &Rotation {
        match (side, &self.outside) {
            (Side::Outside, Some(outside)) => outside,
            (Side::Inside | Side::Outside, _) => &self.inside,
        }
    }

    /// The same, to choose from.
    pub(super) fn rotation_mut(&mut self, side: Side) -> &mut Rotation {
        match (side, &mut self.outside) {
            (Side::Outside, Some(outside)) => outside,
            (Side::Inside | Side::Outside, _) => &mut self.inside,
        }
    }

    /// Makes it as `spec` says.
    pub(super) fn program(&mut self, spec: &VirtualServerSpec, scheduler: SchedulerKind) {
        match (&self.outside, &spec.external) {
            (None, Some(_)) => self.outside = Some(Rotation::new(scheduler)),
            (Some(_), None) => self.drop_outside(),
            (Some(_), Some(_)) | (None, None) => {}
        }
        for rotation in [Some(&mut self.inside), self.outside.as_mut()]
            .into_iter()
            .flatten()
        {
            rotation.set_scheduler(scheduler);
            rotation.set_persistence(spec.persistence);
        }
        // Before, so that one that comes back without a flow starts anew.
        self.forget_idle();
        self.set_real_servers(&spec.real_servers, spec.external.as_deref());
        self.forget_idle();
        if spec.serving.is_empty() {
            // kube-proxy's rule: without any serving endpoint, nothing is stale.
            return;
        }
        let serving: HashSet<_> = spec
            .serving
            .iter()
            .chain(&spec.real_servers)
            .chain(spec.external.iter().flatten())
            .collect();
        for real_server in self.rotating().chain(&self.draining) {
            real_server.set_retired(!serving.contains(&real_server.address));
        }
    }

    /// The virtual server is gone: nothing takes new flows, everything is retired.
    pub(super) fn remove(&mut self) {
        self.set_real_servers(&[], Some(&[]));
        self.inside.forget_clients();
        self.outside = None;
        for real_server in self.draining.drain(..) {
            real_server.set_retired(true);
        }
    }

    /// Sorted by address; those that drain only while they have flows.
    pub(super) fn views(&self) -> Vec<RealServerView> {
        let draining = self
            .draining
            .iter()
            .filter(|real_server| real_server.active() > 0 || real_server.inactive() > 0);
        let mut views: Vec<_> = self
            .rotating()
            .chain(draining)
            .map(|real_server| RealServerView::from(&**real_server))
            .collect();
        views.sort_unstable_by_key(|view| view.address);
        // One that is in both rotations is one object.
        views.dedup_by_key(|view| view.address);
        views
    }

    /// The one that takes new flows at this address.
    pub(super) fn real_server(&self, address: SocketAddr) -> Option<&Arc<RealServer>> {
        self.rotating().find(|server| server.address == address)
    }

    /// What a successor needs: the rotation for clients inside, and the one for those
    /// outside where it is another.
    pub(super) fn memory(&self, now: Instant) -> (RotationMemory, Option<RotationMemory>) {
        let outside = self.outside.as_ref().map(|outside| outside.memory(now));
        (self.inside.memory(now), outside)
    }

    /// Goes on from there.
    pub(super) fn recall(&mut self, memory: &ServerMemory, now: Instant) {
        self.inside.recall(&memory.inside, now);
        if let (Some(rotation), Some(memory)) = (&mut self.outside, &memory.outside) {
            rotation.recall(memory, now);
        }
    }

    fn rotating(&self) -> impl Iterator<Item = &Arc<RealServer>> {
        let outside = self.outside.iter().flat_map(Rotation::servers);
        self.inside.servers().iter().chain(outside)
    }

    fn set_real_servers(&mut self, inside: &[SocketAddr], outside: Option<&[SocketAddr]>) {
        let draining = &mut self.draining;
        let there = by_address(self.outside.iter().flat_map(Rotation::servers));
        let mut left = self.inside.replace(inside, |address| {
            let known = there.get(&address).map(Arc::clone);
            known.unwrap_or_else(|| revive_or_new(draining, address))
        });
        if let Some(rotation) = &mut self.outside {
            let here = by_address(self.inside.servers().iter().chain(&left));
            let gone = rotation.replace(outside.unwrap_or_default(), |address| {
                let known = here.get(&address).map(Arc::clone);
                known.unwrap_or_else(|| revive_or_new(draining, address))
            });
            left.extend(gone);
        }
        self.drain(left);
    }

    fn drop_outside(&mut self) {
        if let Some(outside) = self.outside.take() {
            self.drain(outside.servers().to_vec());
        }
    }

    /// Takes those that left a rotation and are in no other one.
    fn drain(&mut self, mut left: Vec<Arc<RealServer>>) {
        if left.is_empty() {
            return;
        }
        let rotating: HashSet<_> = self.rotating().map(|server| server.address).collect();
        // Both rotations may have lost the same one.
        left.sort_unstable_by_key(|server| server.address);
        left.dedup_by_key(|server| server.address);
        left.retain(|server| !rotating.contains(&server.address));
        for server in &left {
            server.set_weight(0);
        }
        self.draining.append(&mut left);
    }

    /// Forgets those that drain and have no flow left.
    fn forget_idle(&mut self) {
        // Whoever has a flow holds the real server, and nobody else can get hold
        // of one that only this list has.
        self.draining.retain(|server| Arc::strong_count(server) > 1);
    }
}

fn by_address<'a>(
    servers: impl Iterator<Item = &'a Arc<RealServer>>,
) -> HashMap<SocketAddr, Arc<RealServer>> {
    servers
        .map(|server| (server.address, Arc::clone(server)))
        .collect()
}

/// One that comes back while it drains is taken like a new one, with the flows
/// and counters it has.
fn revive_or_new(draining: &mut Vec<Arc<RealServer>>, address: SocketAddr) -> Arc<RealServer> {
    match draining.iter().position(|server| server.address == address) {
        Some(index) => {
            let server = draining.swap_remove(index);
            server.set_weight(DEFAULT_WEIGHT);
            server
        }
        None => Arc::new(RealServer::new(address, DEFAULT_WEIGHT)),
    }
}
