//! Who gets the next flow of one kind of client: a list of real servers, the
//! scheduler's position in it, and the memory of clients.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::RotationMemory;
use super::persistence::Persistence;
use super::scheduler::{Candidates, Request, Scheduler, Update, build};
use super::{RealServer, SchedulerKind};

/// One rotation.
#[derive(Debug)]
pub(super) struct Rotation {
    kind: SchedulerKind,
    scheduler: Box<dyn Scheduler>,
    /// Those that take new flows, from the head of the kernel's list.
    servers: Vec<Arc<RealServer>>,
    persistence: Option<Persistence>,
}

impl Rotation {
    pub(super) fn new(kind: SchedulerKind) -> Self {
        Self {
            kind,
            scheduler: build(kind),
            servers: Vec::new(),
            persistence: None,
        }
    }

    /// One with the same real servers in the same order that has chosen nobody yet and
    /// remembers no client.
    pub(super) fn anew(&self) -> Self {
        let mut new = Self {
            kind: self.kind,
            scheduler: build(self.kind),
            servers: self.servers.clone(),
            persistence: self.persistence_timeout().map(Persistence::new),
        };
        new.scheduler.changed(&Update {
            servers: &new.servers,
            added: new.servers.len(),
            kept: &[],
        });
        new
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
        let candidates = Candidates::new(&self.servers, tried);
        let picked = self.scheduler.pick(request, candidates)?;
        let real_server = Arc::clone(&self.servers[picked]);
        if tried.is_empty()
            && let Some(persistence) = &mut self.persistence
        {
            persistence.reserve(client, &real_server, now);
        }
        Some(real_server)
    }

    /// Whom the scheduler would choose for a client that nothing is remembered
    /// of; its position stays.
    pub(super) fn peek(&self, request: &Request) -> Option<SocketAddr> {
        let candidates = Candidates::new(&self.servers, &[]);
        let picked = self.scheduler.clone_box().pick(request, candidates)?;
        Some(self.servers[picked].address)
    }

    /// The real server that `client` stays with, and how long at least if it
    /// opens nothing more.
    pub(super) fn persistent(
        &self,
        client: IpAddr,
        now: Instant,
    ) -> Option<(SocketAddr, Duration)> {
        let (real_server, left) = self.persistence.as_ref()?.peek(client, now)?;
        Some((real_server.address, left))
    }

    /// A connection of `client` has succeeded. Returns what the connection holds
    /// while it is open.
    pub(super) fn connected(
        &mut self,
        client: IpAddr,
        real_server: &Arc<RealServer>,
        now: Instant,
    ) -> Option<Arc<()>> {
        let persistence = self.persistence.as_mut()?;
        // An endpoint may have gone while it was being dialled.
        let is_in = |server| Arc::ptr_eq(server, real_server);
        if !self.servers.iter().any(is_in) {
            return None;
        }
        Some(persistence.confirm(client, real_server, now))
    }

    /// Another scheduler begins at the head of the list, as after
    /// `ip_vs_edit_service`; clients stay where they are.
    pub(super) fn set_scheduler(&mut self, kind: SchedulerKind) {
        if self.kind == kind {
            return;
        }
        self.kind = kind;
        self.scheduler = build(kind);
        self.scheduler.changed(&Update {
            servers: &self.servers,
            added: self.servers.len(),
            kept: &[],
        });
    }

    pub(super) fn set_persistence(&mut self, timeout: Option<Duration>) {
        match (&mut self.persistence, timeout) {
            (Some(persistence), Some(timeout)) => persistence.set_timeout(timeout),
            (persistence, timeout) => *persistence = timeout.map(Persistence::new),
        }
    }

    pub(super) fn persistence_timeout(&self) -> Option<Duration> {
        self.persistence.as_ref().map(Persistence::timeout)
    }

    pub(super) fn servers(&self) -> &[Arc<RealServer>] {
        &self.servers
    }

    /// Adds, then removes, as kube-proxy's `syncEndpoint` does: new real servers
    /// go to the head of the list one after the other, so the last one of
    /// `wanted` stands first. `supply` gives those that are new; those that left
    /// are returned, and their clients forgotten.
    pub(super) fn replace(
        &mut self,
        wanted: &[SocketAddr],
        mut supply: impl FnMut(SocketAddr) -> Arc<RealServer>,
    ) -> Vec<Arc<RealServer>> {
        let mut present: HashSet<_> = self.servers.iter().map(|server| server.address).collect();
        let mut servers = Vec::with_capacity(wanted.len());
        for address in wanted {
            // A duplicate would get a second share.
            if present.insert(*address) {
                servers.push(supply(*address));
            }
        }
        servers.reverse();
        let added = servers.len();

        let wanted: HashSet<_> = wanted.iter().collect();
        let kept: Vec<_> = self
            .servers
            .iter()
            .map(|server| wanted.contains(&server.address))
            .collect();
        if added == 0 && kept.iter().all(|kept| *kept) {
            return Vec::new();
        }
        let mut left = Vec::new();
        for (server, kept) in self.servers.drain(..).zip(&kept) {
            let list = if *kept { &mut servers } else { &mut left };
            list.push(server);
        }
        self.servers = servers;
        self.scheduler.changed(&Update {
            servers: &self.servers,
            added,
            kept: &kept,
        });
        if let Some(persistence) = &mut self.persistence {
            persistence.retain(|server| wanted.contains(&server.address));
        }
        left
    }

    /// What a successor needs to go on from here.
    pub(super) fn memory(&self, now: Instant) -> RotationMemory {
        RotationMemory {
            scheduler: self.kind.to_string(),
            order: self.servers.iter().map(|server| server.address).collect(),
            position: self.scheduler.position(),
            clients: self
                .persistence
                .as_ref()
                .map_or_else(Vec::new, |persistence| persistence.clients(now)),
        }
    }

    /// Goes on from where another stood: its order and position if it had the same real
    /// servers and scheduler, else after the one that it chose last; and its clients, as
    /// far as their real servers are here.
    pub(super) fn recall(&mut self, memory: &RotationMemory, now: Instant) {
        let place = |address: SocketAddr| memory.order.iter().position(|its| *its == address);
        if memory.scheduler == self.kind.to_string() {
            let same = memory.order.len() == self.servers.len()
                && self.servers.iter().all(|its| place(its.address).is_some());
            if same {
                self.servers.sort_by_key(|server| place(server.address));
                self.scheduler = build(self.kind);
                self.scheduler.changed(&Update {
                    servers: &self.servers,
                    added: self.servers.len(),
                    kept: &[],
                });
                self.scheduler.resume(&memory.position, self.servers.len());
            } else if let Some((&last, rest)) = memory.position.split_first()
                && let Some(last) = memory.order.get(last as usize)
                && let Some(here) = self.servers.iter().position(|its| its.address == *last)
            {
                let position: Vec<u32> = [here as u32]
                    .into_iter()
                    .chain(rest.iter().copied())
                    .collect();
                self.scheduler.resume(&position, self.servers.len());
            }
        }
        let Some(persistence) = &mut self.persistence else {
            return;
        };
        for client in &memory.clients {
            let real_server = self
                .servers
                .iter()
                .find(|its| its.address == client.real_server);
            if let Some(real_server) = real_server {
                persistence.recall(client.address, real_server, now + client.left());
            }
        }
    }

    /// Forgets all clients.
    pub(super) fn forget_clients(&mut self) {
        self.persistence = None;
    }
}
