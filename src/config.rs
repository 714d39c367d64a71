//! The configuration of the proxy: flags and a file in, one validated [`Config`]
//! out.
//!
//! [`Settings`] holds the command line and reads the file of `--config`; together
//! they make [`RunArgs`], which is what clap reads, each value in its final type
//! already; [`Config::try_from`] settles what is left to defaults of the machine
//! and what concerns several options. Nothing after that looks at text again.
//!
//! The flags are the one list of settings: the file's fields are made from them
//! (`file`), and [`Config::settings`] shows each of them again, which a test
//! holds against the flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hyper::Uri;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};

use crate::ipvs::SchedulerKind;
use crate::node_port::NodePortAddress;

mod args;
pub mod duration;
mod error;
mod file;
mod settings;
pub mod size;
mod values;
mod view;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use args::{ADMIN_SOCKET, DeviceArgs, RunArgs};
pub use error::{ConfigError, FileError};
pub use settings::{Loaded, Settings};
pub use values::{
    DetectLocalMode, InterfaceName, LogFilter, LogFormat, MasqueradeSource, Mode, PodTraffic,
};

/// FIN timeout when the flag says 0: that of IPVS (`ip_vs_proto_tcp.c`).
const TCPFIN_TIMEOUT: Duration = Duration::from_secs(120);

/// UDP timeout when the flag says 0: that of IPVS (`ip_vs_proto_udp.c`).
const UDP_TIMEOUT: Duration = Duration::from_secs(300);

/// Most flows when the flag is not given: twice as many as there are ports for
/// connections to one real server (28,232, ip-sysctl.rst ip_local_port_range).
const MAX_FLOWS: u64 = 65_536;

/// Open files that are not flows: queues, logs, listeners, watches, netlink, and
/// up to 256 workers with an epoll instance and a wake-up each.
pub const RESERVED_FILES: u64 = 1024;

/// Everything that `run` was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the objects come from.
    pub source: Source,
    /// This node's name, in lower case.
    pub node_name: String,
    /// Networks routed into the TUN, none within another; empty is what the
    /// cluster says, or else each service's address.
    pub service_cidrs: Vec<IpNet>,
    /// Networks of the cluster's pods, as far as they were given.
    pub cluster_cidrs: Vec<IpNet>,
    /// How pods are told from clients from outside.
    pub detect_local_mode: DetectLocalMode,
    /// The device.
    pub tun: TunConfig,
    /// How flows are carried.
    pub flows: FlowConfig,
    /// Which of the node's addresses node ports are opened on; empty for all.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Where health is told; `None` is nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Whether no route is set but those of `service_cidrs`.
    pub fixed_routes: bool,
    /// When it takes part.
    pub mode: Mode,
    /// Where kube-proxy tells its health.
    pub kube_proxy_healthz: SocketAddr,
    /// Where metrics and the status page are told; `None` is nowhere.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Most service ports with metrics and a history of their own.
    pub metrics_max_services: usize,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// Whether to take over from a proxy that runs.
    pub takeover: bool,
    /// Its number among processes that are kept running beside one another.
    pub generation: Option<u64>,
    /// How long flows may run on after the signal to stop.
    pub drain_timeout: Duration,
    /// How long flows may run on after a hand-over.
    pub takeover_drain_timeout: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogFilter,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, or the files of a directory.
    Manifests(PathBuf),
    /// The API server of a cluster.
    Cluster {
        /// How to reach it; `None` is what a pod is given.
        kubeconfig: Option<PathBuf>,
        /// Its address, if not the one configured.
        master: Option<Uri>,
    },
}

/// What concerns the TUN device.
#[derive(Clone, Debug)]
pub struct TunConfig {
    /// Its name.
    pub name: InterfaceName,
    /// Its addresses, as far as they were given: at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Queues, and so workers.
    pub workers: NonZeroUsize,
}

/// What concerns flows.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowConfig {
    /// Who chooses among real servers.
    pub scheduler: SchedulerKind,
    /// Whether policies Local are followed as in kube-proxy's IPVS mode.
    pub ipvs_compat: bool,
    /// Source address towards real servers.
    pub masquerade_source: MasqueradeSource,
    /// Whether pods are served.
    pub pod_traffic: PodTraffic,
    /// Longest idle time of a TCP connection; `None` is for ever.
    pub tcp_timeout: Option<Duration>,
    /// Longest wait for the end of a TCP connection closed both ways.
    pub tcpfin_timeout: Duration,
    /// Longest idle time of a UDP flow that was answered.
    pub udp_timeout: Duration,
    /// Real servers tried for one connection.
    pub connect_attempts: u32,
    /// Time each of them has.
    pub connect_timeout: Duration,
    /// Whether pings to virtual IPs are answered.
    pub answer_ping: bool,
    /// Whether finished flows are logged where no annotation says.
    pub access_log: bool,
    /// Most flows at a time.
    pub max_flows: usize,
    /// Most memory for buffers, in bytes.
    pub max_memory: usize,
    /// How long a worker looks for events before it sleeps, where that pays.
    pub busy_poll: Duration,
}

/// Longest path of a unix socket: `sun_path` (linux/un.h) less its final NUL.
const ADMIN_SOCKET_MAX: usize = 107;

impl TryFrom<RunArgs> for Config {
    type Error = ConfigError;

