//! The two rotations of one virtual address: for clients inside, and for those
//! outside where they get other real servers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::RotationMemory;
use super::rotation::Rotation;
use super::virtual_server::Side;
use super::{RealServer, SchedulerKind};

/// Rotations over common real servers: one that is in both is one object with one
/// set of counters.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) inside: Rotation,
    /// Set where clients from outside get other real servers.
    pub(super) outside: Option<Rotation>,
}

impl Sides {
    pub(super) fn new(scheduler: SchedulerKind) -> Self {
        Self {
            inside: Rotation::new(scheduler),
            outside: None,
        }
    }

    /// The same real servers in the same order, of which none was chosen yet, and no
    /// client.
    pub(super) fn anew(&self) -> Self {
        Self {
            inside: self.inside.anew(),
            outside: self.outside.as_ref().map(Rotation::anew),
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

    /// Gives both this scheduler and persistence. The real servers of a rotation
    /// that is not wanted any more are returned.
    pub(super) fn configure(
        &mut self,
        two: bool,
        scheduler: SchedulerKind,
        persistence: Option<Duration>,
    ) -> Vec<Arc<RealServer>> {
        let mut left = Vec::new();
        if !two {
            let gone = self.outside.take();
            left = gone.map_or_else(Vec::new, |gone| gone.servers().to_vec());
        } else if self.outside.is_none() {
            self.outside = Some(Rotation::new(scheduler));
        }
        for rotation in [Some(&mut self.inside), self.outside.as_mut()]
            .into_iter()
            .flatten()
        {
            rotation.set_scheduler(scheduler);
            rotation.set_persistence(persistence);
        }
        left
    }

    /// Gives them these real servers; `supply` makes one that neither had. Those
    /// that left one of them are returned.
    pub(super) fn replace(
        &mut self,
        inside: &[SocketAddr],
        outside: &[SocketAddr],
        mut supply: impl FnMut(SocketAddr) -> Arc<RealServer>,
    ) -> Vec<Arc<RealServer>> {
        let there = by_address(self.outside.iter().flat_map(Rotation::servers));
        let mut left = self.inside.replace(inside, |address| {
            let known = there.get(&address).map(Arc::clone);
            known.unwrap_or_else(|| supply(address))
        });
        if let Some(rotation) = &mut self.outside {
            let here = by_address(self.inside.servers().iter().chain(&left));
            let gone = rotation.replace(outside, |address| {
                let known = here.get(&address).map(Arc::clone);
                known.unwrap_or_else(|| supply(address))
            });
            left.extend(gone);
        }
        left
    }

    /// The real servers of both; one that is in both comes twice.
    pub(super) fn servers(&self) -> impl Iterator<Item = &Arc<RealServer>> {
        let outside = self.outside.iter().flat_map(Rotation::servers);
        self.inside.servers().iter().chain(outside)
    }

    /// What a successor needs of both.
    pub(super) fn memory(&self, now: Instant) -> (RotationMemory, Option<RotationMemory>) {
        let outside = self.outside.as_ref().map(|outside| outside.memory(now));
        (self.inside.memory(now), outside)
    }

    /// Goes on from there.
    pub(super) fn recall(
        &mut self,
        inside: &RotationMemory,
        outside: Option<&RotationMemory>,
        now: Instant,
    ) {
        self.inside.recall(inside, now);
        if let (Some(rotation), Some(memory)) = (&mut self.outside, outside) {
            rotation.recall(memory, now);
        }
    }

    /// Forgets all clients.
    pub(super) fn forget_clients(&mut self) {
        self.inside.forget_clients();
        if let Some(outside) = &mut self.outside {
            outside.forget_clients();
        }
    }
}

/// Real servers by their addresses.
pub(super) fn by_address<'a>(
    servers: impl Iterator<Item = &'a Arc<RealServer>>,
) -> HashMap<SocketAddr, Arc<RealServer>> {
    servers
        .map(|server| (server.address, Arc::clone(server)))
        .collect()
}
