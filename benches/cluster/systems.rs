//! The systems that are compared, each set up in a cluster of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use kube_tun_proxy::lab::{Cluster, ClusterBuilder, Namespace};
use serde::Serialize;

use crate::load::Job;
use crate::process::Process;

mod haproxy;
mod kernel_nat;
mod kube_tun_proxy_itself;

/// Port of the real server and of the service, TCP and UDP.
pub(crate) const PORT: u16 = 9000;

/// The service's address; with more than one service they follow upon it.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

/// The node that the client and the proxy are on.
const NODE: &str = "master";

/// The pod that the real server is in, on the other node.
const SERVER: &str = "pod-5";

/// How long a system may take from its start to its first answer.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// No proxy: the client connects to the pod.
    Direct,
    /// This build.
    KubeTunProxy,
    /// nftables dnat and masquerade, as kube-proxy's nftables mode.
    KernelNat,
    /// haproxy in TCP mode with splice, the VIP on lo.
    Haproxy,
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

/// A program that was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// Where it is.
    pub(crate) program: PathBuf,
    /// What it calls itself.
    pub(crate) version: String,
}

impl System {
    /// Its name, as `--systems` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubeTunProxy => "kube-tun-proxy",
            Self::KernelNat => "kernel-nat",
            Self::Haproxy => "haproxy",
        }
    }

    /// The program it needs; else what to type for it.
    pub(crate) fn find(self) -> Result<Found, &'static str> {
        match self {
            Self::Direct => Ok(Found {
                program: PathBuf::new(),
                version: "no proxy".to_owned(),
            }),
            Self::KubeTunProxy => Ok(Found {
                program: kube_tun_proxy_itself::BINARY.into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            Self::KernelNat => {
                find_program("nft", &["--version"]).ok_or("apt-get install nftables")
            }
            Self::Haproxy => find_program("haproxy", &["-v"]).ok_or("apt-get install haproxy"),
        }
    }
}

/// A system that stands, and answers.
pub(crate) struct Site {
    pub(crate) system: System,
    /// The service, or the pod where there is no proxy.
    pub(crate) target: SocketAddr,
    /// The proxy's processes.
    proxies: Vec<Process>,
    itself: Option<kube_tun_proxy_itself::Running>,
    _server: Process,
    pub(crate) cluster: Cluster,
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
        let server = Process::serve(
            cluster.pod(SERVER).namespace(),
            &Job::Serve {
                addresses: vec![SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)],
                name: SERVER.to_owned(),
            },
        )?;
        let real_server = SocketAddr::new(cluster.pod(SERVER).address().into(), PORT);
        let mut site = Self {
            system,
            target: SocketAddr::new(VIP.into(), PORT),
            proxies: Vec::new(),
            itself: None,
            _server: server,
            cluster,
        };
        let node = site.cluster.node(NODE).namespace();
        match system {
            System::Direct => site.target = real_server,
            System::KubeTunProxy => {
                site.itself = Some(kube_tun_proxy_itself::start(
                    &site.cluster,
                    node,
                    real_server,
                    services,
                )?);
            }
            System::KernelNat => kernel_nat::start(node, real_server, services)?,
            System::Haproxy => {
                let process = haproxy::start(node, found, real_server, services)?;
                site.proxies.push(process);
            }
        }
        for client in [Client::Node, Client::Pod] {
            if let Ok(namespace) = site.client(client) {
                site.wait_for_answer(&namespace)
                    .with_context(|| format!("{}: {client:?} client", system.name()))?;
            }
        }
        Ok(site)
    }

    /// Where a client's load comes from; else why it cannot.
    pub(crate) fn client(&self, client: Client) -> Result<Namespace, &'static str> {
        Ok(match client {
            Client::Node => self.cluster.node(NODE).namespace().clone(),
            Client::Pod => self.cluster.pod("client").namespace().clone(),
        })
    }

    /// The proxy's processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let itself = self.itself.as_ref().map(|running| running.process.pid());
        let peers = self.proxies.iter().map(Process::id);
        itself.into_iter().chain(peers).collect()
    }

    fn wait_for_answer(&self, client: &Namespace) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let target = self.target;
            let tried = client.run(|| -> Result<()> {
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                crate::load::ask_once(stream)
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let logs: Vec<String> = self.proxies.iter().map(Process::log).collect();
                    bail!("no answer from {target}: {error}; {}", logs.join("\n"));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Two nodes, as the seed has them: client and proxy on one, real servers on the
/// other.
fn plan(congestion_control: &str) -> ClusterBuilder {
    ClusterBuilder::seed()
        .congestion_control(congestion_control)
        // Thousands of connections a second to one address and port: the ports of
        // those that are over must come free after a second (tcp_tw_reuse).
        .sysctl("net.ipv4.ip_local_port_range", "1024 65000")
        .sysctl("net.ipv4.tcp_tw_reuse", "1")
        .sysctl("net.core.somaxconn", "4096")
        .sysctl("net.ipv4.tcp_max_syn_backlog", "4096")
}

/// The congestion control of every namespace: the first that may be set.
pub(crate) fn congestion_control() -> Result<&'static str> {
    for name in ["cubic", "reno"] {
        let probe = Namespace::new("probe")?;
        if probe
            .set_sysctl("net.ipv4.tcp_congestion_control", name)
            .is_ok()
        {
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

/// A program in PATH, and the first line it says of itself.
fn find_program(name: &str, version: &[&str]) -> Option<Found> {
    let path = std::env::var_os("PATH")?;
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin".into(), "/sbin".into()]);
    let program = places
        .into_iter()
        .map(|place| place.join(name))
        .find(|program| program.is_file())?;
    let output = std::process::Command::new(&program)
        .args(version)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(Found {
        version: text.lines().next().unwrap_or("unknown").trim().to_owned(),
        program,
    })
}
