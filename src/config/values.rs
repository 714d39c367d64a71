//! What single options may hold, and how their text is read.
//!
//! Each function takes the text of one value and returns the value or a
//! sentence; clap puts the option's name and the text in front of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use hyper::Uri;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::{duration, size};
use crate::ipvs::{SchedulerKind, UnknownScheduler};
use crate::node_port::NodePortAddress;

/// Longest name of an interface: IFNAMSIZ (linux/if.h) less its final NUL.
const IFNAME_MAX: usize = 15;

/// Port of kube-proxy's health server (kubernetes `pkg/cluster/ports`).
pub(super) const HEALTHZ_PORT: u16 = 10256;

/// Port of our own beside kube-proxy: none of Kubernetes' own components has it
/// (10248 to 10260, <https://kubernetes.io/docs/reference/networking/ports-and-protocols>).
pub(super) const FALLBACK_HEALTHZ_PORT: u16 = 10266;

/// Port of its metrics server (ibid.).
pub(super) const METRICS_PORT: u16 = 10249;

/// Port of our own beside kube-proxy, free for the same reason; 10259 is kube-scheduler's.
pub(super) const FALLBACK_METRICS_PORT: u16 = 10269;

/// Name of a network interface that the kernel accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the source address towards real servers comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasqueradeSource {
    /// What the kernel's route to the real server prefers, as MASQUERADE does.
    Auto,
    /// The first address of this interface.
    Interface(InterfaceName),
    /// These addresses, at least one. Real servers of a family without one are
    /// not reached.
    Address {
        /// Towards IPv4 real servers.
        v4: Option<Ipv4Addr>,
        /// Towards IPv6 real servers.
        v6: Option<Ipv6Addr>,
    },
}

/// Whether packets that come from pods are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodTraffic {
    /// Served while nothing tells of NetworkPolicies, which would see the node
    /// as the source of a pod's connection.
    Auto,
    /// Served.
    Always,
    /// Dropped and counted.
    Never,
}

/// How pods are told from clients from outside. The names are kube-proxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By the networks of the cluster's pods.
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By the networks of this node's pods.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the bridge that a packet came in by: not done.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By how the name of that interface begins: not done.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

impl DetectLocalMode {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterCidr => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface => "BridgeInterface",
            Self::InterfaceNamePrefix => "InterfaceNamePrefix",
        }
    }

    /// Whether it goes by the interface of a packet, which is not seen here.
    pub fn needs_interface(self) -> bool {
        match self {
            Self::ClusterCidr | Self::NodeCidr => false,
            Self::BridgeInterface | Self::InterfaceNamePrefix => true,
        }
    }
}

/// When the proxy takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Always.
    Always,
    /// While the kernel does not carry services.
    Fallback,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Which events are logged: directives as `tracing_subscriber::EnvFilter` takes
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// What is logged unless something else is asked for. kube logs each failed
/// request as an error; the source tells of trouble once.
const DEFAULT_LOG: &str = "info,kube_client=off";

impl LogFilter {
    /// The directives.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The filter itself.
    pub fn filter(&self) -> EnvFilter {
        // Parsed before: nothing is left out.
        EnvFilter::new(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = String;

    /// Empty is the default.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(DEFAULT_LOG.to_owned()));
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(
                "is no filter of the log, which RUST_LOG may set too; one looks like \
                 info,access=off,kube_tun_proxy::dataplane=debug"
                    .to_owned(),
            ),
        }
    }
}

/// Address of an API server.
pub(super) fn master(text: &str) -> Result<Uri, String> {
    let no_url = "is no URL of a server; one looks like https://192.168.0.10:6443";
    let uri: Uri = text.parse().map_err(|_| no_url.to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err(no_url.to_owned());
    }
    Ok(uri)
}

/// A network that is routed into the TUN.
pub(super) fn service_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| "is no network; one looks like 10.0.0.0/16 or fd00:10::/108".to_owned())?;
    if net != net.trunc() {
        return Err(format!(
            "has bits set beyond its prefix; it may be {}",
            net.trunc()
        ));
    }
    if net.prefix_len() == 0 {
        return Err("would take every packet of the node into the TUN".to_owned());
    }
    let first = net.network();
    if first.is_unspecified() || first.is_loopback() || first.is_multicast() || link_local(first) {
        return Err("is no range that services get addresses from".to_owned());
    }
    Ok(net)
}

/// A network of pods; host bits are taken off, as kube-proxy does.
pub(super) fn cluster_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .trim()
        .parse()
        .map_err(|_| "is no network; one looks like 10.244.0.0/16 or fd00:244::/56".to_owned())?;
    Ok(net.trunc())
}

