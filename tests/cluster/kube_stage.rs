//! A cluster whose master has an API server that does as it is told, and the real
//! binary that follows it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kube_tun_proxy::lab::{Cluster, ClusterBuilder, Namespace, Node, ProxyOptions, ProxyProcess};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::api_server::ApiServer;
use crate::world::{BINARY, Family, LIMIT, TUN};

/// The port at which the API server listens on the master.
const API_PORT: u16 = 6443;

/// A cluster that is told of by an API server. It ends in the order of the fields.
#[derive(Debug)]
pub(crate) struct KubeStage {
    proxy: Option<ProxyProcess>,
    pub(crate) api: ApiServer,
    runtime: Runtime,
    pub(crate) cluster: Cluster,
    kubeconfig: PathBuf,
    _directory: TempDir,
}

impl KubeStage {
    /// The seed's cluster, whose API knows the service range and the master.
    pub(crate) fn seed() -> Result<Self, Failed> {
        Self::of(ClusterBuilder::seed().build()?)
    }

    /// The same with another cluster, which has a node "master".
    pub(crate) fn of(cluster: Cluster) -> Result<Self, Failed> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let master = cluster.node("master");
        let namespace = master.namespace().clone();
        let at = SocketAddr::new(master.address().into(), API_PORT);
        let listen = move |at: SocketAddr| namespace.run(|| TcpListener::bind(at));
        let api = runtime.block_on(ApiServer::start_at("secret", at, listen));
        let (directory, kubeconfig) = api.kubeconfig(&api.url(), &json!({"token": "secret"}));
        let ranges = [
            cluster.service_cidr().to_string(),
            cluster.service_cidr6().to_string(),
        ];
        let ranges = ranges.each_ref().map(String::as_str);
        api.apply("servicecidrs", service_cidr("kubernetes", &ranges));
        for node in cluster.nodes() {
            api.apply("nodes", node_object(node));
        }
        Ok(Self {
            proxy: None,
            api,
            runtime,
            cluster,
            kubeconfig,
            _directory: directory,
        })
    }

    /// Starts the proxy; when it returns, it serves what the API has.
    pub(crate) fn start(&mut self, arguments: &[&str]) -> Result<&ProxyProcess, Failed> {
        let options = arguments.iter().fold(
            ProxyOptions::of_cluster(&self.kubeconfig),
            ProxyOptions::argument,
        );
        let proxy = ProxyProcess::start(self.master(), Path::new(BINARY), &options)?;
        Ok(self.proxy.insert(proxy))
    }

    /// Another proxy takes over from the one that runs, which is returned. `meanwhile` is
    /// done as soon as the new one was started.
    pub(crate) fn take_over(
        &mut self,
        meanwhile: impl FnOnce(&Self, &ProxyProcess) -> Result<(), Failed>,
    ) -> Result<ProxyProcess, Failed> {
        let options = ProxyOptions::of_cluster(&self.kubeconfig)
            .admin_socket(self.proxy().admin_socket())
            .argument("--takeover");
        let new = ProxyProcess::spawn(self.master(), Path::new(BINARY), &options)?;
        meanwhile(self, &new)?;
        if new.wait_for_log("taken over: ", LIMIT).is_none() {
            return Err(format!("not taken over:\n{}", new.log()).into());
        }
        new.wait_until_ready()?;
        self.proxy.replace(new).ok_or_else(|| "no proxy".into())
    }

    /// The proxy that [`Self::start`] started.
    ///
    /// # Panics
    ///
    /// When it did not.
    pub(crate) fn proxy(&self) -> &ProxyProcess {
        self.proxy.as_ref().expect("a proxy was started")
    }

    /// The API server breaks its connections and takes none.
    pub(crate) fn api_goes_away(&mut self) {
        self.runtime.block_on(self.api.go_away());
    }

    /// It is back, on the same port.
    pub(crate) fn api_comes_back(&mut self) {
        self.runtime.block_on(self.api.come_back());
    }

    pub(crate) fn master(&self) -> &Namespace {
        self.cluster.node("master").namespace()
    }

    pub(crate) fn client(&self) -> &Namespace {
        self.cluster.pod("client").namespace()
    }

    /// A port of the master as others reach it.
    pub(crate) fn at_master(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.node("master").address().into(), port)
    }

    /// A ready endpoint: a pod, with the node it is on.
    pub(crate) fn endpoint(&self, pod: &str) -> Value {
        let nodes = self.cluster.nodes().iter();
        let mut on = nodes.filter(|node| node.pods().iter().any(|p| p.name() == pod));
        json!({
            "addresses": [self.cluster.pod(pod).address().to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": on.next().map(Node::name),
            "targetRef": {"kind": "Pod", "namespace": "default", "name": pod},
        })
    }

    /// The same when the pod is being deleted, as the controller of EndpointSlices
    /// writes it: it serves as long as its readiness probe says so.
    pub(crate) fn terminating(&self, pod: &str) -> Value {
        let mut endpoint = self.endpoint(pod);
        endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        endpoint
    }

    /// Writes the slice of a Service whose ports all lead to port 80 of these
    /// endpoints.
    pub(crate) fn endpoints(&self, service: &str, endpoints: &[Value]) {
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": 80},
            {"name": "udp", "protocol": "UDP", "port": 80},
        ]);
        self.api
            .apply("endpointslices", slice(service, "a", &ports, endpoints));
    }

    /// Writes the slices of a Service in both families, of these endpoints and of the
    /// same pods with their IPv6 addresses.
    pub(crate) fn endpoints_in_both(&self, service: &str, endpoints: &[Value]) {
        self.endpoints(service, endpoints);
        let in_ipv6 = |endpoint: &Value| {
            let pod = endpoint["targetRef"]["name"].as_str().unwrap_or_default();
            let address = self.cluster.pod(pod).address6().to_string();
            with(endpoint.clone(), &json!({"addresses": [address]}))
        };
        let endpoints: Vec<_> = endpoints.iter().map(in_ipv6).collect();
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": 80},
            {"name": "udp", "protocol": "UDP", "port": 80},
        ]);
        let slice = slice(service, "a6", &ports, &endpoints);
        let slice = with(slice, &json!({"addressType": "IPv6"}));
        self.api.apply("endpointslices", slice);
    }

    /// Writes a Service of both families and its slices with these pods, ready.
    pub(crate) fn serve_in_both(&self, service: Value, pods: &[&str]) {
        let endpoints: Vec<_> = pods.iter().map(|pod| self.endpoint(pod)).collect();
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        self.endpoints_in_both(name, &endpoints);
        self.api.apply("services", service);
    }

    /// Where the [`everywhere`] of this number is reached.
    pub(crate) fn place(&self, family: Family, host: u8, place: Place) -> SocketAddr {
        let master = self.cluster.node("master");
        let v4 = family == Family::V4;
        let on_node = |four: Ipv4Addr, six: Ipv6Addr| {
            let ip = if v4 { four.into() } else { six.into() };
            SocketAddr::new(ip, node_port_of(host))
        };
        let ip = match place {
            Place::ClusterIp => cluster_ips_of(host),
            Place::Balancer => ingress_ips_of(host),
            Place::External => external_ips_of(host),
            Place::NodePort => return on_node(master.address(), master.address6()),
            Place::Bridge => return on_node(master.bridge_address(), master.bridge_address6()),
            Place::Loopback => return on_node(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(ip[usize::from(!v4)], 80)
    }

    /// Writes a Service and its slice with these pods, ready.
    pub(crate) fn serve(&self, name: &str, spec: Value, pods: &[&str]) {
        let endpoints: Vec<_> = pods.iter().map(|pod| self.endpoint(pod)).collect();
        self.endpoints(name, &endpoints);
        self.api.apply("services", service(name, spec));
    }

    /// Waits until the proxy has exactly these pods' port 80 to choose from at an
    /// address and port.
    pub(crate) fn wait_for_real_servers(&self, at: &str, pods: &[&str]) -> Result<(), Failed> {
        let at_port = |pod: &&str| {
            let pod = self.cluster.pod(pod);
            if at.starts_with('[') {
                pod.at6(80)
            } else {
                pod.at(80)
            }
        };
        let mut wanted: Vec<_> = pods.iter().map(|pod| at_port(pod).to_string()).collect();
        wanted.sort();
        crate::node_port_stage::until(
            || self.real_servers(at),
            |found| found.as_ref().is_ok_and(|found| *found == wanted),
        )
    }

    fn real_servers(&self, at: &str) -> Result<Vec<String>, Failed> {
        let listed = self.proxy().command(&["list", "-o", "json"])?;
        let listed: Value = serde_json::from_slice(&listed.stdout)?;
        let servers = listed["virtualServers"].as_array().ok_or("no list")?;
        let mut server = servers.iter().filter(|server| server["address"] == at);
        let real = server.next().map(|server| &server["realServers"]);
        let real = real.and_then(Value::as_array).into_iter().flatten();
        let takers = real.filter(|real| real["weight"] == 1);
        let mut found: Vec<_> = takers
            .filter_map(|real| Some(real["address"].as_str()?.to_owned()))
            .collect();
        found.sort();
        Ok(found)
    }

    /// The IPv4 routes into the TUN.
    pub(crate) fn routes(&self) -> Result<BTreeSet<Ipv4Net>, Failed> {
        let read = || fs::read_to_string("/proc/thread-self/net/route");
        let text = self.master().run(read)?;
        let mut routes = BTreeSet::new();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (Some(name), Some(net), Some(mask)) =
                (fields.first(), fields.get(1), fields.get(7))
            else {
                return Err(format!("no route: {line}").into());
            };
            if *name == TUN {
                // In the order of this machine's bytes.
                let ip =
                    |hex| u32::from_str_radix(hex, 16).map(|n| Ipv4Addr::from(n.to_ne_bytes()));
                let (net, mask) = (ip(net)?, ip(mask)?);
                routes.insert(Ipv4Net::with_netmask(net, mask)?);
            }
        }
        Ok(routes)
    }

    /// The outside leads this to the master, as a router would.
    pub(crate) fn lead_from_outside(&self, to: IpNet) -> Result<(), Failed> {
        let master = self.cluster.node("master");
        let gateway: IpAddr = match to {
            IpNet::V4(_) => master.address().into(),
            IpNet::V6(_) => master.address6().into(),
        };
        let route = rtnetlink::RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())?
            .gateway(gateway)?
            .build();
        let on = self.cluster.outside();
        on.netlink(async |handle| Ok(handle.route().add(route).execute().await))??;
        Ok(())
    }
}

