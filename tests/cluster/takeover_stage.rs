//! A cluster whose proxies take over from one another, and what goes on there meanwhile.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_tun_proxy::admin::api::{self, Flow, Flows, RealServer, Services};
use kube_tun_proxy::admin::client::ask;
use kube_tun_proxy::lab::servers::{Fnv1a, Server, Tcp, Udp, pattern};
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, ProxyOptions, ProxyProcess, TempDir, client};
use libtest_mimic::Failed;
use serde::de::DeserializeOwned;

use crate::node_port_stage::{PORT, Stage, web};
use crate::world::{BINARY, LIMIT, joined};

/// The cluster IP of [`web`] and its port.
const VIP: ([u8; 4], u16) = ([10, 0, 9, 84], 80);

/// How long a transfer may stand still.
const STILL: Duration = Duration::from_secs(15);

/// A stage, and where its proxies are asked.
pub(super) struct Scene {
    /// Former ones; the latest is the stage's.
    pub(super) former: Vec<ProxyProcess>,
    pub(super) stage: Stage,
    pub(super) socket: PathBuf,
    _servers: Vec<Server>,
    _directory: TempDir,
}

impl Scene {
    pub(super) fn new(pods: &[&str], tcp: &Tcp, arguments: &[&str]) -> Result<Self, Failed> {
        let directory = TempDir::new()?;
        let socket = directory.path().join("admin.sock");
        let cluster = ClusterBuilder::seed().build()?;
        let mut servers = Vec::new();
        for name in pods {
            let pod = cluster.pod(name);
            let tcp = if matches!(tcp, Tcp::Who(_)) {
                Tcp::Who((*name).to_owned())
            } else {
                tcp.clone()
            };
            servers.push(pod.serve_tcp(80, tcp)?);
            servers.push(pod.serve_udp(80, Udp::Who((*name).to_owned()))?);
        }
        let service = web(&cluster, pods);
        let mut all = vec!["--workers", "2"];
        all.extend(arguments);
        let mut stage = Stage::start(cluster, &[service], &[])?;
        stage.proxy.kill()?;
        let mut scene = Self {
            former: Vec::new(),
            stage,
            socket,
            _servers: servers,
            _directory: directory,
        };
        let first = scene.options(&all);
        scene.stage.proxy = ProxyProcess::start(scene.stage.master(), Path::new(BINARY), &first)?;
        Ok(scene)
    }

    fn options(&self, arguments: &[&str]) -> ProxyOptions {
        let cidrs = [
            self.stage.cluster.service_cidr().into(),
            self.stage.cluster.service_cidr6().into(),
        ];
        let options = ProxyOptions::new(self.stage.manifests.path(), &cidrs)
            .admin_socket(&self.socket)
            .environment("RUST_LOG", "info");
        arguments.iter().fold(options, ProxyOptions::argument)
    }

    pub(super) fn spawn(&self, arguments: &[&str]) -> Result<ProxyProcess, Failed> {
        let mut all = vec!["--takeover"];
        all.extend(arguments);
        let options = self.options(&all);
        Ok(ProxyProcess::spawn(
            self.stage.master(),
            Path::new(BINARY),
            &options,
        )?)
    }

    /// A new process takes over; returns when it has.
    pub(super) fn take_over(&mut self, arguments: &[&str]) -> Result<(), Failed> {
        let new = self.spawn(arguments)?;
        if new.wait_for_log("taken over: ", LIMIT).is_none() {
            let old = self.stage.proxy.log();
            return Err(format!("not taken over:\n{}\nthe old one:\n{old}", new.log()).into());
        }
        new.wait_until_ready()?;
        self.former
            .push(std::mem::replace(&mut self.stage.proxy, new));
        Ok(())
    }

    pub(super) fn vip() -> SocketAddr {
        VIP.into()
    }

    pub(super) fn pod(&self) -> &Namespace {
        self.stage.cluster.pod("client").namespace()
    }

    /// The flows of the latest process.
    pub(super) fn flows(&self) -> Result<Vec<Flow>, Failed> {
        Ok(self.ask::<Flows>(api::FLOWS)?.flows)
    }

    /// How many established connections it counts on the real servers of the node port,
    /// over IPv4, by address.
    pub(super) fn counts(&self) -> Result<Vec<(IpAddr, u32)>, Failed> {
        let services: Services = self.ask(api::SERVICES)?;
        let mut servers = services.virtual_servers.into_iter();
        let server = servers.find(|server| {
            let v4 = server.address.is_ipv4() && server.protocol == "TCP";
            v4 && server.exposure == "NodePort" && server.address.port() == PORT
        });
        let real_servers = server.ok_or("no node port")?.real_servers.into_iter();
        let count = |its: RealServer| (its.address.ip(), its.active_flows);
        Ok(real_servers.map(count).collect())
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(ask(&self.socket, path))?)
    }
}

/// A connection that carries bytes both ways all the time until it is told to finish.
pub(super) struct Transfer {
    writer: JoinHandle<Result<(u64, String), String>>,
    reader: JoinHandle<Result<(u64, String), String>>,
}

