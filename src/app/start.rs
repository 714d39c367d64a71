//! A proxy that starts, anew or in place of another.

use std::collections::BTreeSet;
use std::future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::checks::Checker;
use super::cluster::{self, Following};
use super::confinement::{Confinement, unprivileged};
use super::control::Control;
use super::device::{self, Device};
use super::explain::Explainer;
use super::exposure::Exposure;
use super::fallback::{Follower, Participation};
use super::logging::LogLevel;
use super::observe::{self, ApiServer, Observer};
use super::pods::PodGate;
use super::reload::Reloader;
use super::routes;
use super::settings::{cluster_cidrs, dataplane_config, families, node_port_config, wanted_routes};
use super::takeover::{self, FormerSide, HEALTHZ, METRICS, NamedListener, Predecessor};
use super::view::ProxyView;
use super::{App, AppError, limits, why_ended};
use crate::admin::health::{self, Health};
use crate::admin::history::Recorder;
use crate::admin::readiness::Readiness;
use crate::admin::socket::AdminSocket;
use crate::admin::web;
use crate::config::{Config, Mode, PodTraffic, Source};
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node::links::Node;
use crate::node_port::{AddressWatch, Lent, NodePorts, RawSockets};
use crate::service::index::Index;
use crate::source::kubernetes::ServiceCidrs;
use crate::source::manifests;
use crate::tun::{Link, LinkConfig, Offloads};

/// Batches between source and control loop. While it is full the source waits,
/// and what changes meanwhile comes with its next batch: nothing is dropped.
const BATCHES: usize = 4;

