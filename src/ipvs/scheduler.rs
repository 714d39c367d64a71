//! Schedulers: who gets the next flow of a virtual server.
//!
//! Each follows its namesake under `net/netfilter/ipvs/ip_vs_*.c` of the Linux
//! kernel. Two things are ours, and hold for all of them:
//!
//! - Real servers that were tried for this flow and failed are passed over as the
//!   kernel passes over an overloaded one. The fail-over choice is a choice like
//!   any other: it moves the rotation. So while one of N real servers is dead,
//!   the other N-1 still get equal shares; had the rotation stood still, the
//!   successor of the dead one would get two.
//! - An endpoint that is removed leaves the list at once. kube-proxy leaves it
//!   there with weight 0 until its connections end, which a rotation cannot tell
//!   apart, but a hash does: the kernel's sh, dh and mh would refuse clients that
//!   hash to it for that long.

mod dh;
mod hash;
mod lc;
mod mh;
mod nq;
mod rr;
mod sed;
mod sh;
mod wlc;
mod wrr;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{RealServer, SchedulerKind};

/// The scheduler of that name, for an empty list.
pub(super) fn build(kind: SchedulerKind) -> Box<dyn Scheduler> {
    match kind {
        SchedulerKind::Rr => Box::new(rr::RoundRobin::default()),
        SchedulerKind::Wrr => Box::new(wrr::WeightedRoundRobin::default()),
        SchedulerKind::Lc => Box::new(lc::LeastConnection),
        SchedulerKind::Wlc => Box::new(wlc::WeightedLeastConnection),
        SchedulerKind::Sed => Box::new(sed::ShortestExpectedDelay),
        SchedulerKind::Nq => Box::new(nq::NeverQueue),
        SchedulerKind::Sh => Box::new(sh::SourceHash::default()),
        SchedulerKind::Dh => Box::new(dh::DestinationHash::default()),
        SchedulerKind::Mh => Box::new(mh::Maglev::default()),
    }
}

/// Chooses among the real servers of one virtual server.
pub(super) trait Scheduler: CloneBox + fmt::Debug + Send {
    /// The list has changed.
    fn changed(&mut self, update: &Update<'_>);

    /// Where it stands in its list, for a successor with the same list; nothing if it
    /// has no position.
    fn position(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Goes on from where another stood. What makes no sense is left out.
    fn resume(&mut self, _position: &[u32], _len: usize) {}

    /// The index of the real server for a new flow, if one is usable.
    fn pick(&mut self, request: &Request, candidates: Candidates<'_>) -> Option<usize>;
}

/// Copies a scheduler with its position, to look ahead without moving it.
pub(super) trait CloneBox {
    /// The copy.
    fn clone_box(&self) -> Box<dyn Scheduler>;
}

impl<T: Scheduler + Clone + 'static> CloneBox for T {
    fn clone_box(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

/// What the hash schedulers look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Who asks.
    pub(super) client: SocketAddr,
    /// The address asked for.
    pub(super) virtual_ip: IpAddr,
}

/// How the list of real servers has changed: new ones were put at its head, then
/// some were taken out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update<'a> {
    /// The list as it is now, from its head.
    pub(super) servers: &'a [Arc<RealServer>],
    /// How many were put at the head.
    pub(super) added: usize,
    /// For each of the list before: whether it is still in.
    pub(super) kept: &'a [bool],
}

/// The list and what may be chosen from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'a> {
    servers: &'a [Arc<RealServer>],
    tried: &'a [SocketAddr],
}

impl<'a> Candidates<'a> {
    pub(super) fn new(servers: &'a [Arc<RealServer>], tried: &'a [SocketAddr]) -> Self {
        Self { servers, tried }
    }

    fn len(self) -> usize {
        self.servers.len()
    }

    fn usable(self, index: usize) -> bool {
        self.servers
            .get(index)
            .is_some_and(|server| server.takes_new_flows() && !self.tried.contains(&server.address))
    }

    /// The usable ones with their indices, from the head of the list.
    fn iter_usable(self) -> impl Iterator<Item = (usize, &'a RealServer)> {
        self.servers
            .iter()
            .enumerate()
            .filter(move |(index, _)| self.usable(*index))
            .map(|(index, server)| (index, &**server))
    }
}
