//! From the updates of single resources to batches.

use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::service::object::{Event, Object};
use crate::source::Batch;

/// Updates between those who follow and the one who collects. While it is full
/// the followers read nothing, and TCP makes the API server wait.
pub(super) const UPDATES: usize = 64;

/// Events put into one batch before it is sent, beyond which no more is waited
/// for. A list, which is one update, may be longer.
const BATCH_EVENTS: usize = 1024;

/// What has changed in one resource.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// What happened.
    pub(super) events: Vec<Event>,
    /// When the changes behind it happened.
    pub(super) triggers: Vec<Timestamp>,
    /// That this part of the first state is in.
    pub(super) settled: Option<Part>,
}

impl Update {
    pub(super) fn settled(part: Part) -> Self {
        Self {
            settled: Some(part),
            ..Self::default()
        }
    }

    pub(super) fn apply(&mut self, object: Object, trigger: Option<Timestamp>) {
        let origin = None;
        self.events.push(Event::Apply { object, origin });
        self.triggers.extend(trigger);
    }

    /// `None` if nothing has changed.
    pub(super) fn some(self) -> Option<Self> {
        (!self.events.is_empty()).then_some(self)
    }
}

/// The parts of the first state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Services,
    EndpointSlices,
    Node,
    Namespaces,
    ServiceCidrs,
    NetworkPolicies,
}

/// Sends what has come as batches, each with all that is there at its time,
/// until all that follow have ended or nobody receives any more. `missing` are
/// the parts without which the first state is not complete.
pub(super) async fn collect(
    mut updates: mpsc::Receiver<Update>,
    mut missing: Vec<Part>,
    batches: mpsc::Sender<Batch>,
) {
    while let Some(update) = updates.recv().await {
        let complete_before = missing.is_empty();
        let mut batch = Batch::default();
        let mut next = Some(update);
        while let Some(Update {
            events,
            triggers,
            settled,
        }) = next
        {
            batch.events.extend(events);
            batch.triggers.extend(triggers);
            missing.retain(|part| Some(*part) != settled);
            next = if batch.events.len() < BATCH_EVENTS {
                updates.try_recv().ok()
            } else {
                None
            };
        }
        batch.initial_complete = missing.is_empty();
        let tells = !batch.events.is_empty() || batch.initial_complete != complete_before;
        if tells && batches.send(batch).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::object::{NamespacedName, ObjectKey, ObjectKind};

    fn deleted(name: &str) -> Update {
        Update {
            events: vec![Event::Delete(ObjectKey {
                kind: ObjectKind::Service,
                name: NamespacedName::new("default", name),
            })],
            ..Update::default()
        }
    }

    #[tokio::test]
    async fn complete_once_all_parts_are_in_and_ever_after() {
        let (updates, receiver) = mpsc::channel(UPDATES);
        let (sender, mut batches) = mpsc::channel(4);
        let missing = vec![Part::Services, Part::EndpointSlices];
        let collecting = tokio::spawn(collect(receiver, missing, sender));

        updates.send(deleted("a")).await.unwrap();
        assert!(!batches.recv().await.unwrap().initial_complete);
        // A part alone is nothing to tell.
        updates.send(Update::settled(Part::Services)).await.unwrap();
        updates.send(Update::settled(Part::Services)).await.unwrap();
        updates.send(deleted("b")).await.unwrap();
        assert!(!batches.recv().await.unwrap().initial_complete);
        let last = Update::settled(Part::EndpointSlices);
        updates.send(last).await.unwrap();
        let batch = batches.recv().await.unwrap();
        assert!(batch.initial_complete && batch.events.is_empty());
        updates.send(deleted("c")).await.unwrap();
        assert!(batches.recv().await.unwrap().initial_complete);

        drop(updates);
        assert!(batches.recv().await.is_none());
        collecting.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_piled_up_goes_together_within_bounds() {
        let (updates, receiver) = mpsc::channel(UPDATES);
        let (sender, mut batches) = mpsc::channel(4);
        for _ in 0..UPDATES {
            let mut update = deleted("a");
            update.events = vec![update.events[0].clone(); 100];
            updates.try_send(update).unwrap();
        }
        drop(updates);
        let collecting = tokio::spawn(collect(receiver, Vec::new(), sender));
        let mut sizes = Vec::new();
        while let Some(batch) = batches.recv().await {
            sizes.push(batch.events.len());
        }
        assert_eq!(sizes.iter().sum::<usize>(), UPDATES * 100);
        assert!(sizes.iter().all(|size| *size < BATCH_EVENTS + 100));
        assert!(sizes.len() < UPDATES / 5, "{sizes:?}");
        collecting.await.unwrap();
    }
}
