//! Clients that are there all the while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::Failed;

use crate::node_port_stage::until;
use crate::world::LIMIT;

/// Clients that connect without a pause, and what failed them.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    pub(super) fn start(from: &[&Namespace], to: SocketAddr) -> Self {
        Self::within(from, to, LIMIT)
    }

    /// Each connection must be made and answered in this time.
    pub(super) fn within(from: &[&Namespace], to: SocketAddr, limit: Duration) -> Self {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let ask = |from: &&Namespace| {
            let (from, over, asked) = ((*from).clone(), Arc::clone(&over), Arc::clone(&asked));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    client::who(&from, to, limit).map_err(|error| error.to_string())?;
                    let _ = AtomicUsize::fetch_add(&asked, 1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let threads = from.iter().map(ask).collect();
        Self {
            over,
            asked,
            threads,
        }
    }

    /// Waits until so many more have been answered.
    pub(super) fn run_on(&self, connections: usize) -> Result<(), Failed> {
        let asked = || self.asked.load(Ordering::Relaxed);
        let enough = asked() + connections;
        let failed = || self.threads.iter().any(JoinHandle::is_finished);
        until(
            || (asked(), failed()),
            |(n, failed)| *n >= enough || *failed,
        )
    }

    /// Ends it.
    pub(super) fn end(self) -> Result<(), Failed> {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    }
}