/// Which of the node's addresses node ports are opened on: one item of the list.
pub(super) fn node_port_address(text: &str) -> Result<NodePortAddress, String> {
    match text {
        "primary" => Ok(NodePortAddress::Primary),
        "localhost" => Ok(NodePortAddress::Localhost),
        network => network.parse().map(NodePortAddress::Cidr).map_err(|_| {
            "is neither a network, such as 192.168.0.0/24, nor primary, nor localhost".to_owned()
        }),
    }
}

/// An address of the TUN device.
pub(super) fn tun_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| "is no IP address (no prefix length is given here)".to_owned())?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err("is no address that an interface can have for others to answer to".to_owned());
    }
    Ok(address)
}

/// Name of the TUN device, by the kernel's rules (`dev_valid_name` in
/// net/core/dev.c); a `%` is refused since it makes the kernel number devices.
pub(super) fn interface_name(text: &str) -> Result<InterfaceName, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > IFNAME_MAX {
        return Err(format!(
            "has {} bytes; an interface's name has at most {IFNAME_MAX}",
            text.len()
        ));
    }
    if text == "." || text == ".." {
        return Err("is reserved".to_owned());
    }
    if let Some(c) = text
        .chars()
        .find(|c| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace())
    {
        return Err(format!("contains {c:?}, which no interface's name may"));
    }
    Ok(InterfaceName(text.to_owned()))
}

/// `auto`, an address of one family or of each, or the name of an interface.
pub(super) fn masquerade_source(text: &str) -> Result<MasqueradeSource, String> {
    if text == "auto" {
        return Ok(MasqueradeSource::Auto);
    }
    // An interface may be named so as well; nobody does.
    if text
        .split(',')
        .next()
        .is_some_and(|first| first.parse::<IpAddr>().is_ok())
    {
        return masquerade_addresses(text);
    }
    interface_name(text).map(MasqueradeSource::Interface)
}

fn masquerade_addresses(text: &str) -> Result<MasqueradeSource, String> {
    let (mut v4, mut v6) = (None, None);
    for text in text.split(',') {
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("has {text:?}, which is no IP address"))?;
        if address.is_unspecified() || address.is_multicast() {
            return Err("is no address that a connection can come from".to_owned());
        }
        let before = match address {
            IpAddr::V4(address) => v4.replace(address).is_some(),
            IpAddr::V6(address) => v6.replace(address).is_some(),
        };
        if before {
            return Err("has two addresses of one family".to_owned());
        }
    }
    Ok(MasqueradeSource::Address { v4, v6 })
}

/// kube-proxy's notation for an address to listen on: `ADDRESS:PORT`,
/// `[ADDRESS]:PORT`, `:PORT`, or an address whose port is the usual one.
/// `None`, which the empty text stands for, means not to listen.
pub(super) fn healthz_bind_address(text: &str) -> Result<ListenAddress, String> {
    bind_address(text, HEALTHZ_PORT)
}

/// The same for the metrics server.
pub(super) fn metrics_bind_address(text: &str) -> Result<ListenAddress, String> {
    bind_address(text, METRICS_PORT)
}

fn bind_address(text: &str, port: u16) -> Result<ListenAddress, String> {
    if text.is_empty() {
        return Ok(ListenAddress(None));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(ListenAddress(Some(address)));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ListenAddress(Some(SocketAddr::new(ip, port))));
    }
    if let Some(Ok(port)) = text.strip_prefix(':').map(str::parse) {
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        return Ok(ListenAddress(Some(SocketAddr::new(any, port))));
    }
    Err(format!(
        "is no address to listen on; one looks like 0.0.0.0:{port}, [::]:{port} or :{port}"
    ))
}

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListenAddress(pub(super) Option<SocketAddr>);

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| address.fmt(f))
    }
}

/// A node's name, as kube-proxy takes it: without space around it and in lower
/// case (kubernetes `pkg/util/node`, `GetHostname`).
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_lowercase();
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    Ok(name)
}

/// A scheduler's name; as with kube-proxy, an empty one is `rr`.
pub(super) fn scheduler(text: &str) -> Result<SchedulerKind, UnknownScheduler> {
    if text.is_empty() {
        return Ok(SchedulerKind::Rr);
    }
    text.parse()
}

/// A duration in Go's notation; zero is meaningful.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, duration::DurationError> {
    duration::parse(text)
}

/// A duration in Go's notation that is not zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// A duration that a worker may spend looking for events.
pub(super) fn busy_poll(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(duration) if duration > BUSY_POLL_MAX => Err("is more than 1ms".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// Some ten times what waking a thread takes; what is longer would only burn.
const BUSY_POLL_MAX: Duration = Duration::from_millis(1);

/// An amount of memory that is not zero, in bytes.
pub(super) fn memory(text: &str) -> Result<usize, String> {
    match size::parse(text) {
        Ok(bytes) if bytes < MEMORY_MIN => Err(format!("is less than {} MiB", MEMORY_MIN >> 20)),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// Below this not one flow with full-sized buffers (1 MiB each way) runs.
const MEMORY_MIN: usize = 4 << 20;

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address == Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
