//! The systems that are compared, each set up in a cluster of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use kube_tun_proxy::lab::{Cluster, ClusterBuilder, Namespace};
use serde::Serialize;

use crate::load::Job;
use crate::process::Process;

mod examples;
mod find;
mod haproxy;
mod kernel_nat;
pub(crate) mod kube_tun_proxy_itself;
mod pasta;

pub(crate) use find::Found;

/// Port of the real server and of the service, TCP and UDP.
pub(crate) const PORT: u16 = 9000;

/// The service's address; with more than one service they follow upon it.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

/// The node that the client and the proxy are on.
pub(crate) const NODE: &str = "master";

/// The pod that the real server is in, on the other node.
pub(crate) const SERVER: &str = "pod-5";

/// The pod that the client is in, on the proxy's node.
const CLIENT: &str = "client";

/// How long a system may take from its start to its first answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// No proxy: the client connects to the pod.
    Direct,
    /// This build, default flags.
    KubeTunProxy,
    /// nftables dnat and masquerade, as kube-proxy's nftables mode.
    KernelNat,
    /// haproxy in TCP mode with splice, the VIP on lo.
    Haproxy,
    /// ipstack's example `tun`.
    Ipstack,
    /// netstack-smoltcp's example `forward`.
    NetstackForward,
    /// netstack-smoltcp's example `forward-offload-linux`.
    NetstackOffload,
    /// pasta, with the client in the namespace that it serves.
    Pasta,
}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// On the proxy's node.
    Node,
    /// In a pod on the proxy's node, MTU 1450.
    Pod,
}

impl System {
    /// Its name, as `--systems` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubeTunProxy => "kube-tun-proxy",
            Self::KernelNat => "kernel-nat",
            Self::Haproxy => "haproxy",
            Self::Ipstack => "ipstack",
            Self::NetstackForward => "netstack-forward",
            Self::NetstackOffload => "netstack-offload",
            Self::Pasta => "pasta",
        }
    }

    /// Why it cannot carry datagrams one can count on, if so.
    pub(crate) fn without_udp(self) -> Option<&'static str> {
        match self {
            Self::Haproxy => Some("TCP only"),
            Self::NetstackForward | Self::NetstackOffload => {
                Some("makes a socket for each datagram and never closes it")
            }
            Self::Direct | Self::KubeTunProxy | Self::KernelNat | Self::Ipstack | Self::Pasta => {
                None
            }
        }
    }

    /// Open files that one TCP flow takes of it, at least.
    pub(crate) fn files_per_flow(self) -> u64 {
        match self {
            Self::Direct | Self::KernelNat => 0,
            Self::Haproxy => 2,
            Self::KubeTunProxy
            | Self::Ipstack
            | Self::NetstackForward
            | Self::NetstackOffload
            | Self::Pasta => 1,
        }
    }
}

impl Client {
    /// As a reader has it.
    pub(crate) fn described(self) -> &'static str {
        match self {
            Self::Node => "client on the node",
            Self::Pod => "client in a pod",
        }
    }
}

/// A system that stands, and answers.
pub(crate) struct Site {
    pub(crate) system: System,
    /// The service, or the pod where there is no proxy.
    pub(crate) target: SocketAddr,
    node_client: Namespace,
    pod_client: Result<Namespace, &'static str>,
    /// The proxy's processes.
    proxies: Vec<Process>,
    itself: Option<kube_tun_proxy_itself::Running>,
    _server: Process,
    _cluster: Cluster,
}

