//! From objects to the service table, one batch at a time.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tracing::{debug, info, warn};

use crate::admin::health::Health;
use crate::admin::readiness::Blocker;
use crate::ipvs::Table;
use crate::service::index::Index;
use crate::service::object::{Event, ObjectWarning};

/// Applies batches of events to the index, and what changes to the table. No
/// task, no lock of its own: it belongs to the task that receives the batches.
#[derive(Debug)]
pub(super) struct Control {
    index: Index,
    table: Arc<Table>,
    health: Health,
    /// Held until the first full state is programmed.
    unsynced: Option<Blocker>,
}

impl Control {
    /// Programs `table`, tells `health`, and releases `unsynced` once the first
    /// full state is programmed.
    pub(super) fn new(index: Index, table: Arc<Table>, health: Health, unsynced: Blocker) -> Self {
        Self {
            index,
            table,
            health,
            unsynced: Some(unsynced),
        }
    }

    /// Programs one batch. `complete` says that with it everything that existed
    /// at the start has come. Returns whether any virtual server changed.
    pub(super) fn program(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        complete: bool,
    ) -> bool {
        self.health.queued(Instant::now());
        let outcome = self.index.apply_all(events);
        for change in &outcome.changes {
            debug!(?change, "programming");
            self.table.apply(change);
        }
        outcome.warnings.iter().for_each(warn_of);
        if complete && let Some(unsynced) = self.unsynced.take() {
            self.table.set_synced();
            info!(
                services = self.index.services().len(),
                virtual_servers = self.table.snapshot().len(),
                "the first full state is programmed"
            );
            drop(unsynced);
        }
        self.health.updated(SystemTime::now());
        !outcome.changes.is_empty()
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
