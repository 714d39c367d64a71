//! One address, port and protocol that clients send to.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::scheduler::Request;
use super::state::State;
use super::{
    Connection, DropReason, RealServer, RealServerView, RejectReason, SchedulerKind,
    ServicePortName, Verdict, VirtualAddress, VirtualServerView, lock,
};
use crate::service::{VirtualServerSpec, WhenEmpty};

/// A virtual server: one rotation over its real servers, and one memory of its
/// clients, shared by all workers.
///
/// A worker that still holds one after its service was removed gets no real
/// server from it any more.
#[derive(Debug)]
pub struct VirtualServer {
    /// Where clients send to.
    pub address: VirtualAddress,
    /// The service port it belongs to.
    pub service: Arc<ServicePortName>,
    scheduler: SchedulerKind,
    /// Shared by the virtual servers that follow one another when only the name
    /// of the port changes.
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    availability: AtomicU8,
    state: Mutex<State>,
}

impl VirtualServer {
    /// The real server for a new flow of `client`, or none if there is none, or
    /// none but those in `tried`.
    ///
    /// `tried` are those that failed this flow already. A client with an entry in
    /// the persistence table gets that real server first, unless it was tried;
    /// the entry is only moved by [`connected`](Self::connected). The first
    /// choice for a client without an entry is kept for it, so that connections
    /// it opens at the same time go to the same real server.
    ///
    /// A choice after a failure moves the rotation like any other: it takes the
    /// next one after the latest choice, whoever made that, so while one of N real
    /// servers is dead the other N-1 get equal shares. A persistent choice does
    /// not move it.
    pub fn schedule(
        &self,
        client: SocketAddr,
        now: Instant,
        tried: &[SocketAddr],
    ) -> Option<Arc<RealServer>> {
        let request = Request {
            client,
            virtual_ip: self.address.ip,
        };
        lock(&self.shared.state).schedule(&request, now, tried)
    }

    /// The attempt that `connection` counts has succeeded, or a UDP flow of it
    /// has begun: makes, refreshes or moves the persistence entry of `client`,
    /// which then lives at least as long as `connection`. Nothing happens without
    /// session affinity, or if the real server takes no new flows by now.
    pub fn connected(&self, client: IpAddr, connection: &mut Connection, now: Instant) {
        let control = lock(&self.shared.state).connected(client, connection.real_server(), now);
        if let Some(control) = control {
            connection.hold(control);
        }
    }

    /// What to do with a flow that [`schedule`](Self::schedule) has nobody for
    /// although none was tried: what was usable when the verdict was given has
    /// gone since.
    pub fn refusal(&self) -> Verdict {
        match self.availability() {
            Availability::Usable | Availability::Reject => {
                Verdict::Reject(RejectReason::NoEndpoints)
            }
            Availability::Drop => Verdict::Drop(DropReason::NoLocalEndpoint),
            Availability::Removed => Verdict::Drop(DropReason::UnknownAddress),
        }
    }

    /// Its real servers, sorted by address.
    pub fn real_servers(&self) -> Vec<RealServerView> {
        lock(&self.shared.state).views()
    }

    /// All that `list` shows of it.
    pub fn view(&self) -> VirtualServerView {
        let state = lock(&self.shared.state);
        VirtualServerView {
            address: self.address,
            service: Arc::clone(&self.service),
            scheduler: self.scheduler,
            persistence: state.persistence_timeout(),
            real_servers: state.views(),
        }
    }

    pub(super) fn new(spec: &VirtualServerSpec, scheduler: SchedulerKind) -> Self {
        let new = Self {
            address: spec.address,
            service: Arc::clone(&spec.service),
            scheduler,
            shared: Arc::new(Shared {
                availability: AtomicU8::new(Availability::Reject as u8),
                state: Mutex::new(State::new(scheduler)),
            }),
        };
        new.program(spec);
        new
    }

    /// The same virtual server under another name.
    pub(super) fn renamed(&self, service: &Arc<ServicePortName>) -> Self {
        Self {
            address: self.address,
            service: Arc::clone(service),
            scheduler: self.scheduler,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Makes it as `spec` says, except for its name.
    pub(super) fn program(&self, spec: &VirtualServerSpec) {
        let mut state = lock(&self.shared.state);
        state.set_persistence(spec.persistence);
        state.set_real_servers(&spec.real_servers, &spec.serving);
        let availability = match (state.is_empty(), spec.when_empty) {
            (false, _) => Availability::Usable,
            (true, WhenEmpty::Reject) => Availability::Reject,
            (true, WhenEmpty::Drop) => Availability::Drop,
        };
        self.set_availability(availability);
    }

    pub(super) fn remove(&self) {
        let mut state = lock(&self.shared.state);
        state.remove();
        self.set_availability(Availability::Removed);
    }

    /// Whether there is anybody to choose from.
    pub(super) fn is_usable(&self) -> bool {
        self.availability() == Availability::Usable
    }

    fn availability(&self) -> Availability {
        Availability::from_u8(self.shared.availability.load(Relaxed))
    }

    /// Called with the state locked, so that the two agree.
    fn set_availability(&self, availability: Availability) {
        self.shared.availability.store(availability as u8, Relaxed);
    }
}

/// What a verdict needs to know, readable without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Availability {
    Usable,
    Reject,
    Drop,
    Removed,
}

impl Availability {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Usable,
            1 => Self::Reject,
            2 => Self::Drop,
            _ => Self::Removed,
        }
    }
}
