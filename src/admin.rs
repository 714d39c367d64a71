//! What the proxy tells about itself: health, metrics, a page, and a socket for its own
//! commands.
//!
//! Everything here reads; only what is logged can be changed. The servers own one task
//! each, which ends when the future of their `serve` is dropped; the health check node
//! ports one for each port and address, which end with [`health_check::HealthChecks`].

pub mod api;
pub mod client;
pub mod health;
pub mod health_check;
pub mod history;
pub mod metrics;
pub mod readiness;
pub mod socket;
pub mod web;
