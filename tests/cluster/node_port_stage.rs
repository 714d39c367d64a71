//! A cluster with a proxy on its master, and Services reached from outside.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::manifests::Manifests;
use kube_tun_proxy::lab::servers::{Server, Tcp};
use kube_tun_proxy::lab::{Cluster, LabError, Namespace, ProxyOptions, ProxyProcess};
use libtest_mimic::Failed;

use crate::node_port_objects::{EndpointAt, Service, node};

/// Longer than anything here takes; reached only by a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at what comes about by itself.
const LOOK: Duration = Duration::from_millis(5);

/// The node port of [`web`].
pub(crate) const PORT: u16 = 30_080;

/// A cluster with a proxy on its master.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) manifests: Manifests,
    pub(crate) proxy: ProxyProcess,
}

impl Stage {
    /// With `services`, once it is ready.
    pub(crate) fn start(
        cluster: Cluster,
        services: &[Service],
        arguments: &[&str],
    ) -> Result<Self, LabError> {
        let binary = Path::new(env!("CARGO_BIN_EXE_kube-tun-proxy"));
        Self::start_binary(binary, cluster, services, arguments)
    }

    /// The same with another binary, which runs that one.
    pub(crate) fn start_binary(
        binary: &Path,
        cluster: Cluster,
        services: &[Service],
        arguments: &[&str],
    ) -> Result<Self, LabError> {
        let manifests = Manifests::new()?;
        manifests.write("node.yaml", &node(cluster.node("master")))?;
        for service in services {
            manifests.write(&format!("{}.yaml", service.name), &service.text())?;
        }
        let cidrs = [
            cluster.service_cidr().into(),
            cluster.service_cidr6().into(),
        ];
        let mut options = ProxyOptions::new(manifests.path(), &cidrs);
        for argument in arguments {
            options = options.argument(argument);
        }
        let proxy = ProxyProcess::start(cluster.node("master").namespace(), binary, &options)?;
        Ok(Self {
            cluster,
            manifests,
            proxy,
        })
    }

    pub(crate) fn write(&self, service: &Service) -> Result<(), LabError> {
        let file = format!("{}.yaml", service.name);
        self.manifests.write(&file, &service.text())
    }

    pub(crate) fn master(&self) -> &Namespace {
        self.cluster.node("master").namespace()
    }

    /// A port of the master as others reach it.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.node("master").address().into(), port)
    }

    pub(crate) fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.node("master").address6().into(), port)
    }

    pub(crate) fn local(port: u16) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
    }
}

/// Asks until the answer is as wanted.
pub(crate) fn eventually<T: std::fmt::Debug>(
    mut ask: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> Result<T, Failed> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(format!("still {answer:?}").into());
        }
        std::thread::sleep(LOOK);
    }
}

/// The same, for its own sake.
pub(crate) fn until<T: std::fmt::Debug>(
    ask: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> Result<(), Failed> {
    eventually(ask, wanted).map(drop)
}

pub(crate) fn is_refused<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

/// Connected, and then not a byte but RST.
pub(crate) fn is_reset(stream: io::Result<std::net::TcpStream>) -> bool {
    let read = stream.and_then(|mut stream| stream.read(&mut [0; 1]));
    matches!(read, Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

pub(crate) fn web(cluster: &Cluster, pods: &[&str]) -> Service {
    let mut service = Service::node_port("web", 80, PORT);
    for name in pods {
        let pod = cluster.pod(name);
        let node = cluster
            .nodes()
            .iter()
            .find(|node| node.pods().iter().any(|pod| pod.name() == *name))
            .map(|node| node.name().to_owned());
        for address in [IpAddr::from(pod.address()), pod.address6().into()] {
            service.endpoints.push(EndpointAt {
                address,
                node: node.clone(),
            });
        }
    }
    service
}

pub(crate) fn serve_who(cluster: &Cluster, names: &[&str]) -> Result<Vec<Server>, LabError> {
    let serve = |name: &&str| {
        cluster
            .pod(name)
            .serve_tcp(80, Tcp::Who((*name).to_owned()))
    };
    names.iter().map(serve).collect()
}
