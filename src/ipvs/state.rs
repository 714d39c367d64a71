//! What a virtual server keeps behind its lock: its rotations, and the real servers
//! that drain.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::memory::{PlaceMemory, ServerMemory};
use super::real_server::DEFAULT_WEIGHT;
use super::rotation::Rotation;
use super::sides::{Sides, by_address};
use super::virtual_server::Side;
use super::{RealServer, RealServerView, SchedulerKind, VirtualAddress};
use crate::service::VirtualServerSpec;

/// Most addresses of the node at which one node port has rotations of its own; at
/// others it shares one. A node has a few, but a socket that listens on all of them
/// also answers at whole networks that somebody made local (ip-route(8), `local`).
pub(super) const MAX_PLACES: usize = 256;

/// The state of one virtual server.
#[derive(Debug)]
pub(super) struct State {
    /// At its address. Of a node port: at none of the node's in particular; as all
    /// others have its real servers, it is what each of them begins as.
    common: Sides,
    /// Of a node port: at the addresses of the node where it was asked, since each is
    /// a virtual server of its own to kube-proxy's IPVS mode.
    places: BTreeMap<IpAddr, Sides>,
    /// Those that are in no rotation any more and still have flows.
    draining: Vec<Arc<RealServer>>,
}

impl State {
    pub(super) fn new(scheduler: SchedulerKind) -> Self {
        Self {
            common: Sides::new(scheduler),
            places: BTreeMap::new(),
            draining: Vec::new(),
        }
    }

    /// The rotation for clients on that side, at an address of the node if it is a
    /// node port's.
    pub(super) fn rotation(&self, side: Side, place: Option<IpAddr>) -> &Rotation {
        let there = place.and_then(|place| self.places.get(&canonical(place)));
        there.unwrap_or(&self.common).rotation(side)
    }

    /// The same, to choose from.
    pub(super) fn rotation_mut(&mut self, side: Side, place: Option<IpAddr>) -> &mut Rotation {
        self.sides_mut(place).rotation_mut(side)
    }

    /// Makes it as `spec` says.
    pub(super) fn program(&mut self, spec: &VirtualServerSpec, scheduler: SchedulerKind) {
        let two = spec.external.is_some();
        let mut left = self.common.configure(two, scheduler, spec.persistence);
        for sides in self.places.values_mut() {
            left.extend(sides.configure(two, scheduler, spec.persistence));
        }
        self.drain(left);
        // Before, so that one that comes back without a flow starts anew.
        self.forget_idle();
        self.set_real_servers(
            &spec.real_servers,
            spec.external.as_deref().unwrap_or_default(),
        );
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
        for real_server in self.common.servers().chain(&self.draining) {
            real_server.set_retired(!serving.contains(&real_server.address));
        }
    }

    /// The node has lost its other addresses.
    pub(super) fn retain_places(&mut self, is_there: impl Fn(IpAddr) -> bool) {
        self.places.retain(|place, _| is_there(*place));
    }

    /// The virtual server is gone: nothing takes new flows, everything is retired.
    pub(super) fn remove(&mut self) {
        self.set_real_servers(&[], &[]);
        self.common.forget_clients();
        self.common.outside = None;
        self.places.clear();
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
            .common
            .servers()
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
        let mut rotating = self.common.servers();
        rotating.find(|server| server.address == address)
    }

    /// One that takes no new flows, while there is none that does: as with kube-proxy no
    /// flow is stale then.
    pub(super) fn left(&mut self, address: SocketAddr) -> Option<Arc<RealServer>> {
        if self.common.servers().next().is_some() {
            return None;
        }
        let mut left = self.draining.iter();
        if let Some(server) = left.find(|server| server.address == address) {
            return Some(Arc::clone(server));
        }
        let server = Arc::new(RealServer::new(address, 0));
        self.draining.push(Arc::clone(&server));
        Some(server)
    }

    /// What a successor needs.
    pub(super) fn memory(
        &self,
        address: VirtualAddress,
        service: String,
        now: Instant,
    ) -> ServerMemory {
        let (inside, outside) = self.common.memory(now);
        let place = |(address, sides): (&IpAddr, &Sides)| {
            let (inside, outside) = sides.memory(now);
            PlaceMemory {
                address: *address,
                inside,
                outside,
            }
        };
        ServerMemory {
            address,
            service,
            inside,
            outside,
            places: self.places.iter().map(place).collect(),
        }
    }

    /// Goes on from there.
    pub(super) fn recall(&mut self, memory: &ServerMemory, now: Instant) {
        self.common
            .recall(&memory.inside, memory.outside.as_ref(), now);
        for its in &memory.places {
            let sides = self.sides_mut(Some(its.address));
            sides.recall(&its.inside, its.outside.as_ref(), now);
        }
    }

    fn sides_mut(&mut self, place: Option<IpAddr>) -> &mut Sides {
        let Some(place) = place.map(canonical) else {
            return &mut self.common;
        };
        if self.places.len() >= MAX_PLACES && !self.places.contains_key(&place) {
            return &mut self.common;
        }
        let common = &self.common;
        self.places.entry(place).or_insert_with(|| common.anew())
    }

    fn set_real_servers(&mut self, inside: &[SocketAddr], outside: &[SocketAddr]) {
        let draining = &mut self.draining;
        let supply = |address| revive_or_new(draining, address);
        let left = self.common.replace(inside, outside, supply);
        if !self.places.is_empty() {
            let known = by_address(self.common.servers());
            for sides in self.places.values_mut() {
                sides.replace(inside, outside, |address| match known.get(&address) {
                    Some(server) => Arc::clone(server),
                    // The common rotations have all of them.
                    None => Arc::new(RealServer::new(address, DEFAULT_WEIGHT)),
                });
            }
        }
        self.drain(left);
    }

    /// Takes those that left a rotation and are in no other one.
    fn drain(&mut self, mut left: Vec<Arc<RealServer>>) {
        if left.is_empty() {
            return;
        }
        let rotating: HashSet<_> = self.common.servers().map(|s| s.address).collect();
        // Several rotations may have lost the same one.
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

/// All of 127.0.0.0/8 is one address: a client may choose any of them.
fn canonical(place: IpAddr) -> IpAddr {
    if place.is_ipv4() && place.is_loopback() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        place
    }
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
