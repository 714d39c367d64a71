//! What is done with the objects of a followed resource.

use serde_json::value::RawValue;

use super::collect::Update;
use super::wire::HeadMeta;

/// Takes objects as lists and watches tell them.
///
/// A list is told between [`begin`](Self::begin) and
/// [`complete`](Self::complete); until then nothing of it is in force, and one
/// that breaks off is forgotten by the next `begin`.
pub(super) trait Collection: Send + Sync {
    /// A list begins.
    fn begin(&mut self);

    /// An object of the list.
    fn listed(&mut self, head: &HeadMeta, object: &RawValue);

    /// An object of the list has gone before the list was complete.
    fn unlisted(&mut self, head: &HeadMeta);

    /// The list is complete: what is not in it does not exist.
    fn complete(&mut self) -> Option<Update>;

    /// An object has come or changed.
    fn applied(&mut self, head: &HeadMeta, object: &RawValue) -> Option<Update>;

    /// An object has gone.
    fn deleted(&mut self, head: &HeadMeta) -> Deleted;

    /// The resource is not there, or not for us. What was known stays.
    fn unavailable(&mut self) {}
}

/// What comes of an object's end.
#[derive(Debug)]
pub(super) enum Deleted {
    /// This.
    Update(Option<Update>),
    /// What is left has to be listed.
    ListAgain,
}
