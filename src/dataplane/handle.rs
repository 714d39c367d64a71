//! What the control plane holds of the data plane.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dashmap::DashMap;
use ipnet::IpNet;
use mio::{Poll, Waker};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use super::access_log;
use super::shared::{Message, Owners, Shared, Sweep};
use super::stats::{Counters, WorkerStats};
use super::takeover::{self, Former, Suspended};
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
    sweeps: Vec<Arc<Sweep>>,
    threads: Vec<thread::JoinHandle<()>>,
    failure: watch::Receiver<Option<String>>,
    queues: Vec<Arc<Queue>>,
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
        Self::start_workers(config, table, queues, true)
    }

    /// The same, but nothing is read before [`Dataplane::begin`]: another process reads
    /// the queues.
    ///
    /// # Errors
    /// As [`Dataplane::start`].
    pub fn start_held(
        config: DataplaneConfig,
        table: SharedTable,
        queues: Vec<Queue>,
    ) -> Result<Self, StartError> {
        Self::start_workers(config, table, queues, false)
    }

    fn start_workers(
        config: DataplaneConfig,
        table: SharedTable,
        queues: Vec<Queue>,
        reading: bool,
    ) -> Result<Self, StartError> {
        let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
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
            config: Arc::new(config),
            stats: stats.clone(),
            flows: AtomicUsize::new(0),
            tcp_flows: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
            formers: AtomicUsize::new(0),
            successor: Mutex::new(None),
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
            sweeps: queues.iter().map(|_| Arc::default()).collect(),
            threads: vec![log_thread],
            failure,
            queues: queues.clone(),
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
                reading,
                poll,
                mailbox,
                sweep: Arc::clone(&dataplane.sweeps[index]),
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
    /// of the table; UDP flows to retired real servers end at once. It never waits.
    pub fn table_changed(&self) {
        for (sweep, (_, waker)) in self.sweeps.iter().zip(&self.mailboxes) {
            if sweep.ask() {
                // Fails for no worker that runs.
                let _ = waker.wake();
            }
        }
    }

    /// Serves pods from now on, or drops what they send; who counts as one is told
    /// by [`crate::ipvs::Table::counts_as_pod`].
    /// Flows that are open go on.
    pub fn serve_pods(&self, serve: bool) {
        self.shared.pod_traffic.store(serve, Ordering::Relaxed);
    }

    /// Whether pods are served.
    pub fn serves_pods(&self) -> bool {
        self.shared.pod_traffic.load(Ordering::Relaxed)
    }

    /// Has the workers follow these settings from now on: new flows all of them,
    /// those that are open the limits on their time. MTU and whether pods are served
    /// stay as they are.
    pub fn configure(&self, config: &Arc<DataplaneConfig>) {
        self.tell(|| Message::Configure(Arc::clone(config)));
    }

    /// Returns whether all workers have answered within `patience`.
    pub async fn answers(&self, patience: Duration) -> bool {
        let mut replies = Vec::new();
        for (mailbox, waker) in &self.mailboxes {
            let (sender, receiver) = oneshot::channel();
            // A worker whose mailbox is full does not read it.
            if mailbox.try_send(Message::Ping(sender)).is_err() || waker.wake().is_err() {
                return false;
            }
            replies.push(receiver);
        }
        answered(replies, patience).await
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

    /// The virtual IPs in these networks that have open flows: of this process, and of a
    /// former one whose packets come by here.
    pub async fn used(&self, nets: Vec<IpNet>) -> BTreeSet<IpAddr> {
        let nets: Arc<[IpNet]> = nets.into();
        let mut replies = Vec::new();
        self.tell(|| {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            Message::Used(Arc::clone(&nets), sender)
        });
        let mut used = BTreeSet::new();
        for reply in replies {
            // A worker that ended has no flows.
            used.extend(reply.await.unwrap_or_default());
        }
        used
    }

    /// Table, settings and limits, for workers that carry flows from elsewhere than
    /// the TUN: their flows count against the same limits, and drain with the rest.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The queues, for another process.
    ///
    /// # Errors
    /// As dup(2).
    pub fn queues(&self) -> io::Result<Vec<OwnedFd>> {
        let queues = self.queues.iter();
        queues
            .map(|queue| queue.as_fd().try_clone_to_owned())
            .collect()
    }

    /// Reads no queue any more, since another process will; packets of open flows come
    /// from there. It must be taken back by [`Dataplane::resume`] if that process does
    /// not read.
    ///
    /// # Errors
    /// When there are no descriptors, or a worker has ended; call `resume` then too.
    pub async fn suspend(&self) -> io::Result<Suspended> {
        let mut sockets = Vec::new();
        let mut ours = Vec::new();
        for _ in &self.mailboxes {
            let (here, there) = takeover::pair()?;
            ours.push(here);
            sockets.push(there);
        }
        let first = ours.first().map(OwnedFd::try_clone);
        self.shared.set_successor(first.transpose()?);
        let mut replies = Vec::new();
        let mut ours = ours.into_iter();
        self.tell_some(|| {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            Some(Message::Suspend(ours.next()?, sender))
        });
        let mut flows = Vec::new();
        for reply in replies {
            flows.extend(reply.await.map_err(io::Error::other)??);
        }
        Ok(Suspended { flows, sockets })
    }

    /// Reads the queues again.
    pub fn resume(&self) {
        self.shared.set_successor(None);
        self.tell(|| Message::Resume);
    }

    /// Reads the queues from now on, and passes packets of flows that a former process
    /// has on to it.
    ///
    /// # Errors
    /// When a worker has ended.
    pub async fn begin(&self, handed: Suspended) -> io::Result<()> {
        if !handed.sockets.is_empty() {
            self.shared.formers.fetch_add(1, Ordering::Relaxed);
        }
        let former = Arc::new(Former::new(handed, &self.shared));
        // All know of the flows before the first packet is read.
        self.each(|reply| Message::Follow(Arc::clone(&former), reply))
            .await?;
        self.each(Message::Begin).await
    }

    async fn each(
        &self,
        message: impl Fn(oneshot::Sender<io::Result<()>>) -> Message,
    ) -> io::Result<()> {
        let mut replies = Vec::new();
        self.tell(|| {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            message(sender)
        });
        for reply in replies {
            reply.await.map_err(io::Error::other)??;
        }
        Ok(())
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

    /// Returns when no flow is left, those of the node ports and of a former process
    /// included.
    pub async fn drained(&self) {
        self.without(&self.shared.flows).await;
    }

    /// Returns when no TCP flow is left, nor a former process.
    pub async fn tcp_drained(&self) {
        self.without(&self.shared.tcp_flows).await;
    }

    async fn without(&self, flows: &AtomicUsize) {
        let left = || {
            let flows = flows.load(Ordering::Relaxed);
            flows + self.shared.formers.load(Ordering::Relaxed)
        };
        while left() > 0 {
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
        self.tell_some(|| Some(message()));
    }

    fn tell_some(&self, mut message: impl FnMut() -> Option<Message>) {
        for (mailbox, waker) in &self.mailboxes {
            // A worker that ended needs no message.
            if let Some(message) = message()
                && mailbox.send(message).is_ok()
            {
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

/// Whether all of these are told within `patience`.
pub(crate) async fn answered(replies: Vec<oneshot::Receiver<()>>, patience: Duration) -> bool {
    let all = async {
        for reply in replies {
            if reply.await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(patience, all).await.unwrap_or(false)
}

/// A seed that differs between processes and workers; `RandomState` has its keys
/// from the system.
fn random_seed(worker: usize) -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_usize(worker);
    hasher.finish()
}