impl Transfer {
    pub(super) fn start(stream: TcpStream, finish: &Arc<AtomicBool>) -> Result<Self, Failed> {
        stream.set_read_timeout(Some(STILL))?;
        stream.set_write_timeout(Some(STILL))?;
        let (mut to, mut from) = (stream.try_clone()?, stream);
        let finish = Arc::clone(finish);
        let writer = thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let mut chunk = vec![0; 4 << 10];
                let (mut sent, mut digest) = (0, Fnv1a::default());
                while !finish.load(Ordering::Relaxed) {
                    pattern(sent, &mut chunk);
                    to.write_all(&chunk)
                        .map_err(|error| format!("write: {error}"))?;
                    digest.update(&chunk);
                    sent += chunk.len() as u64;
                    thread::sleep(Duration::from_millis(40));
                }
                to.shutdown(Shutdown::Write)
                    .map_err(|error| format!("shutdown: {error}"))?;
                Ok((sent, digest.to_string()))
            })?;
        let reader = thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let mut room = vec![0; 16 << 10];
                let (mut received, mut digest) = (0, Fnv1a::default());
                loop {
                    match from.read(&mut room) {
                        Ok(0) => return Ok((received, digest.to_string())),
                        Ok(count) => {
                            digest.update(&room[..count]);
                            received += count as u64;
                        }
                        Err(error) => return Err(format!("read after {received}: {error}")),
                    }
                }
            })?;
        Ok(Self { writer, reader })
    }

    pub(super) fn end(self) -> Result<(), Failed> {
        let sent = joined(self.writer)?;
        let received = joined(self.reader)?;
        assert_eq!(sent, received);
        assert!(sent.0 > 0);
        Ok(())
    }
}

/// New connections, one after the other, until told to finish. Returns how many.
pub(super) fn newcomers(
    from: &Namespace,
    to: SocketAddr,
    finish: &Arc<AtomicBool>,
) -> JoinHandle<Result<usize, String>> {
    let from = from.clone();
    again_and_again(finish, move |count| {
        let ping = || {
            let mut stream = client::connect(&from, to, LIMIT)?;
            stream.write_all(b"ping")?;
            stream.read_exact(&mut [0; 4])
        };
        ping().map_err(|error: io::Error| format!("connection {count} to {to}: {error}"))
    })
}

/// Does so on a thread until told to finish, or until it fails. It gets the number of times
/// before; returns that of all.
pub(super) fn again_and_again(
    finish: &Arc<AtomicBool>,
    mut one: impl FnMut(usize) -> Result<(), String> + Send + 'static,
) -> JoinHandle<Result<usize, String>> {
    let finish = Arc::clone(finish);
    thread::spawn(move || {
        let mut count = 0;
        while !finish.load(Ordering::Relaxed) {
            one(count)?;
            count += 1;
        }
        Ok(count)
    })
}

/// Asks over one socket until told to finish; all answers come from one real server. A
/// datagram may get lost, but not its repetition.
pub(super) fn conversation(
    from: &Namespace,
    to: SocketAddr,
    finish: &Arc<AtomicBool>,
) -> Result<JoinHandle<Result<usize, String>>, Failed> {
    let socket = client::udp_socket(from, to, Duration::from_millis(500))?;
    let first = answer(&socket)?;
    let finish = Arc::clone(finish);
    Ok(thread::spawn(move || {
        let mut count = 0;
        while !finish.load(Ordering::Relaxed) {
            let next = answer(&socket).or_else(|_| answer(&socket));
            let next = next.map_err(|error| format!("question {count} to {to}: {error:?}"))?;
            if next != first {
                return Err(format!("{next} answered and not {first}"));
            }
            count += 1;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(count)
    }))
}

fn answer(socket: &UdpSocket) -> Result<String, Failed> {
    socket.send(b"who\n")?;
    let mut room = [0; 200];
    let len = socket.recv(&mut room)?;
    Ok(String::from_utf8_lossy(&room[..len]).into_owned())
}

/// Never refused and never unready, whoever of the two answers.
pub(super) fn health_all_the_time(
    scene: &Scene,
    finish: &Arc<AtomicBool>,
) -> JoinHandle<Result<usize, String>> {
    let (from, finish) = (scene.stage.master().clone(), Arc::clone(finish));
    let to = scene.stage.proxy.healthz();
    thread::spawn(move || {
        let mut count = 0;
        while !finish.load(Ordering::Relaxed) {
            let ask = || client::http_get(&from, to, "/readyz", LIMIT);
            // One that the old process has accepted and not read yet is cut: no refusal,
            // but an answer without a word. It is asked again, and then must be answered.
            let asked = match ask() {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
                Err(_) => ask(),
                answered => answered,
            };
            let (status, body) = asked.map_err(|error| format!("/readyz: {error}"))?;
            if status != 200 {
                return Err(format!("/readyz: {status} {body}"));
            }
            count += 1;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(count)
    })
}

pub(super) fn some_transfers(
    scene: &Scene,
    finish: &Arc<AtomicBool>,
) -> Result<Vec<Transfer>, Failed> {
    (0..12)
        .map(|_| Transfer::start(client::connect(scene.pod(), Scene::vip(), LIMIT)?, finish))
        .collect()
}

pub(super) fn pinged(scene: &Scene) -> Result<(), Failed> {
    for (from, to) in [
        (scene.pod(), Scene::vip()),
        (scene.stage.cluster.outside(), scene.stage.at(PORT)),
    ] {
        let mut stream = client::connect(from, to, LIMIT)?;
        stream.write_all(b"ping")?;
        stream.read_exact(&mut [0; 4])?;
    }
    Ok(())
}
