//! One address, port and protocol that clients send to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::memory::ServerMemory;
use super::scheduler::Request;
use super::state::State;
use super::traffic::Traffic;
use super::{
    Connection, DropReason, RealServer, RealServerView, RejectReason, SchedulerKind,
    ServicePortName, Verdict, VirtualAddress, VirtualServerView, lock,
};
use crate::service::{Exposure, ProxyProtocol, VirtualServerSpec, WhenEmpty};

/// A virtual server as clients of one side meet it: one rotation over its real
/// servers, and one memory of its clients, shared by all workers. A node port has
/// both for each address of the node, as it is a virtual server each to kube-proxy's
/// IPVS mode; counters and open flows are those of the node port as a whole.
///
/// A worker that still holds one after its service was removed gets no real
/// server from it any more.
#[derive(Debug)]
pub struct VirtualServer {
    /// Where clients send to; the unspecified address for a node port.
    pub address: VirtualAddress,
    /// The service port it belongs to.
    pub service: Arc<ServicePortName>,
    /// Which kind of address it is.
    pub exposure: Exposure,
    /// The PROXY protocol header that each connection to a real server begins
    /// with, if any.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whether finished flows are logged, if the Service or its Namespace says so.
    pub access_log: Option<bool>,
    scheduler: SchedulerKind,
    side: Side,
    /// Of a node port: the address of the node that is asked.
    place: Option<IpAddr>,
    /// Shared by both sides, and by the virtual servers that follow one another
    /// when only what is above changes.
    shared: Arc<Shared>,
}

/// Which clients a rotation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// This node and its pods, and everybody where there is one rotation.
    Inside,
    /// All others, where they get other real servers.
    Outside,
}

#[derive(Debug)]
struct Shared {
    inside: AtomicU8,
    outside: AtomicU8,
    traffic: Traffic,
    /// A real server was seen to say something before its client did.
    speaks_first: AtomicBool,
    state: Mutex<State>,
}

