//! Which flow a packet belongs to.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ipvs::Protocol;
use crate::netstack::Sent;

/// How long a closed connection answers a repeated FIN. Clients are a few hops
/// away at most, so this is ten seconds and not twice RFC 9293's two minutes.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// Connections in TIME_WAIT that one worker remembers; above, the oldest goes.
/// A forgotten one answers a repeated FIN with RST, which its client survives.
const MAX_TIME_WAIT: usize = 1 << 16;

/// The five-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowKey {
    pub(crate) client: SocketAddr,
    pub(crate) virtual_server: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// A slot of the table and which of its tenants is meant: an event for an earlier
/// tenant finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// As a number for epoll, and back.
    pub(crate) fn to_token(self) -> usize {
        (self.generation as usize) << 32 | self.index as usize
    }

    pub(crate) fn from_token(token: usize) -> Self {
        Self {
            index: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}

/// What a key leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    /// A flow.
    Flow(FlowId),
    /// A connection that is over, all but for a repeated FIN.
    TimeWait(Sent),
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

/// The flows of one worker.
#[derive(Debug)]
pub(crate) struct FlowTable<T> {
    keys: HashMap<FlowKey, Found, foldhash::fast::RandomState>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// In the order of their ends; all wait equally long.
    time_wait: VecDeque<(Instant, FlowKey, Sent)>,
}

impl<T> Default for FlowTable<T> {
    fn default() -> Self {
        Self {
            keys: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            time_wait: VecDeque::new(),
        }
    }
}

impl<T> FlowTable<T> {
    #[inline]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<Found> {
        self.keys.get(key).copied()
    }

    #[inline]
    pub(crate) fn get(&self, id: FlowId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation {
            slot.tenant.as_ref()
        } else {
            None
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.tenant.as_mut()
    }

    /// Flows that there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes in a flow. Whatever the key led to before is no longer found.
    pub(crate) fn insert(&mut self, key: FlowKey, make: impl FnOnce(FlowId) -> T) -> FlowId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                tenant: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = FlowId {
            index,
            generation: slot.generation,
        };
        slot.tenant = Some(make(id));
        self.keys.insert(key, Found::Flow(id));
        id
    }

    /// Removes a flow; with `time_wait` its key answers repeated FINs for a while.
    pub(crate) fn remove(
        &mut self,
        id: FlowId,
        key: FlowKey,
        time_wait: Option<(Instant, Sent)>,
    ) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(id.index);
        if !matches!(self.find(&key), Some(Found::Flow(current)) if current == id) {
            // The key leads to a newer flow already.
            return Some(tenant);
        }
        if let Some((now, sent)) = time_wait {
            self.keys.insert(key, Found::TimeWait(sent));
            self.time_wait.push_back((now + TIME_WAIT, key, sent));
            if self.time_wait.len() > MAX_TIME_WAIT {
                self.forget_oldest();
            }
        } else {
            self.keys.remove(&key);
        }
        Some(tenant)
    }

    /// Forgets a connection in TIME_WAIT, because its client goes on.
    pub(crate) fn end_time_wait(&mut self, key: &FlowKey) {
        if let Some(Found::TimeWait(_)) = self.find(key) {
            self.keys.remove(key);
        }
    }

    /// Forgets those whose time has passed.
    pub(crate) fn expire_time_wait(&mut self, now: Instant) {
        while self
            .time_wait
            .front()
            .is_some_and(|(until, ..)| *until <= now)
        {
            self.forget_oldest();
        }
    }

    pub(crate) fn has_time_wait(&self) -> bool {
        !self.time_wait.is_empty()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (FlowId, &mut T)> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(index, slot)| {
                let id = FlowId {
                    index: index as u32,
                    generation: slot.generation,
                };
                slot.tenant.as_mut().map(|tenant| (id, tenant))
            })
    }

    fn forget_oldest(&mut self) {
        let Some((_, key, sent)) = self.time_wait.pop_front() else {
            return;
        };
        // The key may lead to a newer flow, or to a later end of the same tuple.
        if let Some(Found::TimeWait(current)) = self.find(&key)
            && current == sent
        {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
