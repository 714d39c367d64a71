//! Readiness as a set of named blockers.
//!
//! Whoever has work to finish before the proxy may be called ready takes a
//! [`Blocker`] and drops it when the work is done; an early return or a panic
//! releases it as well, and what follows from the failure is told elsewhere.
//! The proxy is ready while nobody holds one.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// Name of the blocker of a proxy that ends: load balancers are to leave this node.
pub const STOPPING: &str = "stopping";

/// The set of blockers; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    blockers: Arc<watch::Sender<Vec<&'static str>>>,
}

impl Readiness {
    /// A set without blockers: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the proxy unready until the blocker is dropped. `name` says what is
    /// going on, such as `starting`; two blockers may have the same name.
    pub fn block(&self, name: &'static str) -> Blocker {
        self.blockers.send_modify(|blockers| blockers.push(name));
        Blocker {
            name,
            readiness: self.clone(),
        }
    }

    /// What is going on, oldest first; empty when ready.
    pub fn blockers(&self) -> Vec<&'static str> {
        self.blockers.borrow().clone()
    }

    /// Whether the proxy takes no new flows because it ends.
    pub fn is_stopping(&self) -> bool {
        self.blockers.borrow().contains(&STOPPING)
    }

    /// Waits until nothing blocks.
    pub async fn ready(&self) {
        let mut watched = self.blockers.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = watched.wait_for(Vec::is_empty).await;
    }
}

/// Keeps the proxy unready while it lives.
#[must_use = "dropping it at once blocks nothing"]
pub struct Blocker {
    name: &'static str,
    readiness: Readiness,
}

impl fmt::Debug for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocker").field(&self.name).finish()
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.readiness.blockers.send_modify(|blockers| {
            if let Some(at) = blockers.iter().position(|name| *name == self.name) {
                blockers.remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn ready_while_nobody_blocks() {
        let readiness = Readiness::new();
        assert!(readiness.blockers().is_empty());

        let starting = readiness.block("starting");
        let first = readiness.block("waiting");
        let second = readiness.block("waiting");
        assert_eq!(readiness.blockers(), ["starting", "waiting", "waiting"]);
        drop(first);
        drop(starting);
        assert_eq!(readiness.blockers(), ["waiting"]);
        drop(second);
        assert!(readiness.blockers().is_empty());
    }

    #[test]
    fn a_panic_releases_its_blocker() {
        let readiness = Readiness::new();
        let blocker = readiness.block("a task");
        let ended = std::thread::spawn(move || {
            let _blocker = blocker;
            panic!("the task ends early");
        })
        .join();
        assert!(ended.is_err());
        assert!(readiness.blockers().is_empty());
    }

    #[test]
    fn waiting_ends_with_the_last_blocker() {
        let readiness = Readiness::new();
        let one = readiness.block("one");
        let two = readiness.block("two");
        let mut waiting = pin!(readiness.ready());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        drop(one);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        drop(two);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(()));
    }
}
