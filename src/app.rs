//! Wiring, in the order of starting up.
//!
//! [`App::start`] opens what can be refused first, listeners and device, then
//! starts the workers, then lets objects in. [`App::run`] ends with the signal to
//! stop, after the flows have drained, or when a part has ended by itself.
//!
//! Tasks on the control runtime: the source, the control loop, the keeper of the
//! routes where they are not fixed, the follower of the kernel in fallback mode, the
//! health, metrics and admin servers and the recorder of rates. All end with the
//! [`App`]. The threads of the data plane are its own and are joined before `run`
//! returns; with the last queue the kernel takes away device, addresses and routes,
//! unless `init` has made them. [`confinement`] says which thread keeps which privilege.

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin::health::{self, Family, Health};
use crate::admin::history::Recorder;
use crate::admin::readiness::{Blocker, Readiness};
use crate::admin::socket::AdminSocket;
use crate::admin::web;
use crate::config::{Config, Mode, PodTraffic, Settings, Source};
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node::links::Node;
use crate::node_port::{AddressWatch, NodePorts, RawSockets};
use crate::service::index::Index;
use crate::source::kubernetes::ServiceCidrs;
use crate::source::{Batch, manifests};
use crate::tun::{Link, LinkConfig, Offloads};
use cluster::Following;
use confinement::{Confinement, unprivileged};
use control::Control;
use device::Device;
use explain::Explainer;
use exposure::Exposure;
use fallback::Follower;
use logging::LogLevel;
use observe::{ApiServer, Observer};
use pods::PodGate;
use programming::ProgrammingLatency;
use reload::Reloader;
use routes::Wanted;
use settings::{dataplane_config, node_port_config};
use signals::{Signals, Told};
use view::ProxyView;
use watchdog::Vitals;

mod cluster;
pub mod confinement;
mod control;
mod device;
mod error;
mod explain;
mod exposure;
mod fallback;
mod limits;
pub mod logging;
mod observe;
mod pods;
pub mod prepare;
mod process;
pub mod programming;
mod reload;
mod routes;
mod settings;
pub mod signals;
mod syncs;
#[cfg(test)]
mod testing;
mod view;
mod watchdog;

pub use error::AppError;
pub use fallback::{Participation, Standing};

/// Batches between source and control loop. While it is full the source waits,
/// and what changes meanwhile comes with its next batch: nothing is dropped.
const BATCHES: usize = 4;

/// A proxy that carries traffic.
#[derive(Debug)]
pub struct App {
    bound: Bound,
    /// What is in effect.
    config: watch::Sender<Arc<Config>>,
    table: Arc<Table>,
    dataplane: Arc<Dataplane>,
    node_ports: Arc<NodePorts>,
    readiness: Readiness,
    health: Health,
    reloader: Reloader,
    latency: Arc<ProgrammingLatency>,
    participation: Option<Participation>,
    tasks: JoinSet<Ended>,
    /// Its netlink task ends with it.
    _link: Arc<Link>,
}