/// A Service of the namespace default.
pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": spec,
        "status": {"loadBalancer": {}},
    })
}

/// One of type ClusterIP with the ports 80 TCP and UDP.
pub(crate) fn cluster_ip(ip: &str) -> Value {
    json!({
        "type": "ClusterIP",
        "clusterIP": ip,
        "clusterIPs": [ip],
        "ports": [
            {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 80},
            {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": 80},
        ],
    })
}

/// The same of type NodePort.
pub(crate) fn node_port(ip: &str, port: u16) -> Value {
    let mut spec = cluster_ip(ip);
    spec["type"] = "NodePort".into();
    for at in 0..2 {
        spec["ports"][at]["nodePort"] = port.into();
    }
    spec
}

/// By which address of an [`everywhere`] a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    ClusterIp,
    Balancer,
    External,
    /// At the node's address between the nodes.
    NodePort,
    /// At the node's address towards its pods.
    Bridge,
    /// At the node's loopback.
    Loopback,
}

/// A Service of both families with every kind of address: cluster IPs, those of a load
/// balancer, external ones and a node port, which [`KubeStage::place`] knows by `host`.
pub(crate) fn everywhere(name: &str, host: u8, fields: &Value) -> Value {
    let texts = |ips: [IpAddr; 2]| ips.map(|ip| ip.to_string());
    let [first, second] = texts(cluster_ips_of(host));
    let spec = with(
        node_port(&first, node_port_of(host)),
        &json!({
            "type": "LoadBalancer",
            "clusterIPs": [first, second],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": texts(external_ips_of(host)),
        }),
    );
    let mut service = service(name, with(spec, fields));
    let ingress = texts(ingress_ips_of(host)).map(|ip| json!({"ip": ip}));
    service["status"]["loadBalancer"]["ingress"] = json!(ingress);
    service
}