impl Site {
    /// Builds a cluster with the system in it, so many services loaded, and waits
    /// for an answer through it.
    pub(crate) fn build(
        system: System,
        found: &Found,
        congestion_control: &str,
        services: usize,
    ) -> Result<Self> {
        let cluster = plan(congestion_control).build()?;
        if matches!(system, System::NetstackForward | System::NetstackOffload) {
            examples::lead_vip_to_real_server(&cluster)?;
        }
        let server = serve(&cluster, SERVER)?;
        let real_server = SocketAddr::new(cluster.pod(SERVER).address().into(), PORT);
        let node = cluster.node(NODE).namespace();
        let mut site = Self {
            system,
            target: SocketAddr::new(VIP.into(), PORT),
            node_client: node.clone(),
            pod_client: Ok(cluster.pod(CLIENT).namespace().clone()),
            proxies: Vec::new(),
            itself: None,
            _server: server,
            _cluster: cluster,
        };
        let cluster = &site._cluster;
        let node = node_of(cluster);
        let process = match system {
            System::Direct => {
                site.target = real_server;
                None
            }
            System::KubeTunProxy => {
                let running = kube_tun_proxy_itself::start(cluster, node, real_server, services)?;
                site.itself = Some(running);
                None
            }
            System::KernelNat => {
                kernel_nat::start(node, found, real_server, services)?;
                None
            }
            System::Haproxy => Some(haproxy::start(node, found, real_server)?),
            System::Ipstack => {
                site.target = SocketAddr::new(examples::IPSTACK_ADDRESS.into(), PORT);
                Some(examples::start_ipstack(node, found, real_server)?)
            }
            System::NetstackForward | System::NetstackOffload => {
                Some(examples::start_netstack(cluster, found)?)
            }
            System::Pasta => {
                site.target = real_server;
                site.node_client = Namespace::new("pasta")?;
                site.node_client
                    .set_sysctls(&client_sysctls(congestion_control))?;
                site.pod_client = Err("serves one namespace, no packets of others");
                let client = &site.node_client;
                Some(pasta::start(node, client, found, cluster.overlay())?)
            }
        };
        site.proxies.extend(process);
        for client in Client::value_variants() {
            if let Ok(namespace) = site.client(*client) {
                site.wait_for_answer(&namespace)
                    .with_context(|| format!("client {client:?}"))?;
            }
        }
        Ok(site)
    }

    /// Where a client's load comes from; else why it cannot.
    pub(crate) fn client(&self, client: Client) -> Result<Namespace, &'static str> {
        match client {
            Client::Node => Ok(self.node_client.clone()),
            Client::Pod => self.pod_client.clone(),
        }
    }

    /// The proxy's processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let itself = self.itself.as_ref().map(|running| running.process.pid());
        let peers = self.proxies.iter().map(Process::id);
        itself.into_iter().chain(peers).collect()
    }

    fn wait_for_answer(&mut self, client: &Namespace) -> Result<()> {
        let deadline = Instant::now() + ANSWERS_WITHIN;
        loop {
            let Err(error) = ask(client, self.target) else {
                return Ok(());
            };
            let ended = self.proxies.iter_mut().any(Process::has_ended);
            if ended || Instant::now() > deadline {
                let logs: Vec<String> = self.proxies.iter().map(Process::log).collect();
                bail!(
                    "no answer from {}: {error}; {}",
                    self.target,
                    logs.join("\n").trim()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One request; returns what the server calls itself.
pub(crate) fn ask(client: &Namespace, target: SocketAddr) -> Result<String> {
    client.run(|| {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        crate::load::ask_once(stream)
    })
}

/// Starts the real server in a pod.
pub(crate) fn serve(cluster: &Cluster, pod: &str) -> Result<Process> {
    let pod = cluster.pod(pod);
    let job = Job::Serve {
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
        name: pod.name().to_owned(),
    };
    Process::lasting(pod.namespace(), &job).with_context(|| format!("server in {}", pod.name()))
}

/// Two nodes, as the seed has them: client and proxy on one, real servers on the
/// other.
pub(crate) fn plan(congestion_control: &str) -> ClusterBuilder {
    let builder = ClusterBuilder::seed().sysctl("net.core.somaxconn", "4096");
    client_sysctls(congestion_control)
        .into_iter()
        .fold(builder, |builder, (key, value)| builder.sysctl(key, value))
}

/// Thousands of connections a second go to one address and port: there are many
/// ports, and those of connections that are over come free after a second
/// (tcp_tw_reuse in the kernel's ip-sysctl).
fn client_sysctls(congestion_control: &str) -> [(&str, &str); 3] {
    [
        ("net.ipv4.tcp_congestion_control", congestion_control),
        ("net.ipv4.ip_local_port_range", "1024 65000"),
        ("net.ipv4.tcp_tw_reuse", "1"),
    ]
}

fn node_of(cluster: &Cluster) -> &Namespace {
    cluster.node(NODE).namespace()
}

/// The congestion control of every namespace: the first that may be set.
pub(crate) fn congestion_control() -> Result<&'static str> {
    for name in ["cubic", "reno"] {
        let probe = Namespace::new("probe")?;
        let set = probe.set_sysctl("net.ipv4.tcp_congestion_control", name);
        if set.is_ok() {
            return Ok(name);
        }
    }
    bail!("neither cubic nor reno may be set in a network namespace")
}

/// The address of service number `index`, from 0.
pub(crate) fn vip(index: usize) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or_default();
    Ipv4Addr::from(u32::from(VIP) + offset)
}
