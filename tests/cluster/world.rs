//! What the trials of the proxy stand on: a cluster, objects, the real binary.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube_tun_proxy::admin::api::{self, Flow, Flows, Services, VirtualServer};
use kube_tun_proxy::admin::client::ask;
use kube_tun_proxy::lab::capture::{Capture, Packet};
use kube_tun_proxy::lab::manifests::{Manifests, Port};
use kube_tun_proxy::lab::servers::{Server, Tcp};
use kube_tun_proxy::lab::{
    Cluster, ClusterBuilder, Namespace, Node, NodeSpec, Pod, PodSpec, ProxyOptions, ProxyProcess,
    client,
};
use libtest_mimic::{Failed, Trial};
use serde::de::DeserializeOwned;

/// Longer than anything here takes on a busy machine; reached only by a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// How long to wait for what must not come: longer than the first
/// retransmission of a SYN (1 s, RFC 6298 section 2), so that it is seen too.
pub(crate) const SILENCE: Duration = Duration::from_millis(1500);

/// Between two looks at a state that tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(10);

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kube-tun-proxy");

/// Name of the TUN device unless a trial chooses another.
pub(crate) const TUN: &str = "svc-tun0";

/// An address family; trials that do not care run in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The node that the proxy is on.
    Node,
    /// A pod of that node, behind an MTU of 1450.
    Pod,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const CLIENTS: [Client; 2] = [Client::Node, Client::Pod];

/// The names of a plan.
#[derive(Clone, Copy, Debug)]
struct Names {
    proxy_node: &'static str,
    other_node: &'static str,
    client: &'static str,
    /// Real servers on the other node.
    pods: [&'static str; 3],
    /// A real server on the proxy's node.
    near: &'static str,
}

/// A cluster with objects, and in most trials a proxy. It ends in the order of
/// the fields.
#[derive(Debug)]
pub(crate) struct World {
    proxy: Option<ProxyProcess>,
    pub(crate) manifests: Manifests,
    pub(crate) cluster: Cluster,
    names: Names,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Address and port of a pod.
    pub(crate) fn at(self, pod: &Pod, port: u16) -> SocketAddr {
        match self {
            Self::V4 => pod.at(port),
            Self::V6 => pod.at6(port),
        }
    }
}

/// The trials of one subject.
pub(crate) struct Trials {
    subject: &'static str,
    trials: Vec<Trial>,
}

impl Trials {
    pub(crate) fn of(subject: &'static str) -> Self {
        Self {
            subject,
            trials: Vec::new(),
        }
    }

    /// One trial, `subject::name`.
    pub(crate) fn one(mut self, name: &str, trial: fn() -> Result<(), Failed>) -> Self {
        let name = format!("{}::{name}", self.subject);
        self.trials.push(Trial::test(name, trial));
        self
    }

    /// The same in both families: `subject::name::ipv4`, `subject::name::ipv6`.
    pub(crate) fn both(mut self, name: &str, trial: fn(Family) -> Result<(), Failed>) -> Self {
        for family in FAMILIES {
            let name = format!("{}::{name}::{}", self.subject, family.name());
            self.trials.push(Trial::test(name, move || trial(family)));
        }
        self
    }

    pub(crate) fn done(self) -> Vec<Trial> {
        self.trials
    }
}

impl World {
    /// The seed's cluster, with another pod on the master.
    pub(crate) fn seed() -> Result<Self, Failed> {
        let names = Names {
            proxy_node: "master",
            other_node: "node2",
            client: "client",
            pods: ["pod-5", "pod-6", "pod-7"],
            near: "near",
        };
        let cluster = ClusterBuilder::seed().pod("master", PodSpec::new("near", 9));
        Ok(Self {
            proxy: None,
            manifests: Manifests::new()?,
            cluster: cluster.build()?,
            names,
        })
    }

    /// A cluster that shares no name, address or port with the seed's.
    pub(crate) fn other() -> Result<Self, Failed> {
        let names = Names {
            proxy_node: "edge-a",
            other_node: "edge-b",
            client: "asker",
            pods: ["red", "green", "blue"],
            near: "beside",
        };
        let edge_a = NodeSpec::new("edge-a", [192, 168, 7, 10].into(), "10.44.3.0/24".parse()?);
        let edge_b = NodeSpec::new("edge-b", [192, 168, 7, 11].into(), "10.44.64.0/18".parse()?);
        let cluster = ClusterBuilder::new()
            .underlay("192.168.7.0/25".parse()?)
            .service_cidrs("172.20.0.0/20".parse()?, "fd77:0:0:1::/112".parse()?)
            .overlay("vx9", 9, 4789)
            .pod_bridge("pods0")
            .node(
                edge_a
                    .interface("ens3")
                    .pod(PodSpec::new("asker", 21))
                    .pod(PodSpec::new("beside", 22)),
            )
            .node(
                edge_b
                    .interface("ens4")
                    .pod(PodSpec::new("red", 300))
                    .pod(PodSpec::new("green", 31))
                    .pod(PodSpec::new("blue", 32)),
            );
        Ok(Self {
            proxy: None,
            manifests: Manifests::new()?,
            cluster: cluster.build()?,
            names,
        })
    }