/// What is to be expected, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The real server that the client stays with, and how long at least.
    pub persistent: Option<(SocketAddr, Duration)>,
    /// Whom the scheduler would choose next.
    pub next: Option<SocketAddr>,
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
            virtual_ip: self.virtual_ip(),
        };
        let mut state = lock(&self.shared.state);
        let rotation = state.rotation_mut(self.side, self.place);
        rotation.schedule(&request, now, tried)
    }

    /// The attempt that `connection` counts has succeeded, or a UDP flow of it
    /// has begun: makes, refreshes or moves the persistence entry of `client`,
    /// which then lives at least as long as `connection`. Nothing happens without
    /// session affinity, or if the real server takes no new flows by now.
    pub fn connected(&self, client: IpAddr, connection: &mut Connection, now: Instant) {
        self.shared.traffic.opened();
        let mut state = lock(&self.shared.state);
        let rotation = state.rotation_mut(self.side, self.place);
        let control = rotation.connected(client, connection.real_server(), now);
        if let Some(control) = control {
            connection.hold(control);
        }
    }

    /// An attempt to connect to one of its real servers was refused, timed out or
    /// could not be made: counts it on both.
    pub fn attempt_failed(&self, real_server: &RealServer) {
        real_server.attempt_failed();
        self.shared.traffic.attempt_failed();
    }

    /// Counts payload bytes of a flow to one of its real servers, from the client and
    /// to it, on both.
    pub fn carried(&self, real_server: &RealServer, bytes_in: u64, bytes_out: u64) {
        real_server.add_bytes_in(bytes_in);
        real_server.add_bytes_out(bytes_out);
        self.shared.traffic.carried(bytes_in, bytes_out);
    }

    /// True once a real server of it has spoken first, as those of SMTP, SSH or MySQL do.
    pub fn speaks_first(&self) -> bool {
        self.shared.speaks_first.load(Relaxed)
    }

    /// Remembers that a real server of it has spoken first.
    pub fn spoke_first(&self) {
        if !self.speaks_first() {
            self.shared.speaks_first.store(true, Relaxed);
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

    /// What a new flow of `client` is to expect; nothing moves. Without a client,
    /// one that nothing is remembered of and that every hash takes for 0.
    pub fn forecast(&self, client: Option<SocketAddr>, now: Instant) -> Forecast {
        let unspecified = match self.address.ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let request = Request {
            client: client.unwrap_or_else(|| SocketAddr::new(unspecified, 0)),
            virtual_ip: self.virtual_ip(),
        };
        let state = lock(&self.shared.state);
        let rotation = state.rotation(self.side, self.place);
        Forecast {
            persistent: client.and_then(|client| rotation.persistent(client.ip(), now)),
            next: rotation.peek(&request),
        }
    }

    /// Counts a flow that another process has, or had, to one of the real servers that
    /// take new flows; none if it is not among them.
    pub fn adopt(&self, real_server: SocketAddr, established: bool) -> Option<Connection> {
        let state = lock(&self.shared.state);
        let mut connection = Connection::new(Arc::clone(state.real_server(real_server)?));
        drop(state);
        if established {
            connection.established();
        }
        Some(connection)
    }

    /// Counts a flow that another process had to a real server that is not served by any
    /// more, as long as there is no other; none if there is.
    pub fn adopt_left(&self, real_server: SocketAddr) -> Option<Connection> {
        let left = lock(&self.shared.state).left(real_server)?;
        Some(Connection::new(left))
    }

    /// What a successor of this process needs to know of it.
    pub(super) fn memory(&self, now: Instant) -> ServerMemory {
        let state = lock(&self.shared.state);
        state.memory(self.address, self.service.to_string(), now)
    }

    /// Goes on from where another stood, if that was of the same service port.
    pub(super) fn recall(&self, memory: &ServerMemory, now: Instant) {
        if memory.service == self.service.to_string() {
            lock(&self.shared.state).recall(memory, now);
        }
    }

    /// The scheduler it has.
    pub fn scheduler(&self) -> SchedulerKind {
        self.scheduler
    }

    /// All that `list` shows of it.
    pub fn view(&self) -> VirtualServerView {
        let state = lock(&self.shared.state);
        VirtualServerView {
            address: self.address,
            service: Arc::clone(&self.service),
            exposure: self.exposure,
            scheduler: self.scheduler,
            persistence: state.rotation(Side::Inside, None).persistence_timeout(),
            traffic: self.shared.traffic.view(),
            real_servers: state.views(),
        }
    }

    /// A virtual server, for clients inside.
    pub(super) fn new(spec: &VirtualServerSpec, scheduler: SchedulerKind) -> Self {
        let reject = || AtomicU8::new(Availability::Reject as u8);
        let shared = Arc::new(Shared {
            inside: reject(),
            outside: reject(),
            traffic: Traffic::default(),
            speaks_first: AtomicBool::new(false),
            state: Mutex::new(State::new(scheduler)),
        });
        Self::over(shared, spec, scheduler, Side::Inside)
    }

    /// The same virtual server as `spec` names it, for clients of that side.
    pub(super) fn as_in(
        &self,
        spec: &VirtualServerSpec,
        scheduler: SchedulerKind,
        side: Side,
    ) -> Self {
        Self::over(Arc::clone(&self.shared), spec, scheduler, side)
    }

    /// A node port as it is met at an address of the node.
    pub(super) fn at(&self, place: IpAddr) -> Self {
        Self {
            service: Arc::clone(&self.service),
            shared: Arc::clone(&self.shared),
            // Of no address in particular: the common one.
            place: (!place.is_unspecified()).then_some(place),
            ..*self
        }
    }

    /// The node has no other addresses than these.
    pub(super) fn retain_places(&self, is_there: impl Fn(IpAddr) -> bool) {
        lock(&self.shared.state).retain_places(is_there);
    }

    /// What a client sends to.
    fn virtual_ip(&self) -> IpAddr {
        self.place.unwrap_or(self.address.ip)
    }

    fn over(
        shared: Arc<Shared>,
        spec: &VirtualServerSpec,
        scheduler: SchedulerKind,
        side: Side,
    ) -> Self {
        Self {
            address: spec.address,
            service: Arc::clone(&spec.service),
            exposure: spec.exposure,
            proxy_protocol: spec.proxy_protocol,
            access_log: spec.access_log,
            scheduler,
            side,
            place: None,
            shared,
        }
    }

    /// Whether `spec` gives it the names it has.
    pub(super) fn is_named(&self, spec: &VirtualServerSpec, scheduler: SchedulerKind) -> bool {
        self.service == spec.service
            && self.exposure == spec.exposure
            && self.proxy_protocol == spec.proxy_protocol
            && self.access_log == spec.access_log
            && self.scheduler == scheduler
    }

    /// Gives it the real servers, scheduler and persistence of `spec`.
    pub(super) fn program(&self, spec: &VirtualServerSpec) {
        let mut state = lock(&self.shared.state);
        state.program(spec, self.scheduler);
        let inside = Availability::of(&spec.real_servers, spec.when_empty);
        let outside = match &spec.external {
            Some(external) => Availability::of(external, spec.external_when_empty),
            None => inside,
        };
        self.set_availability(inside, outside);
    }

    pub(super) fn remove(&self) {
        let mut state = lock(&self.shared.state);
        state.remove();
        self.set_availability(Availability::Removed, Availability::Removed);
    }

    /// What becomes of a flow that is let in.
    pub(super) fn verdict(self: &Arc<Self>) -> Verdict {
        if self.availability() == Availability::Usable {
            Verdict::Forward(Arc::clone(self))
        } else {
            self.refusal()
        }
    }

    fn availability(&self) -> Availability {
        let availability = match self.side {
            Side::Inside => &self.shared.inside,
            Side::Outside => &self.shared.outside,
        };
        Availability::from_u8(availability.load(Relaxed))
    }

    /// Called with the state locked, so that the two agree.
    fn set_availability(&self, inside: Availability, outside: Availability) {
        self.shared.inside.store(inside as u8, Relaxed);
        self.shared.outside.store(outside as u8, Relaxed);
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
    fn of(real_servers: &[SocketAddr], when_empty: WhenEmpty) -> Self {
        match (real_servers.is_empty(), when_empty) {
            (false, _) => Self::Usable,
            (true, WhenEmpty::Reject) => Self::Reject,
            (true, WhenEmpty::Drop) => Self::Drop,
        }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Usable,
            1 => Self::Reject,
            2 => Self::Drop,
            _ => Self::Removed,
        }
    }
}
