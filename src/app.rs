//! Wiring, in the order of starting up.
//!
//! [`App::start`] opens what can be refused first, listeners and device, then
//! starts the workers, then lets objects in. [`App::run`] ends with the signal to
//! stop, after the flows have drained, or when a part has ended by itself.
//!
//! Tasks on the control runtime: the source, the control loop, the keeper of the
//! routes where they are not fixed, the health server and the admin server. All end with the [`App`]. The threads of the data plane
//! are its own and are joined before `run` returns; with the last queue the
//! kernel takes away device, addresses and routes.

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin::health::{self, Family, Health};
use crate::admin::readiness::{Blocker, Readiness, STOPPING};
use crate::admin::socket::AdminSocket;
use crate::config::{Config, PodTraffic, Source};
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::{AddressWatch, NodePorts};
use crate::service::index::Index;
use crate::source::kubernetes::ServiceCidrs;
use crate::source::{Batch, manifests};
use crate::tun::{Link, LinkConfig, Offloads, open_queues};
use cluster::Following;
use control::Control;
use explain::Explainer;
use exposure::Exposure;
use programming::ProgrammingLatency;
use routes::Wanted;
use settings::{dataplane_config, link_config, node_port_config};
use signals::Signals;
use view::ProxyView;

mod cluster;
mod control;
mod error;
mod explain;
mod exposure;
mod limits;
pub mod logging;
mod pods;
pub mod programming;
mod routes;
mod settings;
pub mod signals;
mod view;

pub use error::AppError;

/// Batches between source and control loop. While it is full the source waits,
/// and what changes meanwhile comes with its next batch: nothing is dropped.
const BATCHES: usize = 4;

/// A proxy that carries traffic.
#[derive(Debug)]
pub struct App {
    bound: Bound,
    config: Config,
    table: Arc<Table>,
    dataplane: Arc<Dataplane>,
    node_ports: Arc<NodePorts>,
    readiness: Readiness,
    latency: Arc<ProgrammingLatency>,
    tasks: JoinSet<Ended>,
    /// Its netlink task ends with it.
    _link: Arc<Link>,
}

/// What a running proxy has opened.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where health is served, with the port that the system chose for port 0.
    pub healthz: Option<SocketAddr>,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// Name of the TUN device.
    pub tun: String,
}