    /// Starts the proxy with arguments behind the usual ones; when it returns,
    /// what [`Self::serve`] has written is served.
    pub(crate) fn start(&mut self, arguments: &[&str]) -> Result<&ProxyProcess, Failed> {
        let options = arguments
            .iter()
            .fold(self.options(), ProxyOptions::argument);
        self.start_with(&options)
    }

    /// As [`Self::start`], with options of one's own.
    pub(crate) fn start_with(&mut self, options: &ProxyOptions) -> Result<&ProxyProcess, Failed> {
        let proxy = ProxyProcess::start(self.node().namespace(), Path::new(BINARY), options)?;
        Ok(self.proxy.insert(proxy))
    }

    /// The usual options. RUST_LOG is such that every dropped packet and refused
    /// flow shows its reason.
    pub(crate) fn options(&self) -> ProxyOptions {
        ProxyOptions::new(self.manifests.path(), &self.service_cidrs())
            .environment("RUST_LOG", "info,kube_tun_proxy::dataplane=trace")
    }

    pub(crate) fn service_cidrs(&self) -> [IpNet; 2] {
        [
            self.cluster.service_cidr().into(),
            self.cluster.service_cidr6().into(),
        ]
    }

    /// The proxy that [`Self::start`] started.
    ///
    /// # Panics
    ///
    /// When it did not.
    pub(crate) fn proxy(&self) -> &ProxyProcess {
        self.proxy.as_ref().expect("a proxy was started")
    }

    /// The same, to be killed.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub(crate) fn proxy_mut(&mut self) -> &mut ProxyProcess {
        self.proxy.as_mut().expect("a proxy was started")
    }

    pub(crate) fn node(&self) -> &Node {
        self.cluster.node(self.names.proxy_node)
    }

    pub(crate) fn other_node(&self) -> &Node {
        self.cluster.node(self.names.other_node)
    }

    pub(crate) fn client_pod(&self) -> &Pod {
        self.cluster.pod(self.names.client)
    }

    /// Where a client is.
    pub(crate) fn from(&self, client: Client) -> &Namespace {
        match client {
            Client::Node => self.node().namespace(),
            Client::Pod => self.client_pod().namespace(),
        }
    }

    /// A real server's pod on the other node: 0 to 2.
    pub(crate) fn pod(&self, number: usize) -> &Pod {
        self.cluster.pod(self.names.pods[number])
    }

    /// A pod on the proxy's node that is not the client.
    pub(crate) fn near(&self) -> &Pod {
        self.cluster.pod(self.names.near)
    }

