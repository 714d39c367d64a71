//! From objects to the service table, one batch at a time. No task of its own:
//! [`Control::run`] is the future of one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::exposure::Exposure;
use super::programming::ProgrammingLatency;
use super::syncs::{Changes, Syncs};
use crate::admin::health::Health;
use crate::admin::readiness::Blocker;
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::NodePorts;
use crate::service::index::Index;
use crate::service::object::ObjectWarning;
use crate::source::Batch;

/// Changes of the first full state that are programmed at a time: nothing is served
/// yet, and all of them are more memory than is needed ever after.
const PORTION: usize = 512;

/// Applies batches of events to the index, and what changes to the table.
#[derive(Debug)]
pub(super) struct Control {
    /// Shared with those who ask why things are as they are; written here only.
    index: Arc<RwLock<Index>>,
    table: Arc<Table>,
    health: Health,
    latency: Arc<ProgrammingLatency>,
    syncs: Arc<Syncs>,
    /// Told of changes once the table has them.
    exposure: Option<Arc<Exposure>>,
    /// Held until the first full state is programmed.
    unsynced: Option<Blocker>,
}

impl Control {
    /// Programs `table`, tells `health`, and releases `unsynced` once the first
    /// full state is programmed.
    pub(super) fn new(index: Index, table: Arc<Table>, health: Health, unsynced: Blocker) -> Self {
        Self {
            index: Arc::new(RwLock::new(index)),
            table,
            health,
            latency: Arc::default(),
            syncs: Arc::default(),
            exposure: None,
            unsynced: Some(unsynced),
        }
    }

    /// Tells `exposure` of changes from now on.
    pub(super) fn with_exposure(mut self, exposure: Arc<Exposure>) -> Self {
        self.exposure = Some(exposure);
        self
    }

    /// The index, to read.
    pub(super) fn index(&self) -> Arc<RwLock<Index>> {
        Arc::clone(&self.index)
    }

    /// How long changes took to be programmed.
    pub(super) fn latency(&self) -> Arc<ProgrammingLatency> {
        Arc::clone(&self.latency)
    }

    /// What the control loop does.
    pub(super) fn syncs(&self) -> Arc<Syncs> {
        Arc::clone(&self.syncs)
    }

    /// The control loop: ends when the source has. Releases `unopened` once node ports
    /// are open for the first full state.
    pub(super) async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        dataplane: Arc<Dataplane>,
        node_ports: Arc<NodePorts>,
        unopened: Blocker,
    ) {
        let mut unopened = Some(unopened);
        while let Some(batch) = batches.recv().await {
            let complete = batch.initial_complete;
            if self.program(batch) {
                dataplane.table_changed();
            }
            if complete && let Some(unopened) = unopened.take() {
                node_ports.settled().await;
                drop(unopened);
            }
        }
    }

    /// Programs one batch. Returns whether any virtual server changed.
    fn program(&mut self, batch: Batch) -> bool {
        let Batch {
            events,
            initial_complete: complete,
            triggers,
        } = batch;
        let begun = Instant::now();
        self.health.queued(begun);
        self.syncs.queued(Changes::of(&events), SystemTime::now());
        let portion = match &self.unsynced {
            Some(_) => PORTION,
            // Who follows the changes sees those of a batch together.
            None => usize::MAX,
        };
        let mut changed = false;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let warnings = index.apply_in_portions(events, portion, |changes| {
            changed = true;
            for change in &changes {
                debug!(?change, "programming");
                self.table.apply(change);
            }
            if let Some(exposure) = &self.exposure {
                exposure.programmed(&changes, false);
            }
        });
        drop(index);
        warnings.iter().for_each(warn_of);
        if complete {
            self.table.set_synced();
            if let Some(exposure) = &self.exposure {
                exposure.programmed(&[], true);
            }
        }
        for trigger in triggers {
            self.measure(trigger);
        }
        if complete && let Some(unsynced) = self.unsynced.take() {
            info!(
                services = self.services(),
                virtual_servers = self.table.len(),
                "the first full state is programmed"
            );
            drop(unsynced);
        }
        self.health.updated(SystemTime::now());
        self.syncs.programmed(begun.elapsed(), SystemTime::now());
        changed
    }

    fn services(&self) -> usize {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.services().len()
    }

    /// A change that happened at this time is programmed now.
    fn measure(&self, trigger: Timestamp) {
        // Another machine's clock may be ahead of ours.
        let latency = Timestamp::now().duration_since(trigger);
        let latency = latency.try_into().unwrap_or_default();
        debug!(?latency, "a change of endpoints is programmed");
        self.latency.observe(latency);
    }
}

fn warn_of(warning: &ObjectWarning) {
    warn!(
        object = %warning.object,
        origin = warning.origin.as_ref().map(tracing::field::display),
        error = %warning.error,
        "part of an object makes no sense and is left out"
    );
}

#[cfg(test)]
mod tests;