/// How long questions for the health of a process that has taken over wait at most for
/// it to be ready, as the former one was. A kubelet's probe waits for 1 s (timeoutSeconds).
const SUCCESSION: Duration = Duration::from_millis(500);

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

        let greeted = if config.takeover {
            takeover::greet(&config).await?
        } else {
            None
        };
        let (mut predecessor, adopted) = greeted.unzip();
        let succeeds = predecessor.is_some();
        let healthz = listen(HEALTHZ, config.healthz_bind_address, &mut predecessor).await?;
        let metrics = listen(METRICS, config.metrics_bind_address, &mut predecessor).await?;
        let admin_socket = match predecessor.as_mut().and_then(|before| before.admin.take()) {
            Some(socket) => AdminSocket::adopt(socket, &config.admin_socket)?,
            None => AdminSocket::bind(&config.admin_socket)?,
        };
        let (admin, admin_lent) = admin_socket.lend().map_err(AppError::Descriptors)?;

        let Device {
            queues,
            link,
            is_prepared,
        } = device::open(&config, adopted).await?;
        let table = Arc::new(Table::new(config.flows.scheduler));
        // The workers have no privilege, those of node ports one, and then this thread none.
        let start = if succeeds {
            Dataplane::start_held
        } else {
            Dataplane::start
        };
        let dataplane =
            unprivileged(|| start(dataplane_config(&config), Arc::clone(&table), queues.queues));
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

        let listeners = [(HEALTHZ, healthz.as_ref()), (METRICS, metrics.as_ref())];
        let listeners = NamedListener::all(listeners).map_err(AppError::Descriptors)?;
        let mut tasks = JoinSet::new();
        let (sender, batches) = mpsc::channel(BATCHES);
        let index = Index::new(config.node_name.as_str())
            .with_ipvs_compat(config.flows.ipvs_compat)
            .with_cluster_cidrs(cluster_cidrs(&config));
        let fixed = !config.service_cidrs.is_empty();
        let wanted = wanted_routes(&config);
        let exposure = Exposure::new(
            Arc::clone(&node_ports),
            wanted.clone(),
            health.clone(),
            config.flows.max_flows,
            succeeds,
        );
        let exposure = Arc::new(exposure);
        let mut follower = None;
        if config.mode == Mode::Fallback {
            let undecided = readiness.block("waiting to see what the kernel carries");
            exposure.set_active(false);
            let follows = Follower {
                kube_proxy: config.kube_proxy_healthz,
                routes: wanted.clone(),
                exposure: Arc::clone(&exposure),
                dataplane: Arc::clone(&dataplane),
                health: health.clone(),
                participation: Participation::new(),
                drain_timeout: config.drain_timeout,
                takes_part: false,
            };
            let node = Node::open().map_err(AppError::Node)?;
            follower = Some((follows, node, undecided));
        }
        let participation = follower.as_ref().map(|(its, ..)| its.participation.clone());
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
            participation,
        };
        let observer = Arc::new(observer);
        let view = ProxyView {
            observer: Arc::clone(&observer),
            config: in_effect.subscribe(),
            checker: Checker::new(in_effect.subscribe()),
            log,
            explainer: Explainer {
                index: control.index(),
                table: Arc::clone(&table),
                dataplane: Arc::downgrade(&dataplane),
                tun_addresses: LinkConfig::addresses_or_default(&config.tun.addresses),
            },
        };
        let view = Arc::new(view);
        // Without a cluster nobody knows of service ranges.
        let (cidrs, ranges) = watch::channel(ServiceCidrs::Unknown);
        let mut server = Vec::new();
        let follows_pods = cluster && config.flows.pod_traffic == PodTraffic::Auto;
        let first_reads = cluster::first_reads(
            follows_pods.then(|| Arc::clone(&pods)),
            (cluster && !fixed).then(|| ranges.clone()),
        );
        match (&config.source, connection) {
            (Source::Cluster { .. }, Some(connection)) => {
                server = connection.addresses().await;
                routes::warn_of_hazard(&mut server, config.service_cidrs.iter());
                Following {
                    connection,
                    node_name: config.node_name.clone(),
                    batches: sender,
                    service_cidrs: (!fixed).then_some(cidrs),
                    pods: follows_pods.then_some(pods),
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
        let unopened = readiness.block("waiting for node ports");
        let programming = control.run(
            batches,
            Arc::clone(&dataplane),
            Arc::clone(&node_ports),
            unopened,
        );
        tasks.spawn(async {
            programming.await;
            ("the control loop", None)
        });
        let mut found = BTreeSet::new();
        if let Some(predecessor) = predecessor {
            tokio::select! {
                _ = async { tokio::join!(exposure.completed(), first_reads) } => {}
                ended = tasks.join_next() => return Err(why_ended(ended)),
            }
            predecessor
                .take(&table, &dataplane, &node_ports, &exposure)
                .await?;
            admin_lent.set(false);
            found = routes_of(&link).await;
            if let Some((follower, ..)) = &mut follower {
                // As the former process stood, until this one has looked for itself.
                follower.takes_part = !found.is_empty();
                wanted.set_active(follower.takes_part);
                exposure.set_active(follower.takes_part);
            } else {
                // They were set with the device and are nobody's to take away.
                found.retain(|route| !config.service_cidrs.contains(route));
                if config.fixed_routes {
                    routes::tell_of_left(&std::mem::take(&mut found), &bound.tun);
                }
            }
            exposure.let_go();
            node_ports.settled().await;
            // What is not listened on any more, but by flows that are left.
            node_ports.inherit(Lent::default());
        }
        // What follows is one process's at a time.
        let mut public = JoinSet::new();
        let mut admin_server = JoinSet::new();
        let (sender, takeovers) = mpsc::channel(1);
        let serving = admin_socket.serve(Arc::clone(&view), sender);
        admin_server.spawn(async { ("the admin server", serving.await.err()) });
        if let Some(listener) = metrics {
            let name = config.node_name.clone();
            let serving = async move { web::serve(listener, view, &name).await };
            public.spawn(async { ("the metrics server", serving.await.err()) });
        }
        public.spawn(async move {
            observer.record().await;
            ("the recorder of rates", None)
        });
        if let Some((follower, node, undecided)) = follower {
            public.spawn(async {
                follower.run(node, undecided).await;
                ("the follower of the kernel", None)
            });
        }
        let device = routes::Device {
            link: Arc::clone(&link),
            dataplane: Arc::clone(&dataplane),
        };
        let keeping = routes::keep(
            device,
            wanted,
            ranges,
            unrouted,
            routes::RETRY,
            server,
            found,
        );
        public.spawn(async {
            keeping.await;
            ("the keeper of routes", None)
        });
        let former = FormerSide {
            tun: bound.tun.clone(),
            offloads: queues.offloads,
            generation: config.generation,
            admin: Some(admin),
            listeners,
            table: Arc::clone(&table),
            dataplane: Arc::clone(&dataplane),
            node_ports: Arc::clone(&node_ports),
            exposure: Arc::clone(&exposure),
        };
        drop(starting);
        if succeeds {
            // Whoever asks meanwhile waits, and does not hear that nobody is ready.
            let _ = timeout(SUCCESSION, readiness.ready()).await;
        }
        if let Some(listener) = healthz {
            let serving = health::serve(listener, health.clone());
            public.spawn(async { ("the health server", serving.await.err()) });
        }
        Ok(Self {
            config: in_effect,
            table,
            dataplane,
            node_ports,
            readiness,
            health,
            reloader,
            tasks,
            public,
            admin_server,
            exposure,
            former,
            admin_lent,
            takeovers,
            succeeds,
            _link: link,
        })
    }
}

/// What has been opened.
struct Bound {
    /// Where health is served, with the port that the system chose for port 0.
    healthz: Option<SocketAddr>,
    /// Where metrics and the status page are, in the same way.
    metrics: Option<SocketAddr>,
    /// The admin socket.
    admin_socket: PathBuf,
    /// Name of the TUN device.
    tun: String,
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

/// Listens at an address, by the listener of the former process if that has it.
async fn listen(
    name: &'static str,
    address: Option<SocketAddr>,
    predecessor: &mut Option<Predecessor>,
) -> Result<Option<TcpListener>, AppError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let before = predecessor.as_mut();
    let listener = match before.and_then(|before| before.listener(name, address)) {
        Some(socket) => TcpListener::from_std(socket.into()),
        None => TcpListener::bind(address).await,
    };
    let failed = |source| AppError::Listen {
        flag: match name {
            METRICS => "--metrics-bind-address",
            _ => "--healthz-bind-address",
        },
        address,
        source,
    };
    listener.map(Some).map_err(failed)
}

/// The routes that the former process has left.
async fn routes_of(link: &Link) -> BTreeSet<IpNet> {
    match link.routes().await {
        Ok(routes) => routes.into_iter().collect(),
        Err(error) => {
            warn!(%error, "what the former process has routed is not known, and stays");
            BTreeSet::new()
        }
    }
}

/// With the port that the system chose.
fn address_of(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
}
