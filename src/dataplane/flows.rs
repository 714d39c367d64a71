//! The flows of one worker, and what they wait for: a turn, a time, a count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DataplaneConfig;
use super::flow::{Conversation, Flow};
use super::flow_table::{FlowId, FlowKey, FlowTable, Found};
use super::timers::Timers;
use super::view::FlowView;
use crate::ipvs::VirtualServer;
use crate::netstack::Sent;

/// The flows of one worker. Ends are the worker's own affair: what is over is named here,
/// and the worker takes it out.
pub(crate) struct Flows<K: Conversation> {
    table: FlowTable<Flow<K>>,
    timers: Timers,
    /// Those that have asked for a turn.
    dirty: Vec<FlowId>,
    /// Those with bytes that their real servers do not count yet.
    unaccounted: Vec<FlowId>,
}

impl<K: Conversation> Default for Flows<K> {
    fn default() -> Self {
        Self {
            table: FlowTable::default(),
            timers: Timers::default(),
            dirty: Vec::new(),
            unaccounted: Vec::new(),
        }
    }
}

impl<K: Conversation> Flows<K> {
    #[inline]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<Found> {
        self.table.find(key)
    }

    #[inline]
    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow<K>> {
        self.table.get(id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<K>> {
        self.table.get_mut(id)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (FlowId, &mut Flow<K>)> {
        self.table.iter_mut()
    }

    /// All of them, whatever becomes of them meanwhile.
    pub(crate) fn ids(&mut self) -> Vec<FlowId> {
        self.table.iter_mut().map(|(id, _)| id).collect()
    }

    pub(crate) fn views(&mut self, now: Instant, config: &DataplaneConfig) -> Vec<FlowView> {
        let flows = self.table.iter_mut();
        flows.map(|(_, flow)| flow.view(now, config)).collect()
    }

    /// Takes in a flow that no real server has yet.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        kind: K,
        own: K::Own,
        server: Arc<VirtualServer>,
        started: Instant,
    ) -> FlowId {
        let table = &mut self.table;
        self.timers.tidy(table.len(), |id| table.get(id).is_none());
        table.insert(key, |_| Flow::new(key, kind, own, server, started))
    }

    /// As [`FlowTable::remove`].
    pub(crate) fn remove(
        &mut self,
        id: FlowId,
        key: FlowKey,
        time_wait: Option<(Instant, Sent)>,
    ) -> Option<Flow<K>> {
        self.table.remove(id, key, time_wait)
    }

    /// As [`FlowTable::end_time_wait`].
    pub(crate) fn end_time_wait(&mut self, key: &FlowKey) {
        self.table.end_time_wait(key);
    }

    /// As [`FlowTable::expire_time_wait`].
    pub(crate) fn expire_time_wait(&mut self, now: Instant) {
        self.table.expire_time_wait(now);
    }

    pub(crate) fn has_time_wait(&self) -> bool {
        self.table.has_time_wait()
    }

    /// Asks for a turn of this flow before the worker sleeps.
    pub(crate) fn mark(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Whether a flow has asked for a turn.
    pub(crate) fn has_marked(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Those that have asked for a turn, some of which may be over. Who gives it to one
    /// clears [`Flow::dirty`].
    pub(crate) fn take_marked(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.dirty)
    }

    /// Arms the flow's timer unless an earlier one is armed.
    pub(crate) fn arm(&mut self, id: FlowId, at: Instant) {
        if let Some(flow) = self.table.get_mut(id) {
            flow.arm(id, at, &mut self.timers);
        }
    }

    /// The next time at which [`Flows::due`] may give a flow.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// A flow whose armed time has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<FlowId> {
        while let Some((at, id)) = self.timers.due(now) {
            if let Some(flow) = self.table.get_mut(id)
                && flow.armed == Some(at)
            {
                flow.armed = None;
                return Some(id);
            }
        }
        None
    }

    /// The flow may have carried something. It is counted with the next
    /// [`Flows::account`], or when it ends; each flow waits in the list once at most.
    pub(crate) fn notice_bytes(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && flow.is_unnoticed()
        {
            flow.unaccounted = true;
            self.unaccounted.push(id);
        }
    }

    /// Whether there is anything to count.
    pub(crate) fn has_unaccounted(&self) -> bool {
        !self.unaccounted.is_empty()
    }

    /// Counts what has been carried since the last time. Call it once in a while: a count
    /// that all workers share must not be touched for each packet.
    pub(crate) fn account(&mut self) {
        while let Some(id) = self.unaccounted.pop() {
            if let Some(flow) = self.table.get_mut(id) {
                flow.account();
            }
        }
    }

    /// UDP flows whose real server no longer serves.
    pub(crate) fn retired(&mut self) -> Vec<FlowId> {
        self.table
            .iter_mut()
            .filter(|(_, flow)| flow.kind.udp().is_some() && flow.is_retired())
            .map(|(id, _)| id)
            .collect()
    }

    /// True for a UDP flow that has been silent for too long. The timer of one that has
    /// not is armed.
    pub(crate) fn is_silent(&mut self, id: FlowId, timeout: Duration, now: Instant) -> bool {
        let Some(flow) = self.table.get_mut(id) else {
            return false;
        };
        let Some(deadline) = flow.kind.udp().map(|udp| udp.deadline(timeout)) else {
            return false;
        };
        if now < deadline {
            flow.arm(id, deadline, &mut self.timers);
        }
        now >= deadline
    }

    /// Settings have changed: every flow has a look at its time. Gives the UDP flows that
    /// have been silent for too long.
    pub(crate) fn reconsider(&mut self, timeout: Duration, now: Instant) -> Vec<FlowId> {
        let mut all = self.ids();
        all.retain(|&id| {
            self.mark(id);
            self.is_silent(id, timeout, now)
        });
        all
    }

    /// Arms the timers of UDP flows again: their time has become shorter.
    pub(crate) fn hasten_udp(&mut self, timeout: Duration) {
        for (id, flow) in self.table.iter_mut() {
            if let Some(deadline) = flow.kind.udp().map(|udp| udp.deadline(timeout)) {
                flow.arm(id, deadline, &mut self.timers);
            }
        }
    }
}

#[cfg(test)]
mod tests;
