//! What the control plane holds of the data plane.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use dashmap::DashMap;
use mio::{Poll, Waker};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use super::access_log;
use super::shared::{Message, Owners, Shared};
use super::stats::{Counters, WorkerStats};
use super::view::FlowView;
use super::worker::{MAILBOX, Parts, Worker};
use super::{DataplaneConfig, SharedTable};
use crate::tun::Queue;

/// Messages that wait for a worker. The control plane waits when it is full; another
/// worker that hands over a packet drops it.
const MAILBOX_DEPTH: usize = 1024;

/// How often [`Dataplane::drained`] looks.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The data plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No epoll instance or wake-up descriptor.
    #[error("cannot make the event queue of worker {worker}")]
    Events {
        /// The worker's number.
        worker: usize,
        /// The system's error.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the thread '{name}'")]
    Thread {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// The running workers. Dropping it stops them.
#[derive(Debug)]
pub struct Dataplane {
    shared: Arc<Shared>,
    mailboxes: Vec<(SyncSender<Message>, Arc<Waker>)>,
    threads: Vec<thread::JoinHandle<()>>,
    failure: watch::Receiver<Option<String>>,
}

impl Dataplane {
    /// Starts one worker for each queue.
    ///
    /// # Errors
    /// When the system gives no epoll instance or no thread.
    pub fn start(
        config: DataplaneConfig,
        table: SharedTable,
        queues: Vec<Queue>,
    ) -> Result<Self, StartError> {
        let mut polls = Vec::new();
        let mut mailboxes = Vec::new();
        let mut receivers = Vec::new();
        for worker in 0..queues.len() {
            let events = |source| StartError::Events { worker, source };
            let poll = Poll::new().map_err(events)?;
            let waker = Arc::new(Waker::new(poll.registry(), MAILBOX).map_err(events)?);
            let (sender, receiver) = sync_channel(MAILBOX_DEPTH);
            polls.push(poll);
            mailboxes.push((sender, waker));
            receivers.push(receiver);
        }
        let stats: Vec<_> = queues
            .iter()
            .map(|_| Arc::new(WorkerStats::default()))
            .collect();
        let owners = (queues.len() > 1).then(|| Owners {
            of: DashMap::default(),
            mailboxes: mailboxes.clone(),
        });
        let shared = Arc::new(Shared {
            table,
            pod_traffic: AtomicBool::new(config.pod_traffic),
            config,
            stats: stats.clone(),
            flows: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            owners,
        });
        let (log, log_thread) = access_log::start().map_err(|source| StartError::Thread {
            name: "access-log".to_owned(),
            source,
        })?;
        let (failed, failure) = watch::channel(None);
        let failed = Arc::new(failed);
        let mut dataplane = Self {
            shared: Arc::clone(&shared),
            mailboxes,
            threads: vec![log_thread],
            failure,
        };
        let parts = queues
            .into_iter()
            .zip(polls)
            .zip(receivers)
            .zip(stats)
            .enumerate();
        for (index, (((queue, poll), mailbox), stats)) in parts {
            let parts = Parts {
                index,
                shared: Arc::clone(&shared),
                stats,
                queue,
                poll,
                mailbox,
                log: log.clone(),
                seed: random_seed(index),
            };
            let name = format!("worker-{index}");
            let failed = Arc::clone(&failed);
            let thread = thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    // A worker stays on the thread it was made on: its rings are counted
                    // without locks.
                    if let Err(error) = Worker::new(parts).run() {
                        tracing::error!(worker = index, %error, "the TUN queue failed");
                        failed.send_replace(Some(format!("TUN queue {index}: {error}")));
                    }
                })
                .map_err(|source| StartError::Thread { name, source })?;
            dataplane.threads.push(thread);
        }
        Ok(dataplane)
    }

    /// Tells the workers that real servers may have retired. Call it after changes
    /// of the table; UDP flows to retired real servers end at once.
    pub fn table_changed(&self) {
        self.tell(|| Message::Sweep);
    }

    /// Serves clients other than this node from now on, or drops what they send.
    /// Flows that are open go on.
    pub fn serve_pods(&self, serve: bool) {
        self.shared.pod_traffic.store(serve, Ordering::Relaxed);
    }

    /// Whether clients other than this node are served.
    pub fn serves_pods(&self) -> bool {
        self.shared.pod_traffic.load(Ordering::Relaxed)
    }

    /// All flows, in no order.
    pub async fn flows(&self) -> Vec<FlowView> {
        let mut replies = Vec::new();
        self.tell(|| {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            Message::Flows(sender)
        });
        let mut flows = Vec::new();
        for reply in replies {
            // A worker that ended has no flows.
            flows.extend(reply.await.unwrap_or_default());
        }
        flows
    }

    /// Table, settings and limits, for workers that carry flows from elsewhere than
    /// the TUN: their flows count against the same limits, and drain with the rest.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The counters of all workers.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::sum(self.shared.stats.iter().map(AsRef::as_ref));
        counters.flows = self.shared.flows.load(Ordering::Relaxed);
        counters.memory = self.shared.memory.load(Ordering::Relaxed);
        counters
    }

    /// The process ends: from now on a UDP flow is over after 5 s of silence. New flows
    /// are kept out by [`crate::ipvs::Table::set_draining`].
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.tell(|| Message::Drain);
    }

    /// Returns when no flow is left, those of the node ports included.
    pub async fn drained(&self) {
        while self.shared.flows.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// Returns when a worker has failed, with the reason: the device was deleted.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // All workers have ended without a failure.
            Err(_) => std::future::pending().await,
        }
    }

    /// Resets what is open, ends the threads and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.tell(|| Message::Stop);
        for thread in self.threads.drain(..).rev() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }

    fn tell(&self, mut message: impl FnMut() -> Message) {
        for (mailbox, waker) in &self.mailboxes {
            // A worker that ended needs no message.
            if mailbox.send(message()).is_ok() {
                let _ = waker.wake();
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.end();
    }
}

/// A seed that differs between processes and workers; `RandomState` has its keys
/// from the system.
fn random_seed(worker: usize) -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_usize(worker);
    hasher.finish()
}
