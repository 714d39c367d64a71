//! What the control plane holds of the node ports.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::NodePortConfig;
use super::addresses::{NodeAddresses, NodePortAddress};
use super::plan::{Plan, Step, Steps};
use super::takeover::Lent;
use super::token::MAILBOX;
use super::unreachable::RawSockets;
use super::worker::{Message, Parts, Worker};
use crate::dataplane::{
    Counters, Dataplane, DataplaneConfig, FlowView, StartError, WorkerStats, Workers,
};
use crate::ipvs::{ServicePortName, Table};
use crate::service::Change;

/// The running node ports. Dropping it closes them.
#[derive(Debug)]
pub struct NodePorts {
    state: Mutex<State>,
    table: Arc<Table>,
    workers: Workers<Message>,
    stats: Vec<Arc<WorkerStats>>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    /// The node's addresses as its Node object names them.
    named: Vec<IpAddr>,
    /// Addresses of the node that are not for node ports.
    except: Vec<IpAddr>,
}

impl NodePorts {
    /// Starts the workers. They listen nowhere until [`NodePorts::program`] tells
    /// what for and [`NodePorts::set_open`] when. Their flows share table, settings and
    /// limits with `dataplane`.
    /// UDP clients are told through `raw` that nobody is there.
    ///
    /// # Errors
    /// When the system gives no epoll instance or no thread.
    pub fn start(
        config: NodePortConfig,
        raw: RawSockets,
        dataplane: &Dataplane,
    ) -> Result<Self, StartError> {
        let raw = Arc::new(raw);
        let shared = dataplane.shared();
        let (workers, inboxes, log) = Workers::prepare(config.workers.get(), MAILBOX)?;
        let mut plan = Plan::new(config.addresses);
        plan.set_addresses(NodeAddresses::read(&[], &config.except));
        let mut node_ports = Self {
            state: Mutex::new(State {
                plan,
                named: Vec::new(),
                except: config.except,
            }),
            table: Arc::clone(&shared.table),
            workers,
            stats: Vec::new(),
        };
        for (worker, inbox) in inboxes.into_iter().enumerate() {
            let stats = Arc::new(WorkerStats::default());
            node_ports.stats.push(Arc::clone(&stats));
            let parts = Parts {
                shared: Arc::clone(&shared),
                stats,
                inbox,
                log: log.clone(),
                raw: Arc::clone(&raw),
            };
            node_ports
                .workers
                .spawn(format!("node-port-{worker}"), move || {
                    Worker::new(parts).run().map_err(|error| {
                        tracing::error!(worker, %error, "a worker of the node ports failed");
                        format!("node port worker {worker}: {error}")
                    })
                })?;
        }
        Ok(node_ports)
    }

    /// Takes changes of the table in, after the table has: listeners open and close,
    /// UDP flows to real servers that retired end.
    pub fn program(&self, changes: &[Change]) {
        let mut state = self.state();
        for change in changes {
            if let Change::Node(network) = change
                && network.addresses != state.named
            {
                state.named.clone_from(&network.addresses);
                self.read_addresses(&mut state);
            }
        }
        let Steps { steps, masked } = state.plan.program(changes);
        masked.iter().for_each(|service| tell_masked(service));
        // Still under the lock: the workers see steps in the order of the changes.
        self.carry_out(steps);
        drop(state);
        self.workers.sweep();
    }

    /// Looks at the node's addresses again: call it when they may have changed.
    /// Returns whether they have.
    pub fn addresses_changed(&self) -> bool {
        let changed = self.read_addresses(&mut self.state());
        if changed {
            self.workers.tell(|| Message::Addresses);
        }
        changed
    }

