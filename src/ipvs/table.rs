//! The service table: where control plane and data plane meet.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Occupancy;
use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::client::{counts_as_pod, is_admitted};
use super::virtual_server::Side;
use super::{
    ClientOrigin, Connection, DropReason, EchoVerdict, Protocol, RejectReason, SchedulerKind,
    ServerMemory, ServicePortName, Verdict, VirtualAddress, VirtualServer, VirtualServerView, lock,
};
use crate::service::address::Family;
use crate::service::{Change, Exposure, NodeNetwork, VirtualServerSpec};

/// All virtual servers, by address. Share it as `Arc<Table>`.
///
/// It starts unsynced: every verdict is a drop until
/// [`set_synced`](Self::set_synced).
#[derive(Debug)]
pub struct Table {
    /// Of virtual servers that ask for none. Written under `writer`.
    scheduler: RwLock<SchedulerKind>,
    servers: DashMap<VirtualAddress, Entry, RandomState>,
    /// How many virtual servers each virtual IP has.
    virtual_ips: DashMap<IpAddr, usize, RandomState>,
    /// Held by whoever changes the table: the two maps change together.
    writer: Mutex<()>,
    /// Read only for flows to which it matters where the client is.
    network: RwLock<NodeNetwork>,
    synced: AtomicBool,
    draining: AtomicBool,
}

/// What stands under one address.
#[derive(Clone, Debug)]
struct Entry {
    inside: Arc<VirtualServer>,
    /// Set where clients from outside get other real servers.
    outside: Option<Arc<VirtualServer>>,
    /// Who is let in, if not everybody.
    source_ranges: Option<Arc<[IpNet]>>,
}

