//! What the control plane holds of the data plane.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashmap::DashMap;
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::shared::{Message, Owners, Shared};
use super::stats::{Counters, WorkerStats};
use super::takeover::{self, Former, Suspended};
use super::view::FlowView;
use super::worker::{MAILBOX, Parts, Worker};
use super::workers::{StartError, Workers};
use super::{DataplaneConfig, SharedTable};
use crate::tun::Queue;

/// How often [`Dataplane::drained`] looks.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The running workers. Dropping it stops them.
#[derive(Debug)]
pub struct Dataplane {
    shared: Arc<Shared>,
    workers: Workers<Message>,
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
        let (workers, inboxes, log) = Workers::prepare(queues.len(), MAILBOX)?;
        let stats: Vec<_> = queues
            .iter()
            .map(|_| Arc::new(WorkerStats::default()))
            .collect();
        let owners = (queues.len() > 1).then(|| Owners {
            of: DashMap::default(),
            mailboxes: workers.mailboxes().to_vec(),
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
        let mut dataplane = Self {
            shared: Arc::clone(&shared),
            workers,
            queues: queues.clone(),
        };
        let parts = queues.into_iter().zip(inboxes).zip(stats).enumerate();
        for (index, ((queue, inbox), stats)) in parts {
            let parts = Parts {
                index,
                shared: Arc::clone(&shared),
                stats,
                queue,
                reading,
                inbox,
                log: log.clone(),
                seed: random_seed(index),
            };
            dataplane
                .workers
                .spawn(format!("worker-{index}"), move || {
                    // A worker stays on the thread it was made on: its rings are counted
                    // without locks.
                    Worker::new(parts).run().map_err(|error| {
                        tracing::error!(worker = index, %error, "the TUN queue failed");
                        format!("TUN queue {index}: {error}")
                    })
                })?;
        }
        Ok(dataplane)
    }

    /// Tells the workers that real servers may have retired. Call it after changes
    /// of the table; UDP flows to retired real servers end at once. It never waits.
    pub fn table_changed(&self) {
        self.workers.sweep();
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
        self.workers.tell(|| Message::Configure(Arc::clone(config)));
    }

    /// Returns whether all workers have answered within `patience`.
    pub async fn answers(&self, patience: Duration) -> bool {
        self.workers.answer(Message::Ping, patience).await
    }

    /// All flows, in no order.
    pub async fn flows(&self) -> Vec<FlowView> {
        let mut flows = Vec::new();
        for reply in self.workers.ask(Message::Flows) {
            // A worker that ended has no flows.
            flows.extend(reply.await.unwrap_or_default());
        }
        flows
    }

    /// The virtual IPs in these networks that have open flows: of this process, and of a
    /// former one whose packets come by here.
    pub async fn used(&self, nets: Vec<IpNet>) -> BTreeSet<IpAddr> {
        let nets: Arc<[IpNet]> = nets.into();
        let ask = |reply| Message::Used(Arc::clone(&nets), reply);
        let mut used = BTreeSet::new();
        for reply in self.workers.ask(ask) {
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
        for _ in self.workers.mailboxes() {
            let (here, there) = takeover::pair()?;
            ours.push(here);
            sockets.push(there);
        }
        let first = ours.first().map(OwnedFd::try_clone);
        self.shared.set_successor(first.transpose()?);
        let (replies, answers): (Vec<_>, Vec<_>) = ours.iter().map(|_| oneshot::channel()).unzip();
        let messages = ours.into_iter().zip(replies);
        self.workers
            .tell_each(messages.map(|(socket, reply)| Message::Suspend(socket, reply)));
        let mut flows = Vec::new();
        for answer in answers {
            flows.extend(answer.await.map_err(io::Error::other)??);
        }
        Ok(Suspended { flows, sockets })
    }

    /// Reads the queues again.
    pub fn resume(&self) {
        self.shared.set_successor(None);
        self.workers.tell(|| Message::Resume);
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
        for reply in self.workers.ask(message) {
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
        self.workers.tell(|| Message::Drain);
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
        self.workers.failed().await
    }

    /// Resets what is open, ends the threads and waits for them.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.workers.end(|| Message::Stop);
    }
}

/// A seed that differs between processes and workers; `RandomState` has its keys
/// from the system.
fn random_seed(worker: usize) -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_usize(worker);
    hasher.finish()
}
