//! The engine: virtual servers, their real servers, and who gets the next flow.
//!
//! It speaks IPVS and follows the kernel's rules (`net/netfilter/ipvs`), seen
//! through kube-proxy's eyes. The control plane programs a [`Table`] with one
//! [`Change`](crate::service::Change) at a time; the data plane asks it for a
//! [`Verdict`] on each new flow, takes a [`RealServer`] from the
//! [`VirtualServer`], and counts the flow with a [`Connection`].
//!
//! Nothing here knows a socket, a task or a clock: time is an argument. The
//! module owns no thread. Everything is shared by reference between the workers:
//! a verdict takes a read lock on one shard of the table, a choice of real
//! server one short mutex of that virtual server, and nothing else locks, so a
//! packet of a flow that exists never meets a lock here.

mod client;
mod connection;
mod memory;
mod persistence;
mod real_server;
mod rotation;
mod scheduler;
mod sides;
mod state;
mod table;
mod traffic;
mod verdict;
mod view;
mod virtual_server;

pub use crate::service::{
    Exposure, Protocol, ProxyProtocol, SchedulerKind, ServicePortName, UnknownScheduler,
    VirtualAddress,
};
pub use client::ClientOrigin;
pub use connection::Connection;
pub use memory::ServerMemory;
pub use real_server::RealServer;
pub use table::Table;
pub use traffic::TrafficView;
pub use verdict::{DropReason, EchoVerdict, RejectReason, Verdict};
pub use view::{ForwardMethod, RealServerView, VirtualServerView};
pub use virtual_server::{Forecast, VirtualServer};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of the thread that held the lock before: a worker that
/// unwound in the middle of a choice leaves a rotation that is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
