//! Persistence: session affinity ClientIP, the connection templates of IPVS.
//!
//! An entry sends a client's address to one real server. It lives for the
//! timeout after the client's last new connection, and longer while connections
//! that it controls are open: the kernel looks again every 60 s
//! (`ip_vs_conn_expire`, `expire_later`), and so does this.
//!
//! The kernel makes the entry when it schedules the first connection. So do we,
//! because several first connections of one client may be dialled at the same
//! time, but with a short life: the entry is only worth its timeout once a
//! connection has succeeded. It moves to another real server when a connection
//! to that one has succeeded, and is forgotten with its real server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RealServer;
use super::memory::ClientMemory;

/// Most clients one virtual server remembers. When the table is full, the entry
/// that would expire first makes room. A node has at most a few hundred pods as
/// clients (110 by the kubelet's default), so only traffic from outside the
/// cluster can fill it.
pub(super) const MAX_ENTRIES: usize = 16_384;

/// Life of an entry whose connection has not succeeded yet: the kernel's timeout
/// for SYN_RECV (`tcp_timeouts` in `ip_vs_proto_tcp.c`).
pub(super) const TENTATIVE: Duration = Duration::from_secs(60);

/// How long until an entry that is due, but whose connections are open, is
/// looked at again (`ip_vs_conn_expire`).
pub(super) const RECHECK: Duration = Duration::from_secs(60);

/// Entries that are due and looked at per new connection. Two for each that may
/// be added, so that dead entries go faster than new ones come.
const EXPIRE_BATCH: usize = 2;

/// The persistence table of one virtual server.
#[derive(Debug)]
pub(super) struct Persistence {
    timeout: Duration,
    entries: BTreeMap<IpAddr, Entry>,
    by_deadline: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Debug)]
struct Entry {
    real_server: Arc<RealServer>,
    deadline: Instant,
    /// Held by each open connection that the entry controls.
    control: Arc<()>,
}

impl Entry {
    fn controls_connections(&self) -> bool {
        Arc::strong_count(&self.control) > 1
    }
}

impl Persistence {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            entries: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A new timeout counts from the next connection of each client, as in the
    /// kernel.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The real server `client` stays with.
    pub(super) fn lookup(&mut self, client: IpAddr, now: Instant) -> Option<&Arc<RealServer>> {
        self.expire(now);
        let entry = self.entries.get(&client)?;
        if entry.deadline <= now && !entry.controls_connections() {
            self.remove(client);
            return None;
        }
        self.entries.get(&client).map(|entry| &entry.real_server)
    }

    /// Remembers a choice whose connection is still to succeed, so that other
    /// first connections of `client` make the same one.
    pub(super) fn reserve(&mut self, client: IpAddr, real_server: &Arc<RealServer>, now: Instant) {
        self.insert(
            client,
            Arc::clone(real_server),
            Arc::new(()),
            now + TENTATIVE,
        );
    }

    /// A connection of `client` to `real_server` has succeeded: makes, refreshes
    /// or moves the entry. The connection holds what is returned.
    pub(super) fn confirm(
        &mut self,
        client: IpAddr,
        real_server: &Arc<RealServer>,
        now: Instant,
    ) -> Arc<()> {
        self.expire(now);
        let control = match self.entries.get(&client) {
            Some(entry) if Arc::ptr_eq(&entry.real_server, real_server) => {
                Arc::clone(&entry.control)
            }
            Some(_) | None => Arc::new(()),
        };
        self.insert(
            client,
            Arc::clone(real_server),
            Arc::clone(&control),
            now + self.timeout,
        );
        control
    }

    /// The real server `client` stays with, and how long the entry lives from
    /// `now` on if nothing refreshes it. Nothing is changed.
    pub(super) fn peek(
        &self,
        client: IpAddr,
        now: Instant,
    ) -> Option<(&Arc<RealServer>, Duration)> {
        let entry = self.entries.get(&client)?;
        let left = entry.deadline.saturating_duration_since(now);
        (!left.is_zero() || entry.controls_connections()).then_some((&entry.real_server, left))
    }

    /// Forgets the clients of real servers other than those to keep.
    pub(super) fn retain(&mut self, keep: impl Fn(&RealServer) -> bool) {
        let by_deadline = &mut self.by_deadline;
        self.entries.retain(|client, entry| {
            let keep = keep(&entry.real_server);
            if !keep {
                by_deadline.remove(&(entry.deadline, *client));
            }
            keep
        });
    }

    /// The entries, sorted by client; those that are due and still have connections
    /// among them.
    pub(super) fn clients(&self, now: Instant) -> Vec<ClientMemory> {
        self.entries
            .iter()
            .filter_map(|(client, entry)| {
                let left = entry.deadline.saturating_duration_since(now);
                let left = if entry.controls_connections() {
                    left.max(RECHECK)
                } else {
                    left
                };
                (!left.is_zero())
                    .then(|| ClientMemory::new(*client, entry.real_server.address, left))
            })
            .collect()
    }

    /// Takes an entry of another table in.
    pub(super) fn recall(
        &mut self,
        client: IpAddr,
        real_server: &Arc<RealServer>,
        deadline: Instant,
    ) {
        self.insert(client, Arc::clone(real_server), Arc::new(()), deadline);
    }

    fn insert(
        &mut self,
        client: IpAddr,
        real_server: Arc<RealServer>,
        control: Arc<()>,
        deadline: Instant,
    ) {
        self.remove(client);
        if self.entries.len() >= MAX_ENTRIES
            && let Some((_, evicted)) = self.by_deadline.pop_first()
        {
            self.entries.remove(&evicted);
        }
        self.by_deadline.insert((deadline, client));
        self.entries.insert(
            client,
            Entry {
                real_server,
                deadline,
                control,
            },
        );
    }

    fn remove(&mut self, client: IpAddr) {
        if let Some(entry) = self.entries.remove(&client) {
            self.by_deadline.remove(&(entry.deadline, client));
        }
    }

    fn expire(&mut self, now: Instant) {
        for _ in 0..EXPIRE_BATCH {
            let Some(&(deadline, client)) = self.by_deadline.first() else {
                return;
            };
            if deadline > now {
                return;
            }
            self.by_deadline.pop_first();
            match self.entries.get_mut(&client) {
                Some(entry) if entry.controls_connections() => {
                    entry.deadline = now + RECHECK;
                    self.by_deadline.insert((entry.deadline, client));
                }
                Some(_) | None => {
                    self.entries.remove(&client);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
