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

use std::collections::BTreeSet;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin::health::{self, Family, Health};
use crate::admin::readiness::{Blocker, Readiness};
use crate::admin::socket::{AdminSocket, FileLent};
use crate::config::{Config, PodTraffic, Source};
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::{AddressWatch, Lent, NodePorts};
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
use takeover::{FormerSide, HEALTHZ, NamedListener};
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
mod run;
mod settings;
pub mod signals;
mod takeover;
mod view;

pub use error::AppError;
pub use takeover::TakeoverError;

/// Batches between source and control loop. While it is full the source waits,
/// and what changes meanwhile comes with its next batch: nothing is dropped.
const BATCHES: usize = 4;

/// How long questions for the health of a process that has taken over wait at most for
/// it to be ready, as the former one was. A kubelet's probe waits for 1 s (timeoutSeconds).
const SUCCESSION: Duration = Duration::from_millis(500);

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
    /// What another process goes on with after a hand-over.
    public: JoinSet<Ended>,
    exposure: Arc<Exposure>,
    former: FormerSide,
    admin_lent: FileLent,
    /// New processes that want to take over.
    takeovers: mpsc::Receiver<UnixStream>,
    /// It has taken over from another process.
    succeeds: bool,
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

        let greeted = if config.takeover {
            takeover::greet(&config).await?
        } else {
            None
        };
        let (mut predecessor, adopted) = greeted.unzip();
        let healthz = match config.healthz_bind_address {
            Some(address) => {
                let before = predecessor.as_mut();
                let inherited = before.and_then(|before| before.listener(HEALTHZ, address));
                Some(listen(address, inherited).await?)
            }
            None => None,
        };
        let admin_socket = match predecessor.as_mut().and_then(|before| before.admin.take()) {
            Some(socket) => AdminSocket::adopt(socket, &config.admin_socket)?,
            None => AdminSocket::bind(&config.admin_socket)?,
        };
        let (admin, admin_lent) = admin_socket.lend().map_err(AppError::Descriptors)?;

        let queues = match adopted {
            Some(queues) => queues,
            None => open_queues(config.tun.name.as_str(), config.tun.workers.get())?,
        };
        let link = Arc::new(Link::configure(link_config(&config, queues.index)).await?);
        let mut found = BTreeSet::new();
        let table = Arc::new(Table::new(config.flows.scheduler));
        let start = if predecessor.is_some() {
            found.extend(link.routes().await?);
            found.retain(|route| !config.service_cidrs.contains(route));
            Dataplane::start_held
        } else {
            Dataplane::start
        };
        let dataplane = start(dataplane_config(&config), Arc::clone(&table), queues.queues)?;
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

        let mut listeners = Vec::new();
        if let (Some(listener), Some(address)) = (&healthz, bound.healthz) {
            let socket = listener.as_fd().try_clone_to_owned();
            listeners.push(NamedListener {
                name: HEALTHZ,
                address,
                socket: socket.map_err(AppError::Descriptors)?,
            });
        }
        let mut tasks = JoinSet::new();
        let (sender, batches) = mpsc::channel(BATCHES);
        let index =
            Index::new(config.node_name.as_str()).with_ipvs_compat(config.flows.ipvs_compat);
        let fixed = !config.service_cidrs.is_empty();
        let wanted = if fixed {
            Wanted::beside(config.service_cidrs.clone())
        } else {
            Wanted::default()
        };
        let held = predecessor.is_some();
        let exposure = Exposure::new(
            Arc::clone(&node_ports),
            wanted.clone(),
            health.clone(),
            held,
        );
        let exposure = Arc::new(exposure);
        let control = Control::new(index, Arc::clone(&table), health.clone(), unsynced)
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
        let watch = AddressWatch::start();
        let following = Arc::clone(&exposure);
        tasks.spawn(async move {
            following.follow(watch).await;
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
        let succeeds = predecessor.is_some();
        if let Some(predecessor) = predecessor {
            tokio::select! {
                () = exposure.completed() => {}
                ended = tasks.join_next() => return Err(why_ended(ended)),
            }
            predecessor.take(&table, &dataplane, &node_ports).await?;
            admin_lent.set(false);
            exposure.let_go();
            node_ports.settled().await;
            // What is not listened on any more.
            node_ports.inherit(Lent::default());
        }
        // What follows is one process's at a time.
        let mut public = JoinSet::new();
        let (sender, takeovers) = mpsc::channel(1);
        let serving = admin_socket.serve(Arc::new(view), sender);
        public.spawn(async { ("the admin server", serving.await.err()) });
        let tun = Arc::clone(&link);
        let keeping = routes::keep(tun, wanted, ranges, unrouted, routes::RETRY, server, found);
        public.spawn(async {
            keeping.await;
            ("the keeper of routes", None)
        });
        let former = FormerSide {
            tun: bound.tun.clone(),
            offloads: queues.offloads,
            admin,
            listeners,
            table: Arc::clone(&table),
            dataplane: Arc::clone(&dataplane),
            node_ports: Arc::clone(&node_ports),
        };
        drop(starting);
        if succeeds {
            // Whoever asks meanwhile waits, and does not hear that nobody is ready.
            let _ = timeout(SUCCESSION, readiness.ready()).await;
        }
        if let Some(listener) = healthz {
            let serving = health::serve(listener, health);
            public.spawn(async { ("the health server", serving.await.err()) });
        }
        Ok(Self {
            bound,
            config,
            table,
            dataplane,
            node_ports,
            readiness,
            latency,
            tasks,
            public,
            exposure,
            former,
            admin_lent,
            takeovers,
            succeeds,
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

async fn listen(address: SocketAddr, inherited: Option<OwnedFd>) -> Result<TcpListener, AppError> {
    let listener = match inherited {
        Some(socket) => TcpListener::from_std(socket.into()),
        None => TcpListener::bind(address).await,
    };
    listener.map_err(|source| AppError::Healthz { address, source })
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
