//! The service table: where control plane and data plane meet.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::fast::RandomState;

use super::{
    DropReason, EchoVerdict, Protocol, RejectReason, SchedulerKind, ServicePortName, Verdict,
    VirtualAddress, VirtualServer, VirtualServerView, lock,
};
use crate::service::{Change, VirtualServerSpec};

/// All virtual servers, by address. Share it as `Arc<Table>`.
///
/// It starts unsynced: every verdict is a drop until
/// [`set_synced`](Self::set_synced).
#[derive(Debug)]
pub struct Table {
    scheduler: SchedulerKind,
    servers: DashMap<VirtualAddress, Arc<VirtualServer>, RandomState>,
    /// How many virtual servers each virtual IP has.
    virtual_ips: DashMap<IpAddr, usize, RandomState>,
    /// Held by whoever changes the table: the two maps change together.
    writer: Mutex<()>,
    synced: AtomicBool,
    draining: AtomicBool,
}

impl Table {
    /// An empty table whose virtual servers will use `scheduler`.
    pub fn new(scheduler: SchedulerKind) -> Self {
        Self {
            scheduler,
            servers: DashMap::default(),
            virtual_ips: DashMap::default(),
            writer: Mutex::new(()),
            synced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
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
            Change::HealthCheck(_) | Change::RemoveHealthCheck(_) | Change::Node(_) => {}
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

    /// What becomes of a new flow to `address`.
    pub fn verdict(&self, address: VirtualAddress) -> Verdict {
        if !self.is_synced() {
            return Verdict::Drop(DropReason::NotSynced);
        }
        if self.draining.load(Ordering::Relaxed) {
            return Verdict::Drop(DropReason::Draining);
        }
        if address.protocol == Protocol::Sctp {
            return Verdict::Drop(DropReason::Sctp);
        }
        match self.servers.get(&address) {
            Some(server) if server.is_usable() => Verdict::Forward(Arc::clone(&server)),
            Some(server) => server.refusal(),
            None if self.virtual_ips.contains_key(&address.ip) => {
                Verdict::Reject(RejectReason::UnknownPort)
            }
            None => Verdict::Drop(DropReason::UnknownAddress),
        }
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
            .map(|entry| Arc::clone(&entry))
            .collect();
        let mut views: Vec<_> = servers.iter().map(|server| server.view()).collect();
        views.sort_unstable_by_key(|view| {
            let address = view.address;
            (address.protocol, address.ip, address.port)
        });
        views
    }

    fn upsert(&self, spec: &VirtualServerSpec) {
        let existing = self
            .servers
            .get(&spec.address)
            .map(|entry| Arc::clone(&entry));
        let Some(existing) = existing else {
            self.insert(spec);
            return;
        };
        if existing.service == spec.service {
            existing.program(spec);
        } else if is_same_service(&existing.service, &spec.service) {
            let renamed = Arc::new(existing.renamed(&spec.service));
            renamed.program(spec);
            self.servers.insert(spec.address, renamed);
        } else {
            let new = Arc::new(VirtualServer::new(spec, self.scheduler));
            self.servers.insert(spec.address, new);
            existing.remove();
        }
    }

    fn insert(&self, spec: &VirtualServerSpec) {
        // The virtual server before its IP: in between, a flow to it is served,
        // and one to another port still dropped. The other way round it would be
        // refused.
        let new = Arc::new(VirtualServer::new(spec, self.scheduler));
        self.servers.insert(spec.address, new);
        *self.virtual_ips.entry(spec.address.ip).or_insert(0) += 1;
    }

    fn remove(&self, address: VirtualAddress) {
        let Some(existing) = self.servers.get(&address).map(|entry| Arc::clone(&entry)) else {
            return;
        };
        if let Entry::Occupied(mut count) = self.virtual_ips.entry(address.ip) {
            if *count.get() > 1 {
                *count.get_mut() -= 1;
            } else {
                count.remove();
            }
        }
        self.servers.remove(&address);
        existing.remove();
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