impl Table {
    /// An empty table whose virtual servers will use `scheduler`.
    pub fn new(scheduler: SchedulerKind) -> Self {
        Self {
            scheduler: RwLock::new(scheduler),
            servers: DashMap::default(),
            virtual_ips: DashMap::default(),
            writer: Mutex::new(()),
            network: RwLock::default(),
            synced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// The scheduler of virtual servers that ask for none.
    pub fn scheduler(&self) -> SchedulerKind {
        let scheduler = self.scheduler.read();
        *scheduler.unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual servers that ask for no scheduler get this one with their next
    /// [`Change::Upsert`].
    pub fn set_scheduler(&self, scheduler: SchedulerKind) {
        let _writer = lock(&self.writer);
        let current = self.scheduler.write();
        *current.unwrap_or_else(PoisonError::into_inner) = scheduler;
    }

    /// Makes one change. It touches one virtual server and no other.
    ///
    /// An update keeps the scheduler's position, persistence, counters and the
    /// real servers that stay. An address that passes to another Service starts
    /// anew; one whose port is only renamed goes on under the new name. Removing
    /// what is not there does nothing.
    pub fn apply(&self, change: &Change) {
        let _writer = lock(&self.writer);
        match change {
            Change::Upsert(spec) => self.upsert(spec),
            Change::Remove(address) => self.remove(*address),
            Change::Node(network) => self.set_network(network),
            Change::HealthCheck(_) | Change::RemoveHealthCheck(_) => {}
        }
    }

    /// The first full state is programmed: serve.
    pub fn set_synced(&self) {
        // Release: whoever sees this sees the state programmed before it.
        self.synced.store(true, Ordering::Release);
    }

    /// Whether the first full state has been programmed.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Takes no new flows while set; those that run go on.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// What becomes of a new flow of `client` to `address`.
    ///
    /// `is_node` says whether the client has an address of this node. It is asked
    /// only where that matters: for virtual servers whose clients from outside
    /// get other real servers, or with source ranges.
    pub fn verdict(
        &self,
        address: VirtualAddress,
        client: IpAddr,
        is_node: impl FnOnce() -> bool,
    ) -> Verdict {
        // Node ports are no address that a packet can have.
        if address.ip.is_unspecified() {
            return Verdict::Drop(DropReason::UnknownAddress);
        }
        self.judge(address, address.ip, client, is_node)
    }

    /// What becomes of a new flow of `client` that came to a node port at the
    /// address `local` of this node, where it is a virtual server of its own. Without
    /// a service that has the node port it is dropped as for an unknown address.
    pub fn node_port(
        &self,
        local: SocketAddr,
        protocol: Protocol,
        client: IpAddr,
        is_node: impl FnOnce() -> bool,
    ) -> Verdict {
        let family = Family::of(local.ip());
        let address = VirtualAddress::node_port(family, local.port(), protocol);
        match self.judge(address, local.ip(), client, is_node) {
            Verdict::Forward(server) => Verdict::Forward(Arc::new(server.at(local.ip()))),
            refusal @ (Verdict::Reject(_) | Verdict::Drop(_)) => refusal,
        }
    }

    /// What was remembered of node ports at addresses that the node has lost is
    /// forgotten.
    pub fn retain_node_addresses(&self, is_there: impl Fn(IpAddr) -> bool) {
        for entry in &self.servers {
            if entry.inside.exposure == Exposure::NodePort {
                entry.inside.retain_places(&is_there);
            }
        }
    }

    /// Where a client of `virtual_ip` is; `is_node` as for
    /// [`verdict`](Self::verdict).
    pub fn origin(
        &self,
        client: IpAddr,
        virtual_ip: IpAddr,
        is_node: impl FnOnce() -> bool,
    ) -> ClientOrigin {
        ClientOrigin::of(client, virtual_ip, &self.network(), is_node)
    }

    /// Whether a client that is not this node counts as a pod where it reaches a
    /// virtual server of this kind, and so is meant by `--pod-traffic`.
    pub fn counts_as_pod(&self, client: IpAddr, exposure: Exposure) -> bool {
        counts_as_pod(client, exposure, &self.network())
    }

    /// Whether an echo request to `ip` is answered: while any service has the
    /// address, with endpoints or without.
    pub fn echo(&self, ip: IpAddr) -> EchoVerdict {
        if !self.is_synced() {
            EchoVerdict::Drop(DropReason::NotSynced)
        } else if self.virtual_ips.contains_key(&ip) {
            EchoVerdict::Answer
        } else {
            EchoVerdict::Drop(DropReason::UnknownAddress)
        }
    }

    /// Every virtual server, sorted by protocol, then address and port.
    pub fn snapshot(&self) -> Vec<VirtualServerView> {
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|entry| Arc::clone(&entry.inside))
            .collect();
        let mut views: Vec<_> = servers.iter().map(|server| server.view()).collect();
        views.sort_unstable_by_key(|view| {
            let address = view.address;
            (address.protocol, address.ip, address.port)
        });
        views
    }

    /// How many virtual servers there are.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// What a successor of this process needs to go on as this one would, sorted by
    /// address.
    pub fn memory(&self, now: Instant) -> Vec<ServerMemory> {
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|entry| Arc::clone(&entry.inside))
            .collect();
        let mut memory: Vec<_> = servers.iter().map(|server| server.memory(now)).collect();
        memory.sort_unstable_by_key(|server| server.address);
        memory
    }

    /// Goes on from where another process stood, as far as the virtual servers are the
    /// same.
    pub fn recall(&self, memory: &[ServerMemory], now: Instant) {
        for its in memory {
            let server = self
                .servers
                .get(&its.address)
                .map(|entry| Arc::clone(&entry.inside));
            if let Some(server) = server {
                server.recall(its, now);
            }
        }
    }

    /// The virtual server whose flows come through a listener at this address: the node
    /// port, or the address itself. None if there is no such service.
    pub fn listened(&self, local: SocketAddr, protocol: Protocol) -> Option<Arc<VirtualServer>> {
        let of = |address: &VirtualAddress| {
            let entry = self.servers.get(address)?;
            Some(Arc::clone(&entry.inside))
        };
        let (ip, port) = (local.ip(), local.port());
        let family = Family::of(ip);
        match of(&VirtualAddress::node_port(family, port, protocol)) {
            Some(server) => Some(Arc::new(server.at(ip))),
            None => of(&VirtualAddress { ip, port, protocol }),
        }
    }

    /// Counts a flow that another process has; none if its real server takes no new
    /// flows here.
    pub fn adopt(
        &self,
        address: VirtualAddress,
        real_server: SocketAddr,
        established: bool,
    ) -> Option<Connection> {
        let server = Arc::clone(&self.servers.get(&address)?.inside);
        server.adopt(real_server, established)
    }

    fn judge(
        &self,
        address: VirtualAddress,
        virtual_ip: IpAddr,
        client: IpAddr,
        is_node: impl FnOnce() -> bool,
    ) -> Verdict {
        if !self.is_synced() {
            return Verdict::Drop(DropReason::NotSynced);
        }
        if self.draining.load(Ordering::Relaxed) {
            return Verdict::Drop(DropReason::Draining);
        }
        if address.protocol == Protocol::Sctp {
            return Verdict::Drop(DropReason::Sctp);
        }
        let entry = match self.servers.get(&address) {
            Some(entry) if entry.is_for_all() => return entry.inside.verdict(),
            Some(entry) => entry.clone(),
            None if self.virtual_ips.contains_key(&address.ip) => {
                return Verdict::Reject(RejectReason::UnknownPort);
            }
            None => return Verdict::Drop(DropReason::UnknownAddress),
        };
        let network = self.network();
        let origin = ClientOrigin::of(client, virtual_ip, &network, is_node);
        let server = entry.server(origin);
        // Without an endpoint anywhere kube-proxy rejects whoever asks in its iptables
        // mode; in nftables mode whom the ranges keep out hears nothing.
        if let Some(ranges) = &entry.source_ranges
            && !matches!(server.verdict(), Verdict::Reject(_))
            && !is_admitted(ranges, client, origin, &network)
        {
            return Verdict::Drop(DropReason::SourceRange);
        }
        server.verdict()
    }

    fn network(&self) -> RwLockReadGuard<'_, NodeNetwork> {
        self.network.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_network(&self, network: &NodeNetwork) {
        let mut current = self.network.write().unwrap_or_else(PoisonError::into_inner);
        current.clone_from(network);
    }

    fn upsert(&self, spec: &VirtualServerSpec) {
        let scheduler = spec.scheduler.unwrap_or_else(|| self.scheduler());
        let existing = self.servers.get(&spec.address).map(|entry| entry.clone());
        let Some(existing) = existing else {
            let new = Arc::new(VirtualServer::new(spec, scheduler));
            new.program(spec);
            self.insert(spec.address, Entry::new(new, spec, scheduler));
            return;
        };
        let inside = &existing.inside;
        if !is_same_service(&inside.service, &spec.service) {
            let new = Arc::new(VirtualServer::new(spec, scheduler));
            new.program(spec);
            let new = Entry::new(new, spec, scheduler);
            self.servers.insert(spec.address, new);
            inside.remove();
        } else if inside.is_named(spec, scheduler) && existing.has_shape_of(spec) {
            inside.program(spec);
        } else {
            let inside = if inside.is_named(spec, scheduler) {
                Arc::clone(inside)
            } else {
                Arc::new(inside.as_in(spec, scheduler, Side::Inside))
            };
            inside.program(spec);
            let entry = Entry::new(inside, spec, scheduler);
            self.servers.insert(spec.address, entry);
        }
    }

    fn insert(&self, address: VirtualAddress, entry: Entry) {
        // The virtual server before its IP: in between, a flow to it is served,
        // and one to another port still dropped. The other way round it would be
        // refused.
        self.servers.insert(address, entry);
        if !address.ip.is_unspecified() {
            *self.virtual_ips.entry(address.ip).or_insert(0) += 1;
        }
    }

    fn remove(&self, address: VirtualAddress) {
        let Some(existing) = self.servers.get(&address).map(|entry| entry.clone()) else {
            return;
        };
        if let Occupancy::Occupied(mut count) = self.virtual_ips.entry(address.ip) {
            if *count.get() > 1 {
                *count.get_mut() -= 1;
            } else {
                count.remove();
            }
        }
        self.servers.remove(&address);
        existing.inside.remove();
    }
}

impl Entry {
    fn new(inside: Arc<VirtualServer>, spec: &VirtualServerSpec, scheduler: SchedulerKind) -> Self {
        let outside = || Arc::new(inside.as_in(spec, scheduler, Side::Outside));
        Self {
            outside: spec.external.is_some().then(outside),
            source_ranges: spec.source_ranges.as_deref().map(Arc::from),
            inside,
        }
    }

    /// Whether every client gets the same.
    fn is_for_all(&self) -> bool {
        self.outside.is_none() && self.source_ranges.is_none()
    }

    /// Whether only what is behind the virtual servers may differ from `spec`.
    fn has_shape_of(&self, spec: &VirtualServerSpec) -> bool {
        self.outside.is_some() == spec.external.is_some()
            && self.source_ranges.as_deref() == spec.source_ranges.as_deref()
    }

    /// The virtual server for clients from there.
    fn server(&self, origin: ClientOrigin) -> &Arc<VirtualServer> {
        match (origin, &self.outside) {
            (ClientOrigin::Outside, Some(outside)) => outside,
            (ClientOrigin::Node | ClientOrigin::Pod | ClientOrigin::Outside, _) => &self.inside,
        }
    }
}

/// Whether two names are ports of one Service.
fn is_same_service(one: &ServicePortName, other: &ServicePortName) -> bool {
    one.namespace == other.namespace && one.name == other.name
}

#[cfg(test)]
mod concurrency_tests;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