fn node_port_of(host: u8) -> u16 {
    30_000 + u16::from(host)
}

fn cluster_ips_of(host: u8) -> [IpAddr; 2] {
    let six = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, host.into());
    [Ipv4Addr::new(10, 0, 0, host).into(), six.into()]
}

fn ingress_ips_of(host: u8) -> [IpAddr; 2] {
    let six = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, host.into());
    [Ipv4Addr::new(198, 51, 100, host).into(), six.into()]
}

fn external_ips_of(host: u8) -> [IpAddr; 2] {
    let six = Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, host.into());
    [Ipv4Addr::new(203, 0, 113, host).into(), six.into()]
}

/// With these fields instead of its own.
pub(crate) fn with(mut spec: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    spec
}

/// A slice of a Service.
pub(crate) fn slice(service: &str, suffix: &str, ports: &Value, endpoints: &[Value]) -> Value {
    json!({
        "metadata": {
            "namespace": "default",
            "name": format!("{service}-{suffix}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// A ServiceCIDR.
pub(crate) fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})
}

/// The Node object of a node of the lab.
pub(crate) fn node_object(node: &Node) -> Value {
    let addresses: [IpAddr; 2] = [node.address().into(), node.address6().into()];
    let addresses = addresses.map(|ip| json!({"type": "InternalIP", "address": ip}));
    let pods6 = Ipv6Net::new_assert(node.bridge_address6(), 64).trunc();
    let pods6 = pods6.to_string();
    json!({
        "metadata": {"name": node.name()},
        "spec": {"podCIDRs": [node.pod_cidr().to_string(), pods6]},
        "status": {"addresses": addresses},
    })
}