/// What a running proxy has opened.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where health is served, with the port that the system chose for port 0.
    pub healthz: Option<SocketAddr>,
    /// Where metrics and the status page are, in the same way.
    pub metrics: Option<SocketAddr>,
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
    /// The calling thread gives up its privileges, as [`Confinement`] has it.
    ///
    /// # Errors
    ///
    /// [`AppError`]; nothing is left behind then.
    pub async fn start(
        config: Config,
        log: LogLevel,
        confinement: &Confinement,
    ) -> Result<Self, AppError> {
        let started = (Instant::now(), SystemTime::now());
        limits::raise_open_files(config.flows.max_flows);
        let connection = cluster::connect(&config.source).await?;
        let readiness = Readiness::new();
        let starting = readiness.block("starting");
        let unsynced = readiness.block("waiting for the first full state");
        let health = Health::new(readiness.clone(), families(&config.service_cidrs));

        let healthz = match config.healthz_bind_address {
            Some(address) => Some(listen("--healthz-bind-address", address).await?),
            None => None,
        };
        let metrics = match config.metrics_bind_address {
            Some(address) => Some(listen("--metrics-bind-address", address).await?),
            None => None,
        };
        let admin_socket = AdminSocket::bind(&config.admin_socket)?;

        let Device {
            queues,
            link,
            is_prepared,
        } = device::open(&config).await?;
        let table = Arc::new(Table::new(config.flows.scheduler));
        // The workers have no privilege, those of node ports one, and then this thread none.
        let dataplane = unprivileged(|| {
            Dataplane::start(dataplane_config(&config), Arc::clone(&table), queues.queues)
        });
        let dataplane = Arc::new(dataplane.map_err(AppError::Threads)??);
        let raw = RawSockets::open();
        confinement.confine_to_node_ports();
        let node_ports = NodePorts::start(node_port_config(&config), raw, &dataplane)?;
        let node_ports = Arc::new(node_ports);
        confinement.confine_main();

        let bound = Bound {
            healthz: address_of(healthz.as_ref()),
            metrics: address_of(metrics.as_ref()),
            admin_socket: config.admin_socket.clone(),
            tun: queues.name,
        };
        announce(&bound, &config, queues.offloads);
        if is_prepared {
            let may = Node::open().map_err(AppError::Node)?.may_configure().await;
            limits::tell_of_privileges(may.unwrap_or(false));
        }
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
        let wanted = if config.fixed_routes {
            wanted.only_fixed()
        } else {
            wanted
        };
        let falls_back = config.mode == Mode::Fallback;
        let wanted = if falls_back { wanted.idle() } else { wanted };
        let exposure = Exposure::new(
            Arc::clone(&node_ports),
            wanted.clone(),
            health.clone(),
            config.flows.max_flows,
        );
        let exposure = Arc::new(exposure);
        let participation = falls_back.then(Participation::new);
        if let Some(participation) = &participation {
            let undecided = readiness.block("waiting to see what the kernel carries");
            exposure.set_active(false);
            let follower = Follower {
                kube_proxy: config.kube_proxy_healthz,
                routes: wanted.clone(),
                exposure: Arc::clone(&exposure),
                dataplane: Arc::clone(&dataplane),
                health: health.clone(),
                participation: participation.clone(),
                drain_timeout: config.drain_timeout,
            };
            let node = Node::open().map_err(AppError::Node)?;
            tasks.spawn(async {
                follower.run(node, undecided).await;
                ("the follower of the kernel", None)
            });
        }
        let control = Control::new(index, Arc::clone(&table), health.clone(), unsynced)
            .with_exposure(Arc::clone(&exposure));
        let flows = &config.flows;
        let cluster = matches!(config.source, Source::Cluster { .. });
        // Without a cluster nothing speaks against pods.
        let auto = (!cluster).then_some(true);
        let pods = PodGate::new(Arc::clone(&dataplane), flows.pod_traffic, auto);
        let pods = Arc::new(pods);
        let reloader = Reloader {
            table: Arc::clone(&table),
            index: control.index(),
            dataplane: Arc::clone(&dataplane),
            node_ports: Arc::clone(&node_ports),
            exposure: Arc::clone(&exposure),
            pods: Arc::clone(&pods),
            log: log.clone(),
        };
        let in_effect = watch::Sender::new(Arc::new(config.clone()));
        let api_server = connection.as_ref().map(ApiServer::of);
        let observer = Observer {
            table: Arc::clone(&table),
            dataplane: Arc::downgrade(&dataplane),
            node_ports: Arc::downgrade(&node_ports),
            index: control.index(),
            health: health.clone(),
            syncs: control.syncs(),
            latency: control.latency(),
            recorder: Recorder::new(config.metrics_max_services),
            config: in_effect.subscribe(),
            node: config.node_name.clone(),
            source: observe::source(&config, api_server.as_ref()),
            api_server,
            started,
            participation: participation.clone(),
        };
        let observer = Arc::new(observer);
        let view = ProxyView {
            observer: Arc::clone(&observer),
            config: in_effect.subscribe(),
            log,
            explainer: Explainer {
                index: control.index(),
                table: Arc::clone(&table),
                dataplane: Arc::downgrade(&dataplane),
                tun_addresses: LinkConfig::addresses_or_default(&config.tun.addresses),
            },
        };
        let view = Arc::new(view);
        let serving = admin_socket.serve(Arc::clone(&view));
        tasks.spawn(async { ("the admin server", serving.await.err()) });
        if let Some(listener) = metrics {
            let name = config.node_name.clone();
            let serving = async move { web::serve(listener, view, &name).await };
            tasks.spawn(async { ("the metrics server", serving.await.err()) });
        }
        tasks.spawn(async move {
            observer.record().await;
            ("the recorder of rates", None)
        });
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
                    pods: (config.flows.pod_traffic == PodTraffic::Auto).then_some(pods),
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
            config: in_effect,
            table,
            dataplane,
            node_ports,
            readiness,
            health,
            reloader,
            latency,
            participation,
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

    /// The configuration in effect, as it changes.
    pub fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// How long changes took from the cluster to the table.
    pub fn programming_latency(&self) -> &ProgrammingLatency {
        &self.latency
    }

    /// Whether the proxy takes part at present, with `--mode fallback`.
    pub fn participation(&self) -> Option<&Participation> {
        self.participation.as_ref()
    }

    /// Carries traffic until a signal to stop comes and the flows have drained;
    /// a second signal ends the wait. Nothing is left when it returns. SIGHUP has
    /// `settings` read again.
    ///
    /// # Errors
    ///
    /// A part of the proxy has ended by itself; the rest is ended then.
    pub async fn run(mut self, mut signals: Signals, settings: &Settings) -> Result<(), AppError> {
        let readiness = self.readiness.clone();
        let announced = async {
            readiness.ready().await;
            info!("ready");
            notify(NotifyState::Ready);
            future::pending::<Infallible>().await
        };
        let (reloader, config) = (&self.reloader, &self.config);
        let told = async {
            loop {
                match signals.next().await {
                    Told::Stop(signal) => return signal,
                    Told::Reload => reloader.reload(settings, config),
                }
            }
        };
        let vitals = Vitals {
            dataplane: Arc::clone(&self.dataplane),
            node_ports: Arc::clone(&self.node_ports),
            health: self.health.clone(),
        };
        let stopped = tokio::select! {
            signal = told => Ok(signal),
            never = vitals.tell() => match never {},
            ended = self.tasks.join_next() => Err(why_ended(ended)),
            reason = self.dataplane.failed() => Err(AppError::Worker { reason }),
            reason = self.node_ports.failed() => Err(AppError::Worker { reason }),
            never = announced => match never {},
        };
        drop(vitals);
        notify(NotifyState::Stopping);
        let _stopping = self.readiness.block("stopping");
        let result = match stopped {
            Ok(signal) => {
                info!(signal, timeout = ?self.config.borrow().drain_timeout, "stopping, flows drain");
                self.drain(&mut signals).await
            }
            Err(error) => Err(error),
        };
        self.tasks.shutdown().await;
        drop(self.reloader);
        // The last handles join the workers' threads.
        let threads = (self.node_ports, self.dataplane);
        spawn_blocking(move || drop(threads)).await?;
        info!("stopped");
        result
    }

    /// Takes no new flows and waits for those that run, as long as configured
    /// or until the next signal.
    async fn drain(&mut self, signals: &mut Signals) -> Result<(), AppError> {
        self.table.set_draining(true);
        // A load balancer is told at once, by the kernel's refusal.
        self.node_ports.set_open(false);
        let limit = self.config.borrow().drain_timeout;
        let drained = timeout(limit, self.dataplane.drained());
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
        metrics = bound.metrics.map(tracing::field::display),
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

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen {
            flag,
            address,
            source,
        })
}

/// With the port that the system chose.
fn address_of(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
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