    /// The node's addresses when they were last read: a virtual IP among them is
    /// served by a listener here, any other needs a route.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.state().plan.addresses().all.clone()
    }

    /// The addresses that node ports are opened on.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.state().plan.chosen().clone()
    }

    /// Opens the listeners, or closes them; flows go on. They are closed until the
    /// table serves; a process that ends closes them by [`NodePorts::drain`].
    pub fn set_open(&self, open: bool) {
        let mut state = self.state();
        let steps = state.plan.set_open(open);
        self.carry_out(steps);
    }

    /// Has the workers follow these settings from now on, as
    /// [`Dataplane::configure`].
    pub fn configure(&self, config: &Arc<DataplaneConfig>) {
        self.workers.tell(|| Message::Configure(Arc::clone(config)));
    }

    /// Opens node ports on these of the node's addresses from now on; empty for
    /// all. Flows go on.
    pub fn set_wanted(&self, wanted: Vec<NodePortAddress>) {
        let mut state = self.state();
        let steps = state.plan.set_wanted(wanted);
        self.carry_out(steps);
    }

    /// Returns whether all workers have answered within `patience`.
    pub async fn answers(&self, patience: Duration) -> bool {
        self.workers.answer(Message::Settled, patience).await
    }

    /// The process ends. Listeners close, those of UDP when the last flow through them
    /// has ended. What the kernel has accepted before is still served, if the table
    /// takes new flows until [`NodePorts::settled`] returns. Flows go on; a UDP flow is
    /// over after 5 s of silence once [`Dataplane::drain`] was called too.
    pub fn drain(&self) {
        let mut state = self.state();
        for step in state.plan.set_open(false) {
            match step {
                Step::Close(at) | Step::Linger(at) => {
                    self.send(at.address.port(), Message::Drain(at));
                }
                Step::Open(listen) => {
                    self.send(listen.at.address.port(), Message::Open(listen));
                }
            }
        }
        drop(state);
    }

    /// Leaves listeners and UDP flows to another process: nothing is taken from them
    /// here. It must be taken back by [`NodePorts::reclaim`] if that process does not go
    /// on with them.
    ///
    /// # Errors
    /// When there are no descriptors, or a worker has ended; call `reclaim` then too.
    pub async fn lend(&self) -> io::Result<Lent> {
        let mut lent = Lent::default();
        for reply in self.workers.ask(Message::Lend) {
            lent.append(reply.await.map_err(io::Error::other)??);
        }
        Ok(lent)
    }

    /// Takes from the listeners again.
    pub fn reclaim(&self) {
        self.workers.tell(|| Message::Reclaim);
    }

    /// Closes here what another process has now. Relayed connections go on.
    pub fn release(&self) {
        let mut state = self.state();
        // The sockets are closed without the plan's steps, and not opened again.
        drop(state.plan.set_open(false));
        self.workers.tell(|| Message::Release);
    }

    /// Goes on with what another process had: call it before [`NodePorts::set_open`]. What
    /// this process does not listen on is closed by an empty `lent` after that, but for
    /// UDP listeners of services without endpoints that have flows.
    pub fn inherit(&self, lent: Lent) {
        let split = lent.split(self.workers.mailboxes().len());
        self.workers
            .tell_each(split.into_iter().map(Message::Inherit));
    }

    /// UDP flows are over after less silence now.
    pub fn hasten(&self) {
        self.workers.tell(|| Message::Hasten);
    }

    /// Returns when the workers have done all they were told before.
    pub async fn settled(&self) {
        for reply in self.workers.ask(Message::Settled) {
            // A worker that ended has nothing to do.
            let _ = reply.await;
        }
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

    /// The counters of all workers. Flows and memory are among those of the
    /// [`Dataplane`].
    pub fn counters(&self) -> Counters {
        Counters::sum(self.stats.iter().map(AsRef::as_ref))
    }

    /// Returns when a worker has failed, with the reason.
    pub async fn failed(&self) -> String {
        self.workers.failed().await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_addresses(&self, state: &mut State) -> bool {
        let addresses = NodeAddresses::read(&state.named, &state.except);
        if addresses == *state.plan.addresses() {
            return false;
        }
        let own = addresses.all.clone();
        let steps = state.plan.set_addresses(addresses);
        self.carry_out(steps);
        // Those that are link-local are not listed and may be there still.
        self.table
            .retain_node_addresses(|ip| own.contains(&ip) || is_link_local(ip));
        true
    }

    fn carry_out(&self, steps: Vec<Step>) {
        for step in steps {
            let (port, message) = match step {
                Step::Open(listen) => (listen.at.address.port(), Message::Open(listen)),
                Step::Close(at) => (at.address.port(), Message::Close(at)),
                Step::Linger(at) => (at.address.port(), Message::Drain(at)),
            };
            self.send(port, message);
        }
    }

    /// Tells the worker that has the port. A port is one worker's, whatever the address,
    /// so that steps that concern one another stay in order.
    fn send(&self, port: u16, message: Message) {
        let worker = usize::from(port) % self.workers.mailboxes().len().max(1);
        self.workers.tell_one(worker, message);
    }
}

impl Drop for NodePorts {
    fn drop(&mut self) {
        self.workers.end(|| Message::Stop);
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn tell_masked(service: &ServicePortName) {
    tracing::warn!(
        service = %format_args!("{}/{}", service.namespace, service.name),
        mend = "where its endpoints understand the PROXY protocol, annotate the Service with \
                kube-tun-proxy.io/proxy-protocol: v1 (or v2)",
        "externalTrafficPolicy is Local: only endpoints of this node are used, but they see \
         this node as the client"
    );
}