    /// The node's address on the overlay: whom pods of other nodes see.
    pub(crate) fn overlay_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.node().overlay_address().into(),
            Family::V6 => self.node().overlay_address6().into(),
        }
    }

    /// The node's address on the pods' bridge: whom its own pods see.
    pub(crate) fn bridge_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.node().bridge_address().into(),
            Family::V6 => self.node().bridge_address6().into(),
        }
    }

    /// The address with this number in the service range.
    pub(crate) fn vip(&self, family: Family, number: u16) -> IpAddr {
        match family {
            Family::V4 => {
                let network = u32::from(self.cluster.service_cidr().network());
                std::net::Ipv4Addr::from(network + u32::from(number)).into()
            }
            Family::V6 => {
                let network = u128::from(self.cluster.service_cidr6().network());
                std::net::Ipv6Addr::from(network + u128::from(number)).into()
            }
        }
    }

    /// The virtual server at this number and port.
    pub(crate) fn vip_at(&self, family: Family, number: u16, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip(family, number), port)
    }

    /// The addresses of a service in both families.
    pub(crate) fn vips(&self, number: u16) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.vip(family, number))
    }

    /// Writes a service with its address at `number` in both families, and as
    /// endpoints the pods, in both families.
    pub(crate) fn serve(
        &self,
        name: &str,
        number: u16,
        ports: &[Port],
        pods: &[&Pod],
    ) -> Result<(), Failed> {
        let endpoints: Vec<IpAddr> = pods
            .iter()
            .flat_map(|pod| [pod.address().into(), pod.address6().into()])
            .collect();
        self.serve_addresses(name, number, ports, &endpoints)
    }

    /// As [`Self::serve`], with addresses for pods.
    pub(crate) fn serve_addresses(
        &self,
        name: &str,
        number: u16,
        ports: &[Port],
        endpoints: &[IpAddr],
    ) -> Result<(), Failed> {
        Ok(self
            .manifests
            .serve(name, &self.vips(number), ports, endpoints)?)
    }

    /// Starts [`Tcp::Who`] in the three pods on the other node; each says its
    /// pod's name.
    pub(crate) fn who_servers(&self, port: u16) -> Result<Vec<Server>, Failed> {
        let pods = (0..3).map(|number| self.pod(number));
        pods.map(|pod| Ok(pod.serve_tcp(port, Tcp::Who(pod.name().to_owned()))?))
            .collect()
    }

    /// Captures on the overlay, where the node's traffic to real servers passes.
    pub(crate) fn capture_overlay(&self) -> Result<Capture, Failed> {
        Ok(Capture::start(
            self.node().namespace(),
            self.cluster.overlay(),
        )?)
    }

    /// Captures on the TUN, where clients and proxy meet.
    pub(crate) fn capture_tun(&self) -> Result<Capture, Failed> {
        Ok(Capture::start(self.node().namespace(), TUN)?)
    }

    /// What `list` is told.
    pub(crate) fn services(&self) -> Result<Vec<VirtualServer>, Failed> {
        Ok(self.ask::<Services>(api::SERVICES)?.virtual_servers)
    }

    /// What `list --flows` is told.
    pub(crate) fn flows(&self) -> Result<Vec<Flow>, Failed> {
        Ok(self.ask::<Flows>(api::FLOWS)?.flows)
    }

    /// Waits until the virtual server has exactly these real servers.
    pub(crate) fn wait_for_real_servers(
        &self,
        at: SocketAddr,
        real_servers: &[SocketAddr],
    ) -> Result<(), Failed> {
        let mut wanted = real_servers.to_vec();
        wanted.sort();
        wait_until(&format!("{at} with {wanted:?}"), || {
            let services = self.services()?;
            let server = services.iter().find(|server| server.address == at);
            Ok(server.is_some_and(|server| {
                let takers = server.real_servers.iter().filter(|real| real.weight > 0);
                let mut found: Vec<_> = takers.map(|real| real.address).collect();
                found.sort();
                found == wanted
            }))
        })
    }

    /// Waits until nothing is served at the address.
    pub(crate) fn wait_for_no_service(&self, at: SocketAddr) -> Result<(), Failed> {
        wait_until(&format!("nothing at {at}"), || {
            Ok(self.services()?.iter().all(|server| server.address != at))
        })
    }

    /// Waits until the flows are such.
    pub(crate) fn wait_for_flows(
        &self,
        what: &str,
        fits: impl Fn(&[Flow]) -> bool,
    ) -> Result<(), Failed> {
        wait_until(what, || Ok(fits(&self.flows()?)))
    }

    /// Waits for a line of log that says why a packet was dropped or a flow
    /// refused.
    pub(crate) fn expect_reason(&self, reason: &str) -> Result<(), Failed> {
        let line = format!("reason={reason:?}");
        match self.proxy().wait_for_log(&line, LIMIT) {
            Some(_) => Ok(()),
            None => Err(format!("no {line} in the log:\n{}", self.proxy().log()).into()),
        }
    }

    pub(crate) fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(ask(self.proxy().admin_socket(), path))?)
    }
}

/// Waits until `is_so` says true.
pub(crate) fn wait_until(
    what: &str,
    mut is_so: impl FnMut() -> Result<bool, Failed>,
) -> Result<(), Failed> {
    let deadline = Instant::now() + LIMIT;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("did not come within {LIMIT:?}: {what}").into());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Connects and expects nothing: neither answer nor refusal.
pub(crate) fn expect_silence(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    expect_kind(
        client::connect(from, to, SILENCE),
        std::io::ErrorKind::TimedOut,
        &format!("connect to {to}"),
    )
}

/// Connects and expects RST.
pub(crate) fn expect_refused(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    expect_kind(
        client::connect(from, to, LIMIT),
        std::io::ErrorKind::ConnectionRefused,
        &format!("connect to {to}"),
    )
}

/// Expects an error of this kind.
pub(crate) fn expect_kind<T: std::fmt::Debug>(
    result: std::io::Result<T>,
    kind: std::io::ErrorKind,
    what: &str,
) -> Result<(), Failed> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => Err(format!("{what}: {other:?}, not {kind:?}").into()),
    }
}

/// The SYNs among packets.
pub(crate) fn syns(packets: impl Iterator<Item = Packet>) -> Vec<Packet> {
    packets.filter(Packet::is_syn).collect()
}

/// A thread's result, its panic as a failure.
pub(crate) fn joined<T, E: Into<Box<dyn Error>>>(
    thread: thread::JoinHandle<Result<T, E>>,
) -> Result<T, Failed> {
    match thread.join() {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.into().to_string().into()),
        Err(_) => Err("a thread panicked".into()),
    }
}