    /// Checks what concerns several options and fills in what the machine
    /// decides: its name, its CPUs.
    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        let fixed = !args.service_cidr.is_empty();
        Ok(Self {
            source: source(args.manifests, args.kubeconfig, args.master)?,
            node_name: args.hostname_override.map_or_else(host_name, Ok)?,
            service_cidrs: service_cidrs(args.service_cidr)?,
            cluster_cidrs: args.cluster_cidr,
            detect_local_mode: args.detect_local_mode,
            tun: TunConfig {
                name: args.tun_name,
                addresses: tun_addresses(args.tun_address)?,
                workers: workers(args.workers),
            },
            flows: FlowConfig {
                scheduler: args.ipvs_scheduler,
                ipvs_compat: args.ipvs_compat,
                masquerade_source: args.masquerade_source,
                pod_traffic: args.pod_traffic,
                tcp_timeout: non_zero(args.ipvs_tcp_timeout),
                tcpfin_timeout: non_zero(args.ipvs_tcpfin_timeout).unwrap_or(TCPFIN_TIMEOUT),
                udp_timeout: non_zero(args.ipvs_udp_timeout).unwrap_or(UDP_TIMEOUT),
                connect_attempts: args.connect_attempts,
                connect_timeout: args.connect_timeout,
                answer_ping: args.answer_ping,
                access_log: args.access_log,
                max_flows: max_flows(args.max_flows),
                max_memory: args.max_memory,
                busy_poll: args.busy_poll,
            },
            node_port_addresses: args.nodeport_addresses,
            healthz_bind_address: match args.healthz_bind_address {
                Some(address) => address.0,
                None => Some(default_healthz(args.mode)),
            },
            fixed_routes: fixed_routes(args.fixed_routes, args.mode, fixed)?,
            mode: args.mode,
            kube_proxy_healthz: args.kube_proxy_healthz,
            metrics_bind_address: match args.metrics_bind_address {
                Some(address) => address.0,
                None => Some(default_metrics(args.mode)),
            },
            metrics_max_services: args.metrics_max_services,
            admin_socket: admin_socket(args.admin_socket)?,
            takeover: args.takeover,
            generation: args.generation,
            drain_timeout: args.drain_timeout,
            takeover_drain_timeout: args.takeover_drain_timeout.unwrap_or(args.drain_timeout),
            log_format: args.log_format,
            log_level: args.log_level,
        })
    }
}

/// Beside a kube-proxy its own port is taken.
fn default_healthz(mode: Mode) -> SocketAddr {
    let port = match mode {
        Mode::Always => values::HEALTHZ_PORT,
        Mode::Fallback => values::FALLBACK_HEALTHZ_PORT,
    };
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
}

/// As [`default_healthz`].
fn default_metrics(mode: Mode) -> SocketAddr {
    let port = match mode {
        Mode::Always => values::METRICS_PORT,
        Mode::Fallback => values::FALLBACK_METRICS_PORT,
    };
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// clap has seen to it that there is only one.
fn source(
    manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    master: Option<Uri>,
) -> Result<Source, ConfigError> {
    if let Some(path) = manifests {
        return readable("--manifests", path).map(Source::Manifests);
    }
    let kubeconfig = kubeconfig.map(|path| readable("--kubeconfig", path));
    Ok(Source::Cluster {
        kubeconfig: kubeconfig.transpose()?,
        master,
    })
}

fn readable(flag: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(source) => Err(ConfigError::Source { flag, path, source }),
    }
}

fn service_cidrs(mut cidrs: Vec<IpNet>) -> Result<Vec<IpNet>, ConfigError> {
    // Sorted, a network stands directly before the first that it contains.
    cidrs.sort_unstable();
    for pair in cidrs.windows(2) {
        if let [first, second] = *pair
            && first.contains(&second)
        {
            return Err(ConfigError::ServiceCidrOverlap { first, second });
        }
    }
    Ok(cidrs)
}

fn fixed_routes(asked: bool, mode: Mode, any: bool) -> Result<bool, ConfigError> {
    match (asked, mode) {
        (true, Mode::Fallback) => Err(ConfigError::FixedRoutesFallBack),
        (true, Mode::Always) if !any => Err(ConfigError::FixedRoutesOfNothing),
        (asked, Mode::Always | Mode::Fallback) => Ok(asked),
    }
}

fn tun_addresses(addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, ConfigError> {
    for (at, second) in addresses.iter().enumerate() {
        let mut before = addresses.iter().take(at);
        if let Some(first) = before.find(|a| a.is_ipv4() == second.is_ipv4()) {
            let (first, second) = (*first, *second);
            return Err(ConfigError::TunAddressTwice { first, second });
        }
    }
    Ok(addresses)
}

/// The workers asked for, or one for each CPU that this process may use.
fn workers(asked: Option<u64>) -> NonZeroUsize {
    asked
        .and_then(|count| usize::try_from(count).ok())
        .and_then(NonZeroUsize::new)
        .or_else(|| thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

/// The flows asked for, or what open files leave room for up to [`MAX_FLOWS`].
fn max_flows(asked: Option<u64>) -> usize {
    let flows = asked.unwrap_or_else(|| {
        let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
        MAX_FLOWS.min(hard.saturating_sub(RESERVED_FILES)).max(1)
    });
    usize::try_from(flows).unwrap_or(usize::MAX)
}

fn host_name() -> Result<String, ConfigError> {
    let name = nix::unistd::gethostname().map_err(|error| ConfigError::HostName {
        reason: format!("cannot be read ({error})"),
    })?;
    let name = name.into_string().map_err(|_| ConfigError::HostName {
        reason: "is not UTF-8".to_owned(),
    })?;
    values::node_name(&name).map_err(|reason| ConfigError::HostName { reason })
}

fn admin_socket(path: PathBuf) -> Result<PathBuf, ConfigError> {
    if (1..=ADMIN_SOCKET_MAX).contains(&path.as_os_str().len()) {
        Ok(path)
    } else {
        Err(ConfigError::AdminSocketPath { path })
    }
}

fn non_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}
