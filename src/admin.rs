//! What the proxy tells about itself: health, and a socket for its own commands.
//!
//! Everything here reads; nothing changes the proxy. The servers own one task
//! each, which ends when the future of their `serve` is dropped.

pub mod api;
pub mod client;
pub mod health;
pub mod readiness;
pub mod socket;
