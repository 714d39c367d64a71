//! Where objects come from: manifests, or the API server of a cluster.
//!
//! A source reads objects, turns them into the compact forms of
//! [`crate::service`] at once and hands them over in [`Batch`]es. What it cannot
//! read it reports itself; what makes no sense in an object it could read is the
//! index's to say, with the origin that travels with each object.

pub mod kubernetes;
pub mod manifests;

use jiff::Timestamp;

use crate::service::object::Event;

/// Events that belong together: to be applied as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What happened.
    pub events: Vec<Event>,
    /// With this batch the state is complete: everything there was at the start
    /// has been sent. Nothing may be served before; it stays true afterwards.
    pub initial_complete: bool,
    /// When the changes behind the events happened, as far as objects say so: to
    /// measure how long it took until they were in force.
    pub triggers: Vec<Timestamp>,
}
