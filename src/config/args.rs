//! The options of `run`, as clap reads them.
//!
//! Each value is parsed into its final type here; what concerns several options
//! at once is checked by [`Config::try_from`](super::Config).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use hyper::Uri;
use ipnet::IpNet;

use super::values::{
    DetectLocalMode, InterfaceName, ListenAddress, LogFilter, LogFormat, MasqueradeSource, Mode,
    PodTraffic, busy_poll, cluster_cidr, duration_or_zero, healthz_bind_address, interface_name,
    masquerade_source, master, memory, metrics_bind_address, node_name, node_port_address,
    positive_duration, scheduler, service_cidr, tun_address,
};
use crate::ipvs::SchedulerKind;
use crate::node_port::NodePortAddress;
use crate::tun::MAX_QUEUES;

/// Where a running proxy is asked, unless told otherwise.
pub const ADMIN_SOCKET: &str = "/run/kube-tun-proxy/admin.sock";

/// The options of `run`. Durations are written as Go writes them (500ms, 1s,
/// 1m30s, 0).
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// File of settings: KubeProxyConfiguration, TunProxyConfiguration, or both
    ///
    /// YAML documents. A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    /// is what kube-proxy reads, such as the config.conf of kubeadm's ConfigMap; what
    /// concerns netfilter is named once and ignored. A TunProxyConfiguration
    /// (kube-tun-proxy/v1alpha1) has every flag of this command in camel case
    /// (ipvsScheduler) and wins over it. Flags win over both. SIGHUP reads the
    /// file again.
    #[arg(long, value_name = "FILE", help_heading = "Operation")]
    pub(super) config: Option<PathBuf>,

    /// File or directory with Services, EndpointSlices and Nodes in YAML or JSON
    ///
    /// Of a directory, the files ending in .yaml, .yml and .json are read, in
    /// the order of their names. A change is seen within a second. A file that
    /// does not parse is reported, and its last good content stays in force.
    /// Without this and --kubeconfig, objects come from the cluster that this
    /// pod is in.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"], help_heading = "Cluster")]
    pub(super) manifests: Option<PathBuf>,

    /// File that says how to reach and to enter a cluster, whose objects are followed
    ///
    /// Its current context counts; client certificates, tokens and exec plugins
    /// work. It is read again when the API server denies us or cannot be reached.
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(super) kubeconfig: Option<PathBuf>,

    /// Address of the API server, in place of the one in the configuration
    ///
    /// Such as https://192.168.0.10:6443. Inside a pod the configured address is
    /// a service's, and the proxy would need itself to learn of services: give
    /// one that is reached without it. The server's certificate must hold it.
    #[arg(long, value_name = "URL", value_parser = master, help_heading = "Cluster")]
    pub(super) master: Option<Uri>,

    /// This node's name
    ///
    /// Decides which endpoints are local; taken in lower case. With a name that
    /// no EndpointSlice uses, no endpoint is local. Default: the host name.
    #[arg(long, value_name = "NAME", value_parser = node_name, help_heading = "Cluster")]
    pub(super) hostname_override: Option<String>,

    /// Networks that services get their addresses from, routed into the TUN
    ///
    /// IPv4, IPv6 or both, such as 10.0.0.0/16,fd00:10::/108. Packets to an
    /// address in them that no service has are dropped, so a range that is too
    /// wide cuts off whatever else lives in it. A service with an address
    /// outside them is not reached. Default: what the cluster's ServiceCIDR
    /// objects say, as it changes, and a route of its own for each service
    /// address outside them, or for all where there are no such objects.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = service_cidr, help_heading = "Cluster")]
    pub(super) service_cidr: Vec<IpNet>,

    /// Networks of the cluster's pods
    ///
    /// Under externalTrafficPolicy Local a client in them is a pod and gets all
    /// endpoints at external and load balancer IPs and node ports, and --pod-traffic
    /// means it there. Default, also for a family of which none is given: the
    /// networks of this node's pods, as its Node object has them. Where neither is
    /// known, pods count as clients from outside.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cluster_cidr, help_heading = "Cluster")]
    pub(super) cluster_cidr: Vec<IpNet>,

    /// How pods are told from clients from outside
    ///
    /// ClusterCIDR: by --cluster-cidr. NodeCIDR: by the networks of this node's
    /// pods alone. BridgeInterface and InterfaceNamePrefix, which kube-proxy has
    /// too, go by the interface that a packet came in by; that is not seen here,
    /// and they are as NodeCIDR, with a warning.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "ClusterCIDR",
        value_enum,
        help_heading = "Cluster"
    )]
    pub(super) detect_local_mode: DetectLocalMode,

    /// Set no route but those of --service-cidr
    ///
    /// External and load balancer IPs outside of them are not reached, and
    /// CAP_NET_ADMIN is given up once the device is set up.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        help_heading = "Cluster"
    )]
    pub(super) fixed_routes: bool,

    /// Take over from the proxy that runs here, without a connection lost
    ///
    /// It is asked on --admin-socket. Its device, listeners, schedulers' positions and
    /// session affinity pass to this process, which takes all new flows; the other one
    /// ends with the flows it has, or when its own --takeover-drain-timeout is over. If
    /// it cannot hand over, run ends with status 1 and the other goes on. One that is
    /// about to end is waited for. If none runs, this is an ordinary start.
    #[arg(long, help_heading = "Operation")]
    pub(super) takeover: bool,

    /// Which of several processes that are kept running here is the newer one
    ///
    /// For a DaemonSet that surges: two pods are on a node for a while, and each is
    /// started anew when it ends. One with a lower number does not take over from one
    /// with a higher. Instead, and once it has handed over and its flows have ended, it
    /// waits for SIGTERM, or until no proxy runs here any more; then it ends, to be
    /// started anew. The number of a pod is its label pod-template-generation.
    #[arg(
        long,
        value_name = "N",
        env = "KUBE_TUN_PROXY_GENERATION",
        help_heading = "Operation"
    )]
    pub(super) generation: Option<u64>,

    /// Name of the TUN device to make
    ///
    /// At most 15 bytes. If a device of that name exists that init has not made
    /// for this user, run ends with status 3.
    #[arg(long, value_name = "NAME", default_value = "svc-tun0", value_parser = interface_name, help_heading = "Device")]
    pub(super) tun_name: InterfaceName,

    /// Number of worker threads, each with a queue of the device
    ///
    /// A flow stays on one worker. More workers than CPUs only add switching.
    /// Between 1 and 256; default: the CPUs that this process may use.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_QUEUES as u64), help_heading = "Device")]
    pub(super) workers: Option<u64>,

    /// Address of the TUN device, one of each family at most
    ///
    /// The node's own connections to services come from it, which only this
    /// proxy sees: it never leaves the node. Default: 169.254.84.78 and
    /// fdaf:df1a:d6a2::1. With an address that lies in --service-cidr or that
    /// another interface has, run ends with status 3.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = tun_address, help_heading = "Device")]
    pub(super) tun_address: Vec<IpAddr>,

    /// Source address of connections to real servers: auto, an interface or an address
    ///
    /// auto: what the route to the real server prefers, as MASQUERADE does. An
    /// interface: its address of the real server's family. An address, or one of
    /// each family with a comma between: itself. Real servers of a family without
    /// an address are not reached, and none at all with an address that the node
    /// does not have.
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = masquerade_source, help_heading = "Device")]
    pub(super) masquerade_source: MasqueradeSource,

    /// Whether connections from pods are served
    ///
    /// A real server sees the node as their source, so NetworkPolicies judge
    /// them wrongly. auto serves them while nothing tells of NetworkPolicies, and
    /// follows the cluster in that; never drops and counts them.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        value_enum,
        help_heading = "Flows"
    )]
    pub(super) pod_traffic: PodTraffic,

    /// Who chooses among the real servers of a service: rr, wrr, lc, wlc, sed, nq, sh, dh or mh
    ///
    /// Each as the kernel's of that name. It holds for all services but those
    /// with another one in the annotation kube-tun-proxy.io/scheduler.
    #[arg(long, value_name = "NAME", default_value = "rr", value_parser = scheduler, help_heading = "Flows")]
    pub(super) ipvs_scheduler: SchedulerKind,

    /// Follow traffic policies Local as kube-proxy's IPVS mode does
    ///
    /// Without it, as its iptables and nftables modes do: clients from outside
    /// get local endpoints, the node and its pods all, and without a local
    /// endpoint connections are dropped. With it everybody gets local endpoints;
    /// without one, all endpoints if the service has a node port, load balancer
    /// IP or external IP, else connections are refused.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        help_heading = "Flows"
    )]
    pub(super) ipvs_compat: bool,

    /// Longest time a TCP connection may be idle; 0 is for ever
    ///
    /// Dead peers are found by keep-alive in any case. A connection that is cut
    /// is reset at both ends.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration_or_zero, help_heading = "Flows")]
    pub(super) ipvs_tcp_timeout: Duration,

    /// Longest time to wait for the end of a TCP connection that both sides have closed
    ///
    /// 0 is the default. A connection that is closed one way only is not
    /// subject to it.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration_or_zero, help_heading = "Flows")]
    pub(super) ipvs_tcpfin_timeout: Duration,

    /// Time without a datagram after which a UDP flow ends
    ///
    /// 0 is the default. A flow that the real server has not answered yet ends
    /// after 30 s at the latest. Too short, and a client that comes back gets
    /// another real server; too long, and idle sockets pile up.
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = duration_or_zero, help_heading = "Flows")]
    pub(super) ipvs_udp_timeout: Duration,

    /// Real servers to try before a connection is given up
    ///
    /// Between 1 and 100. With 1 there is no fail-over. Attempts times timeout
    /// should stay below what clients wait, commonly 5 s.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Flows")]
    pub(super) connect_attempts: u32,

    /// Time a real server has to accept a connection before the next is tried
    ///
    /// Under 1 s a single lost SYN, which the kernel repeats after 1 s, makes a
    /// good real server look dead.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = positive_duration, help_heading = "Flows")]
    pub(super) connect_timeout: Duration,

    /// Whether pings to an address that a service has are answered
    ///
    /// The answer comes from the proxy and says nothing about real servers.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        help_heading = "Flows"
    )]
    pub(super) answer_ping: bool,

    /// Most flows at a time, TCP and UDP together
    ///
    /// Above it new flows are refused and counted; those that run are not
    /// touched. Each takes a file descriptor. Default: 65536, or what the hard
    /// limit on open files (RLIMIT_NOFILE) leaves room for if that is less; a
    /// warning tells when more is asked for than there is room.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Flows")]
    pub(super) max_flows: Option<u64>,

    /// Most memory for the buffers of all flows
    ///
    /// Bytes, or with a suffix K, M, G, T (powers of 1000), Ki, Mi, Gi, Ti
    /// (powers of 1024). As it fills, new flows get smaller buffers, then are
    /// refused and counted; those that run are not touched. The process takes
    /// some more than this, for code, tables and idle flows.
    #[arg(long, value_name = "SIZE", default_value = "1Gi", value_parser = memory, help_heading = "Flows")]
    pub(super) max_memory: usize,

    /// How long a worker looks for packets before it sleeps, while most waits are shorter
    ///
    /// It saves the time that waking a thread takes: connections are faster and requests
    /// sooner answered, for CPU time that would be idle. It is not done where others want
    /// the CPU, and costs nothing where little happens. 0: never; 1ms at most.
    #[arg(long, value_name = "DURATION", default_value = "50us", value_parser = busy_poll, help_heading = "Flows")]
    pub(super) busy_poll: Duration,

    /// Which of the node's addresses node ports are opened on: networks, primary, localhost
    ///
    /// A network: the node's addresses within it; primary: the node's own address
    /// of each family; localhost: 127.0.0.1 and ::1. Several are joined by commas.
    /// A family of which no network is named is not restricted, unless a keyword
    /// is given. Default: all addresses of the node, loopback among them. A port
    /// that another process has is reported, and opened once it is free.
    #[arg(long, value_name = "CIDR|primary|localhost", value_delimiter = ',', value_parser = node_port_address, help_heading = "Flows")]
    pub(super) nodeport_addresses: Vec<NodePortAddress>,

    /// Address of /healthz, /livez and /readyz
    ///
    /// ADDRESS:PORT, :PORT, or an address, whose port is then 10256; empty: no
    /// such server. If the address is taken, by kube-proxy for instance, run
    /// ends with status 1. Default: 0.0.0.0:10256; with --mode fallback, where
    /// kube-proxy has that port, 0.0.0.0:10266.
    #[arg(long, value_name = "ADDR", value_parser = healthz_bind_address, help_heading = "Operation")]
    pub(super) healthz_bind_address: Option<ListenAddress>,

    /// Whether to take part always, or only while the kernel does not carry services
    ///
    /// fallback: the routes are there only while kube-proxy is not well, or has
    /// neither IPVS with addresses on kube-ipvs0 nor rules in netfilter. They
    /// come 2 s after the kernel carries nothing, or 30 s after kube-proxy has
    /// left its rules alone; they go when the kernel has carried for 10 s
    /// (longer, up to 5 min, if that did not last before), and the flows that
    /// are open have ended or --drain-timeout is over. Node ports are not
    /// listened on while the kernel carries.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "always",
        value_enum,
        help_heading = "Operation"
    )]
    pub(super) mode: Mode,

    /// Where kube-proxy tells its health
    ///
    /// Asked each second with --mode fallback, and by check. If kube-proxy has
    /// another --healthz-bind-address it must be given here, or kube-proxy
    /// counts as not there.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:10256",
        help_heading = "Operation"
    )]
    pub(super) kube_proxy_healthz: SocketAddr,

    /// Address of /metrics, /proxyMode, /configz and the status page
    ///
    /// ADDRESS:PORT, :PORT, or an address, whose port is then 10249; empty: no
    /// such server. Whoever reaches it reads clients' addresses and the names of
    /// services. If the address is taken, by kube-proxy for instance, run ends
    /// with status 1. Default: 127.0.0.1:10249; with --mode fallback, where
    /// kube-proxy has that port, 127.0.0.1:10269.
    #[arg(long, value_name = "ADDR", value_parser = metrics_bind_address, help_heading = "Operation")]
    pub(super) metrics_bind_address: Option<ListenAddress>,

    /// Most service ports with metrics and a history of their own
    ///
    /// Those that come when so many are known are counted together, under the
    /// service "_others". Each has six series, and for every address it has 2.4 KB
    /// of history. 0: all are counted together.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        help_heading = "Operation"
    )]
    pub(super) metrics_max_services: usize,

    /// Unix socket for the commands that ask a running proxy
    ///
    /// Only the user that runs the proxy may open it. Its directory is made if
    /// there is none; a socket that a killed proxy left behind is replaced.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET, help_heading = "Operation")]
    pub(super) admin_socket: PathBuf,

    /// Time that flows get to end by themselves after SIGTERM or SIGINT
    ///
    /// New flows are not taken meanwhile. A second signal ends the wait; 0 is
    /// no wait. Longer than Kubernetes' terminationGracePeriodSeconds (30 s by
    /// default) it is cut short by SIGKILL.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration_or_zero, help_heading = "Operation")]
    pub(super) drain_timeout: Duration,

    /// Time that flows get to end by themselves after a hand-over to a new process
    ///
    /// That one takes all new flows meanwhile. It begins with the hand-over, and SIGTERM
    /// leaves --drain-timeout of it; with --generation it begins with SIGTERM. If the new
    /// process ends too, --drain-timeout holds from then on. Default: as --drain-timeout.
    #[arg(long, value_name = "DURATION", value_parser = duration_or_zero, help_heading = "Operation")]
    pub(super) takeover_drain_timeout: Option<Duration>,

    /// Whether each finished flow has its event in the log
    ///
    /// The annotation kube-tun-proxy.io/access-log (true or false) of a Service wins
    /// over it, and that of a Namespace for the Services in it. The events have the
    /// target access and level info, which --log-level can silence in any case.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        help_heading = "Operation"
    )]
    pub(super) access_log: bool,

    /// What is logged: a level, or levels of parts of the program
    ///
    /// One of error, warn, info, debug and trace, and, joined by commas, another
    /// for a part: info,access=off logs no finished flows,
    /// info,kube_tun_proxy::source=debug more of one module. `kube-tun-proxy
    /// log-level` changes it while the proxy runs.
    #[arg(
        long,
        value_name = "DIRECTIVES",
        env = "RUST_LOG",
        default_value = "info,kube_client=off",
        help_heading = "Operation"
    )]
    pub(super) log_level: LogFilter,

    /// Form of the log on standard error
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        value_enum,
        help_heading = "Operation"
    )]
    pub(super) log_format: LogFormat,
}

/// The options of `init` that `run` has too, with the same meaning.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Networks that services get their addresses from, routed into the device
    ///
    /// Whatever else run wants to route, without privilege it cannot.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = service_cidr)]
    pub service_cidr: Vec<IpNet>,

    /// Name of the device to make, or to take away
    #[arg(long, value_name = "NAME", default_value = "svc-tun0", value_parser = interface_name)]
    pub tun_name: InterfaceName,

    /// Address of the device, one of each family at most
    ///
    /// Default: as that of run, which must be told the same.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = tun_address)]
    pub tun_address: Vec<IpAddr>,
}
