//! What a server saw, for others to read and wait on.

use std::io;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a TCP connection ended at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Both halves were closed in order.
    Closed,
    /// The other end reset it.
    Reset,
    /// We reset it.
    ResetByUs,
    /// Another error, as a time-out.
    Failed(io::ErrorKind),
}

/// A TCP connection that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Who it was.
    pub peer: SocketAddr,
    /// Bytes received from it.
    pub received: u64,
    /// How it ended.
    pub how: How,
}

/// Shared between a server's thread and its handle. Grows by an entry for each
/// connection or datagram: servers of the lab live for a test.
#[derive(Debug, Default)]
pub(super) struct Record {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    peers: Vec<SocketAddr>,
    ended: Vec<Ended>,
}

impl Record {
    pub(super) fn peers(&self) -> Vec<SocketAddr> {
        self.lock().peers.clone()
    }

    pub(super) fn ended(&self) -> Vec<Ended> {
        self.lock().ended.clone()
    }

    pub(super) fn saw(&self, peer: SocketAddr) {
        self.lock().peers.push(peer);
        self.changed.notify_all();
    }

    pub(super) fn over(&self, ended: Ended) {
        self.lock().ended.push(ended);
        self.changed.notify_all();
    }

    /// Waits until `enough`, at most for `limit`; says whether it came to that.
    pub(super) fn wait(
        &self,
        limit: Duration,
        enough: impl Fn(&[SocketAddr], &[Ended]) -> bool,
    ) -> bool {
        let missing = |state: &mut State| !enough(&state.peers, &state.ended);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, missing);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