/// A task that has ended, and how.
type Ended = (&'static str, Option<io::Error>);

impl App {
    /// Starts a proxy. It serves once the first full state has come, which
    /// `/readyz` tells. Must be called within a multi-threaded tokio runtime, in
    /// the network namespace that the proxy is for.
    ///
    /// # Errors
    ///
    /// [`AppError`]; nothing is left behind then.
    pub async fn start(config: Config) -> Result<Self, AppError> {
        limits::raise_open_files(config.flows.max_flows);
        let connection = cluster::connect(&config.source).await?;
        let readiness = Readiness::new();
        let starting = readiness.block("starting");
        let unsynced = readiness.block("waiting for the first full state");
        let health = Health::new(readiness.clone(), families(&config.service_cidrs));

        let healthz = match config.healthz_bind_address {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let admin_socket = AdminSocket::bind(&config.admin_socket)?;

        let queues = open_queues(config.tun.name.as_str(), config.tun.workers.get())?;
        let link = Arc::new(Link::configure(link_config(&config, queues.index)).await?);
        let table = Arc::new(Table::new(config.flows.scheduler));
        let dataplane =
            Dataplane::start(dataplane_config(&config), Arc::clone(&table), queues.queues)?;
        let dataplane = Arc::new(dataplane);
        let node_ports = NodePorts::start(node_port_config(&config), &dataplane)?;
        let node_ports = Arc::new(node_ports);

        let bound = Bound {
            healthz: healthz
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()
                .ok()
                .flatten(),
            admin_socket: config.admin_socket.clone(),
            tun: queues.name,
        };
        announce(&bound, &config, queues.offloads);
        if let Some(reason) = link.ipv6_missing()
            && config.service_cidrs.iter().any(|net| net.addr().is_ipv6())
        {
            warn!(%reason, "IPv6 services are not reached: the node has no IPv6");
        }

        let mut tasks = JoinSet::new();
        if let Some(listener) = healthz {
            let serving = health::serve(listener, health.clone());
            tasks.spawn(async { ("the health server", serving.await.err()) });
        }
        let (sender, batches) = mpsc::channel(BATCHES);
        let index =
            Index::new(config.node_name.as_str()).with_ipvs_compat(config.flows.ipvs_compat);
        let fixed = !config.service_cidrs.is_empty();
        let wanted = if fixed {
            Wanted::beside(config.service_cidrs.clone())
        } else {
            Wanted::default()
        };
        let exposure = Exposure::new(Arc::clone(&node_ports), wanted.clone(), health.clone());
        let exposure = Arc::new(exposure);
        let control = Control::new(index, Arc::clone(&table), health, unsynced)
            .with_exposure(Arc::clone(&exposure));
        let view = ProxyView {
            table: Arc::clone(&table),
            dataplane: Arc::downgrade(&dataplane),
            node_ports: Arc::downgrade(&node_ports),
            explainer: Explainer {
                index: control.index(),
                table: Arc::clone(&table),
                dataplane: Arc::downgrade(&dataplane),
                tun_addresses: LinkConfig::addresses_or_default(&config.tun.addresses),
            },
        };
        let serving = admin_socket.serve(Arc::new(view));
        tasks.spawn(async { ("the admin server", serving.await.err()) });
        // Without a cluster nobody knows of service ranges.
        let (cidrs, ranges) = watch::channel(ServiceCidrs::Unknown);
        let mut server = Vec::new();
        match (&config.source, connection) {
            (Source::Cluster { .. }, Some(connection)) => {
                server = cluster::addresses(connection.server()).await;
                routes::warn_of_hazard(&mut server, config.service_cidrs.iter());
                Following {
                    connection,
                    node_name: config.node_name.clone(),
                    batches: sender,
                    service_cidrs: (!fixed).then_some(cidrs),
                    dataplane: (config.flows.pod_traffic == PodTraffic::Auto)
                        .then(|| Arc::clone(&dataplane)),
                }
                .spawn(&mut tasks);
            }
            (Source::Manifests(path), _) => {
                let reading = manifests::run(path.clone(), sender, future::pending());
                tasks.spawn(async {
                    reading.await;
                    ("the source of manifests", None)
                });
            }
            // A cluster has a connection; without one nothing is started.
            (Source::Cluster { .. }, None) => {}
        }
        let unrouted = readiness.block("waiting for the routes of services");
        let tun = Arc::clone(&link);
        let keeping = routes::keep(tun, wanted, ranges, unrouted, routes::RETRY, server);
        tasks.spawn(async {
            keeping.await;
            ("the keeper of routes", None)
        });
        let watch = AddressWatch::start();
        tasks.spawn(async move {
            exposure.follow(watch).await;
            ("the watch on addresses", None)
        });
        let latency = control.latency();
        let unopened = readiness.block("waiting for node ports");
        let programming = program(
            control,
            batches,
            Arc::clone(&dataplane),
            Arc::clone(&node_ports),
            unopened,
        );
        tasks.spawn(async {
            programming.await;
            ("the control loop", None)
        });
        drop(starting);
        Ok(Self {
            bound,
            config,
            table,
            dataplane,
            node_ports,
            readiness,
            latency,
            tasks,
            _link: link,
        })
    }

    /// What has been opened.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Whether the proxy is ready, and what it waits for.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// How long changes took from the cluster to the table.
    pub fn programming_latency(&self) -> &ProgrammingLatency {
        &self.latency
    }

    /// Carries traffic until a signal to stop comes and the flows have drained;
    /// a second signal ends the wait. Nothing is left when it returns.
    ///
    /// # Errors
    ///
    /// A part of the proxy has ended by itself; the rest is ended then.
    pub async fn run(mut self, mut signals: Signals) -> Result<(), AppError> {
        let readiness = self.readiness.clone();
        let announced = async {
            readiness.ready().await;
            info!("ready");
            notify(NotifyState::Ready);
            future::pending::<Infallible>().await
        };
        let stopped = tokio::select! {
            signal = signals.stop() => Ok(signal),
            ended = self.tasks.join_next() => Err(why_ended(ended)),
            reason = self.dataplane.failed() => Err(AppError::Worker { reason }),
            reason = self.node_ports.failed() => Err(AppError::Worker { reason }),
            never = announced => match never {},
        };
        notify(NotifyState::Stopping);
        let _stopping = self.readiness.block(STOPPING);
        let result = match stopped {
            Ok(signal) => {
                info!(signal, timeout = ?self.config.drain_timeout, "stopping, flows drain");
                self.drain(&mut signals).await
            }
            Err(error) => Err(error),
        };
        self.tasks.shutdown().await;
        // The last handles join the workers' threads.
        let threads = (self.node_ports, self.dataplane);
        spawn_blocking(move || drop(threads)).await?;
        info!("stopped");
        result
    }

    /// Takes no new flows and waits for those that run, as long as configured
    /// or until the next signal.
    async fn drain(&mut self, signals: &mut Signals) -> Result<(), AppError> {
        // A load balancer is told at once, by the kernel's refusal. Whom the kernel has
        // accepted before is a flow yet.
        self.node_ports.drain();
        self.node_ports.settled().await;
        self.table.set_draining(true);
        self.dataplane.drain();
        self.node_ports.hasten();
        let drained = timeout(self.config.drain_timeout, self.dataplane.drained());
        tokio::select! {
            drained = drained => {
                if drained.is_err() {
                    warn!("flows are still open after the time to drain: they are cut");
                }
                Ok(())
            }
            signal = signals.stop() => {
                warn!(signal, "the second signal: flows that are still open are cut");
                Ok(())
            }
            ended = self.tasks.join_next() => Err(why_ended(ended)),
            reason = self.dataplane.failed() => Err(AppError::Worker { reason }),
            reason = self.node_ports.failed() => Err(AppError::Worker { reason }),
        }
    }
}

fn announce(bound: &Bound, config: &Config, offloads: Offloads) {
    let service_cidrs: Vec<_> = config.service_cidrs.iter().map(IpNet::to_string).collect();
    info!(
        tun = bound.tun,
        workers = config.tun.workers,
        checksum_offload = offloads.checksum,
        tcp_segmentation_offload = offloads.tcp_segmentation,
        service_cidrs = service_cidrs.join(","),
        node = config.node_name,
        healthz = bound.healthz.map(tracing::field::display),
        admin_socket = %bound.admin_socket.display(),
        "started"
    );
}

/// The control loop: ends when the source has.
async fn program(
    mut control: Control,
    mut batches: mpsc::Receiver<Batch>,
    dataplane: Arc<Dataplane>,
    node_ports: Arc<NodePorts>,
    unopened: Blocker,
) {
    let mut unopened = Some(unopened);
    while let Some(batch) = batches.recv().await {
        let complete = batch.initial_complete;
        if control.program(batch) {
            dataplane.table_changed();
        }
        if complete && let Some(unopened) = unopened.take() {
            node_ports.settled().await;
            drop(unopened);
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Healthz { address, source })
}

/// The families of the service ranges; both while these are not known.
fn families(service_cidrs: &[IpNet]) -> Vec<Family> {
    if service_cidrs.is_empty() {
        return vec![Family::IPv4, Family::IPv6];
    }
    let family = |net: &IpNet| match net {
        IpNet::V4(_) => Family::IPv4,
        IpNet::V6(_) => Family::IPv6,
    };
    service_cidrs.iter().map(family).collect()
}

fn why_ended(ended: Option<Result<Ended, JoinError>>) -> AppError {
    match ended {
        Some(Ok((part, source))) => AppError::Ended { part, source },
        Some(Err(error)) => AppError::Panicked(error),
        None => AppError::Ended {
            part: "everything",
            source: None,
        },
    }
}

/// Tells systemd, if it listens (NOTIFY_SOCKET).
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager cannot be told");
    }
}
