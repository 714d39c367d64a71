//! What is reached by addresses of the node: node ports, external IPs, health checks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::manifests::Manifests;
use kube_tun_proxy::lab::servers::{Fnv1a, How, Server, Tcp, Udp, pattern};
use kube_tun_proxy::lab::{
    Cluster, ClusterBuilder, LabError, Namespace, PodSpec, ProxyOptions, ProxyProcess, client,
};
use libtest_mimic::{Failed, Trial};
use nix::net::if_::if_nametoindex;

use crate::node_port_objects::{EndpointAt, Service, node};

/// Longer than anything here takes; reached only by a failure.
const LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

/// Between two looks at what comes about by itself.
const LOOK: Duration = Duration::from_millis(5);

const PORT: u16 = 30_080;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("node_port::reached_from_everywhere", from_everywhere),
        Trial::test("node_port::chosen_addresses_only", chosen_addresses_only),
        Trial::test("node_port::real_servers_take_turns", rotation),
        Trial::test("node_port::the_next_real_server_is_tried", fail_over),
        Trial::test("node_port::nobody_there_is_a_reset", nobody_there),
        Trial::test(
            "node_port::closed_without_endpoints",
            closed_without_endpoints,
        ),
        Trial::test("node_port::half_closed_connections_go_on", half_close),
        Trial::test("node_port::a_hundred_megabytes_arrive_whole", bulk),
        Trial::test("node_port::resets_go_through_both_ways", resets),
        Trial::test(
            "node_port::a_port_that_is_taken_is_opened_later",
            port_taken,
        ),
        Trial::test("node_port::policy_local", policy_local),
        Trial::test("node_port::datagrams_of_all_sizes", datagrams),
        Trial::test(
            "node_port::datagrams_leave_a_removed_endpoint",
            datagrams_move,
        ),
        Trial::test("node_port::proxy_protocol", proxy_protocol),
        Trial::test("node_port::health_checks", health_checks),
        Trial::test("node_port::an_external_address_by_route", external_by_route),
        Trial::test(
            "node_port::an_external_address_of_the_node",
            external_of_the_node,
        ),
        Trial::test("node_port::list_shows_the_flows", list_shows_the_flows),
    ]
}

/// A cluster with a proxy on its master.
struct Stage {
    cluster: Cluster,
    manifests: Manifests,
    proxy: ProxyProcess,
}

impl Stage {
    /// With `services`, once it is ready.
    fn start(cluster: Cluster, services: &[Service], arguments: &[&str]) -> Result<Self, LabError> {
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
        let binary = Path::new(env!("CARGO_BIN_EXE_kube-tun-proxy"));
        let proxy = ProxyProcess::start(cluster.node("master").namespace(), binary, &options)?;
        Ok(Self {
            cluster,
            manifests,
            proxy,
        })
    }

    fn write(&self, service: &Service) -> Result<(), LabError> {
        let file = format!("{}.yaml", service.name);
        self.manifests.write(&file, &service.text())
    }

    fn master(&self) -> &Namespace {
        self.cluster.node("master").namespace()
    }

    /// A port of the master as others reach it.
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.node("master").address().into(), port)
    }

    fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.node("master").address6().into(), port)
    }

    fn local(port: u16) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
    }
}

/// Asks until the answer is as wanted.
fn eventually<T: std::fmt::Debug>(
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
fn until<T: std::fmt::Debug>(
    ask: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> Result<(), Failed> {
    eventually(ask, wanted).map(drop)
}

fn is_refused<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

/// Connected, and then not a byte but RST.
fn is_reset(stream: io::Result<std::net::TcpStream>) -> bool {
    let read = stream.and_then(|mut stream| stream.read(&mut [0; 1]));
    matches!(read, Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

fn web(cluster: &Cluster, pods: &[&str]) -> Service {
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

fn from_everywhere() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let pod = cluster.pod("pod-5");
    let _tcp = pod.serve_tcp(80, Tcp::Who("five".to_owned()))?;
    let _udp = pod.serve_udp(80, Udp::Who("five".to_owned()))?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    let overlay = IpAddr::from(stage.cluster.node("master").overlay_address());
    let overlay6 = IpAddr::from(stage.cluster.node("master").overlay_address6());
    let (outside, pod) = (
        stage.cluster.outside(),
        stage.cluster.pod("client").namespace(),
    );
    let loopback6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT);
    let bridge = SocketAddr::new(stage.cluster.node("master").bridge_address().into(), PORT);
    for (from, to) in [
        (outside, stage.at(PORT)),
        (outside, stage.at6(PORT)),
        (stage.master(), stage.at(PORT)),
        (stage.master(), stage.at6(PORT)),
        (stage.master(), Stage::local(PORT)),
        (stage.master(), loopback6),
        (pod, stage.at(PORT)),
        (pod, stage.at6(PORT)),
        (pod, bridge),
    ] {
        let source = if to.is_ipv4() { overlay } else { overlay6 };
        let seen = client::who(from, to, LIMIT)?;
        assert_eq!(
            (seen.name.as_str(), seen.peer.ip()),
            ("five", source),
            "{to}"
        );
        let seen = client::who_udp(from, to, LIMIT)?;
        assert_eq!(
            (seen.name.as_str(), seen.peer.ip()),
            ("five", source),
            "{to}"
        );
    }
    Ok(())
}

fn chosen_addresses_only() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = cluster
        .pod("pod-5")
        .serve_tcp(80, Tcp::Who("five".to_owned()))?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &["--nodeport-addresses", "primary"])?;
    let (outside, master) = (stage.cluster.outside(), stage.master());
    assert_eq!(client::who(outside, stage.at(PORT), LIMIT)?.name, "five");
    assert_eq!(client::who(outside, stage.at6(PORT), LIMIT)?.name, "five");
    let bridge = SocketAddr::new(stage.cluster.node("master").bridge_address().into(), PORT);
    for other in [bridge, Stage::local(PORT)] {
        let refused = client::connect(master, other, LIMIT);
        assert!(is_refused(&refused), "{other}: {refused:?}");
    }
    Ok(())
}

fn rotation() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let names = ["pod-5", "pod-6", "pod-7"];
    let _servers = serve_who(&cluster, &names)?;
    let service = web(&cluster, &names);
    let stage = Stage::start(cluster, &[service], &[])?;
    let outside = stage.cluster.outside();
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(client::who(outside, stage.at(PORT), LIMIT)?.name);
    }
    let (first, second) = seen.split_at(3);
    assert_eq!(first, second);
    let mut sorted = first.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, names);
    Ok(())
}

fn serve_who(cluster: &Cluster, names: &[&str]) -> Result<Vec<Server>, LabError> {
    let serve = |name: &&str| {
        cluster
            .pod(name)
            .serve_tcp(80, Tcp::Who((*name).to_owned()))
    };
    names.iter().map(serve).collect()
}

fn fail_over() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    // One refuses, one is silent, one serves.
    let _server = serve_who(&cluster, &["pod-7"])?;
    let mut service = web(&cluster, &["pod-5", "pod-7"]);
    let silent: IpAddr = "10.1.15.99".parse()?;
    cluster.node("master").silence(silent)?;
    service.endpoints.push(EndpointAt {
        address: silent,
        node: None,
    });
    let stage = Stage::start(cluster, &[service], &["--connect-timeout", "100ms"])?;
    for _ in 0..6 {
        // The client speaks before anybody is connected.
        let mut stream = client::connect(stage.cluster.outside(), stage.at(PORT), LIMIT)?;
        stream.write_all(b"hello\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        assert_eq!(heard.matches("pod-7 saw").count(), 2, "{heard}");
    }
    Ok(())
}

fn nobody_there() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let service = web(&cluster, &["pod-5", "pod-6"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    let stream = client::connect(stage.cluster.outside(), stage.at(PORT), LIMIT);
    assert!(is_reset(stream));
    let log = stage.proxy.wait_for_log("connect_refused", LIMIT);
    assert!(log.is_some_and(|line| line.contains("attempts=2")));
    Ok(())
}

fn closed_without_endpoints() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = serve_who(&cluster, &["pod-5"])?;
    let full = web(&cluster, &["pod-5"]);
    let empty = web(&cluster, &[]);
    let stage = Stage::start(cluster, std::slice::from_ref(&empty), &[])?;
    let outside = stage.cluster.outside();
    let ask = || client::who(outside, stage.at(PORT), LIMIT);
    assert!(is_refused(&ask()));
    for _ in 0..3 {
        stage.write(&full)?;
        until(ask, Result::is_ok)?;
        stage.write(&empty)?;
        until(ask, is_refused)?;
    }
    stage.write(&full)?;
    until(ask, Result::is_ok)?;
    stage.manifests.remove("web.yaml")?;
    until(ask, is_refused)?;
    Ok(())
}

fn half_close() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let pod = cluster.pod("pod-5");
    let server = pod.serve_tcp(80, Tcp::Digest)?;
    let source = pod.serve_tcp(81, Tcp::Source(100_000))?;
    let (web, mut flow) = (web(&cluster, &["pod-5"]), web(&cluster, &["pod-5"]));
    (flow.name, flow.port, flow.node_port) = ("source".to_owned(), 81, Some(PORT + 1));
    let stage = Stage::start(cluster, &[web, flow], &[])?;
    let outside = stage.cluster.outside();
    // The client ends first and hears what comes after.
    let mut stream = client::connect(outside, stage.at(PORT), LIMIT)?;
    stream.write_all(b"foobar")?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    assert_eq!(heard, "85944171f73967e8 6\n");
    // The real server ends first and hears what comes after.
    let mut stream = client::connect(outside, stage.at(PORT + 1), LIMIT)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    assert_eq!(all.len(), 100_000);
    stream.write_all(b"afterwards")?;
    drop(stream);
    assert!(source.wait_for_ended(1, LIMIT) && server.wait_for_ended(1, LIMIT));
    assert_eq!(
        (source.ended()[0].received, source.ended()[0].how),
        (10, How::Closed)
    );
    assert_eq!(server.ended()[0].how, How::Closed);
    Ok(())
}

fn bulk() -> Result<(), Failed> {
    const BYTES: u64 = 100_000_000;
    let cluster = ClusterBuilder::seed().build()?;
    let pod = cluster.pod("pod-5");
    let _digest = pod.serve_tcp(80, Tcp::Digest)?;
    let _source = pod.serve_tcp(81, Tcp::Source(BYTES))?;
    let (web, mut flow) = (web(&cluster, &["pod-5"]), web(&cluster, &["pod-5"]));
    (flow.name, flow.port, flow.node_port) = ("source".to_owned(), 81, Some(PORT + 1));
    let stage = Stage::start(cluster, &[web, flow], &[])?;
    let outside = stage.cluster.outside();
    let mut expected = Fnv1a::default();
    let mut chunk = vec![0; 250_000];
    let mut stream = client::connect(outside, stage.at(PORT), LIMIT)?;
    for number in 0..BYTES / chunk.len() as u64 {
        pattern(number * chunk.len() as u64, &mut chunk);
        expected.update(&chunk);
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    assert_eq!(heard, format!("{expected} {BYTES}\n"));

    let mut stream = client::connect(outside, stage.at6(PORT + 1), LIMIT)?;
    let (mut digest, mut received) = (Fnv1a::default(), 0);
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => {
                digest.update(&chunk[..count]);
                received += count as u64;
            }
        }
    }
    assert_eq!((digest, received), (expected, BYTES));
    Ok(())
}

fn resets() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let pod = cluster.pod("pod-5");
    let _reset = pod.serve_tcp(80, Tcp::Reset)?;
    let echo = pod.serve_tcp(81, Tcp::Echo)?;
    let (web, mut other) = (web(&cluster, &["pod-5"]), web(&cluster, &["pod-5"]));
    (other.name, other.port, other.node_port) = ("echo".to_owned(), 81, Some(PORT + 1));
    let stage = Stage::start(cluster, &[web, other], &[])?;
    let outside = stage.cluster.outside();
    let mut stream = client::connect(outside, stage.at(PORT), LIMIT)?;
    stream.write_all(b"go away")?;
    assert!(is_reset(Ok(stream)));

    let mut stream = client::connect(outside, stage.at(PORT + 1), LIMIT)?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    assert!(echo.wait_for_ended(1, LIMIT));
    assert_eq!(echo.ended()[0].how, How::Reset);
    for ending in ["server_reset", "client_reset"] {
        assert!(
            stage.proxy.wait_for_log(ending, LIMIT).is_some(),
            "{ending}"
        );
    }
    Ok(())
}

fn port_taken() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = serve_who(&cluster, &["pod-5"])?;
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    let holder = cluster
        .node("master")
        .namespace()
        .run(|| TcpListener::bind(any))?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    let told = stage
        .proxy
        .wait_for_log("cannot listen", LIMIT)
        .ok_or("not told")?;
    for part in ["default/web", "0.0.0.0:30080", "ss -ltnp sport = :30080"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    // The other family is served meanwhile.
    let outside = stage.cluster.outside();
    assert_eq!(client::who(outside, stage.at6(PORT), LIMIT)?.name, "pod-5");
    drop(holder);
    until(
        || client::who(outside, stage.at(PORT), LIMIT),
        Result::is_ok,
    )?;
    assert_eq!(stage.proxy.log().matches("cannot listen").count(), 1);
    Ok(())
}

fn policy_local() -> Result<(), Failed> {
    let mut cluster = ClusterBuilder::seed().build()?;
    cluster.add_pod("master", PodSpec::new("here", 20))?;
    let _servers = serve_who(&cluster, &["pod-5", "here"])?;
    let mut both = web(&cluster, &["pod-5", "here"]);
    let mut elsewhere = web(&cluster, &["pod-5"]);
    (both.external_local, elsewhere.external_local) = (true, true);
    let stage = Stage::start(cluster, std::slice::from_ref(&both), &[])?;
    let outside = stage.cluster.outside();
    for _ in 0..4 {
        assert_eq!(client::who(outside, stage.at(PORT), LIMIT)?.name, "here");
    }
    // For the node itself any endpoint will do.
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(client::who(stage.master(), Stage::local(PORT), LIMIT)?.name);
    }
    names.sort_unstable();
    assert_eq!(names, ["here", "pod-5"]);
    let told = stage
        .proxy
        .wait_for_log("externalTrafficPolicy is Local", LIMIT);
    let told = told.ok_or("not told")?;
    assert!(
        told.contains("default/web") && told.contains("proxy-protocol: v1"),
        "{told}"
    );

    stage.write(&elsewhere)?;
    let ask = || client::who(outside, stage.at(PORT), LIMIT);
    until(ask, is_refused)?;
    let ask = || client::who(stage.master(), Stage::local(PORT), LIMIT);
    until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "pod-5"))?;
    stage.write(&both)?;
    let ask = || client::who(outside, stage.at(PORT), LIMIT);
    until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "here"))?;
    let log = stage.proxy.log();
    assert_eq!(
        log.matches("externalTrafficPolicy is Local").count(),
        1,
        "{log}"
    );
    Ok(())
}

fn datagrams() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = cluster.pod("pod-5").serve_udp(80, Udp::Echo)?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    for (from, to) in [
        (stage.cluster.outside(), stage.at(PORT)),
        (stage.cluster.outside(), stage.at6(PORT)),
        (stage.master(), Stage::local(PORT)),
    ] {
        for size in [0, 1, 1472, 1473, 9000, 65_507] {
            let mut sent = vec![0; size];
            pattern(size as u64, &mut sent);
            let back = client::udp_exchange(from, to, &sent, LIMIT)?;
            assert!(
                back == sent,
                "{size} bytes to {to}: {} came back",
                back.len()
            );
        }
    }
    Ok(())
}

fn datagrams_move() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let serve = |name: &str| cluster.pod(name).serve_udp(80, Udp::Who(name.to_owned()));
    let _servers = [serve("pod-5")?, serve("pod-6")?];
    let (first, second) = (web(&cluster, &["pod-5"]), web(&cluster, &["pod-6"]));
    let stage = Stage::start(cluster, &[first], &[])?;
    // One socket throughout, so that nothing but the endpoint changes.
    let socket = client::udp_socket(stage.cluster.outside(), stage.at(PORT), LIMIT)?;
    let ask = || {
        let mut answer = [0; 200];
        socket.send(b"who?")?;
        let length = socket.recv(&mut answer)?;
        client::Seen::parse(&String::from_utf8_lossy(&answer[..length]))
    };
    assert_eq!(ask()?.name, "pod-5");
    stage.write(&second)?;
    until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "pod-6"))?;
    assert!(
        stage
            .proxy
            .wait_for_log("endpoint_removed", LIMIT)
            .is_some()
    );
    Ok(())
}

fn proxy_protocol() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = cluster.pod("pod-5").serve_tcp(80, Tcp::Echo)?;
    let mut text = web(&cluster, &["pod-5"]);
    text.proxy_protocol = Some("v1");
    text.cluster_ip = Some("10.0.0.3".parse()?);
    let mut binary = web(&cluster, &["pod-5"]);
    (binary.name, binary.node_port) = ("binary".to_owned(), Some(PORT + 1));
    binary.cluster_ip = Some("10.0.0.4".parse()?);
    binary.proxy_protocol = Some("v2");
    let stage = Stage::start(cluster, &[text, binary], &[])?;
    let (outside, master) = (stage.cluster.outside(), stage.master());
    let vip = |host: u8| SocketAddr::new(Ipv4Addr::new(10, 0, 0, host).into(), 80);
    for (from, to) in [
        (outside, stage.at(PORT)),
        (outside, stage.at6(PORT)),
        (master, vip(3)),
    ] {
        let (heard, local) = echoed(from, to)?;
        let family = if to.is_ipv4() { "TCP4" } else { "TCP6" };
        let (client, port) = (local.ip(), local.port());
        let header = format!(
            "PROXY {family} {client} {} {port} {}\r\n",
            to.ip(),
            to.port()
        );
        assert_eq!(String::from_utf8_lossy(&heard), format!("{header}hello"));
    }
    for (from, to) in [
        (outside, stage.at(PORT + 1)),
        (outside, stage.at6(PORT + 1)),
        (master, vip(4)),
    ] {
        let (heard, local) = echoed(from, to)?;
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
        match (local.ip(), to.ip()) {
            (IpAddr::V4(client), IpAddr::V4(to)) => {
                header.extend([0x11, 0, 12]);
                header.extend([client.octets(), to.octets()].concat());
            }
            (IpAddr::V6(client), IpAddr::V6(to)) => {
                header.extend([0x21, 0, 36]);
                header.extend([client.octets(), to.octets()].concat());
            }
            other => return Err(format!("{other:?}").into()),
        }
        header.extend(local.port().to_be_bytes());
        header.extend(to.port().to_be_bytes());
        header.extend(b"hello");
        assert_eq!(heard, header, "{to}");
    }
    Ok(())
}

/// What an echo server heard of a client that said hello, and the client's address.
fn echoed(from: &Namespace, to: SocketAddr) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut stream = client::connect(from, to, LIMIT)?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok((heard, stream.local_addr()?))
}

fn health_checks() -> Result<(), Failed> {
    const CHECKED: u16 = 31_000;
    let mut cluster = ClusterBuilder::seed().build()?;
    cluster.add_pod("master", PodSpec::new("here", 20))?;
    let mut with = web(&cluster, &["pod-5", "here"]);
    let mut without = web(&cluster, &["pod-5"]);
    for service in [&mut with, &mut without] {
        (service.external_local, service.health_check) = (true, Some(CHECKED));
    }
    let stage = Stage::start(cluster, &[with], &[])?;
    let outside = stage.cluster.outside();
    let ask = || client::http_get(outside, stage.at(CHECKED), "/", LIMIT);
    let body = |local: usize| {
        format!(
            "{{\"service\":{{\"namespace\":\"default\",\"name\":\"web\"}},\
             \"localEndpoints\":{local},\"serviceProxyHealthy\":true}}"
        )
    };
    let healthy = eventually(ask, Result::is_ok)??;
    assert_eq!(healthy, (200, body(1)));
    stage.write(&without)?;
    let unhealthy = |answer: &io::Result<_>| matches!(answer, Ok((503, text)) if *text == body(0));
    until(ask, unhealthy)?;
    stage.manifests.remove("web.yaml")?;
    until(ask, is_refused)?;
    Ok(())
}

fn external_by_route() -> Result<(), Failed> {
    let external: IpAddr = "198.51.100.7".parse()?;
    let cluster = ClusterBuilder::seed().build()?;
    let _server = serve_who(&cluster, &["pod-5"])?;
    let mut service = web(&cluster, &["pod-5"]);
    service.external_ips = vec![external];
    let stage = Stage::start(cluster, &[service], &[])?;
    let to = SocketAddr::new(external, 80);
    let pod = stage.cluster.pod("client").namespace();
    for from in [stage.master(), pod] {
        let seen = eventually(|| client::who(from, to, LIMIT), Result::is_ok)??;
        assert_eq!(seen.name, "pod-5");
    }
    // Another host leads it to this node, as a load balancer or a router would.
    let gateway = stage.cluster.node("master").address();
    route(stage.cluster.outside(), external, gateway)?;
    assert_eq!(
        client::who(stage.cluster.outside(), to, LIMIT)?.name,
        "pod-5"
    );
    stage.manifests.remove("web.yaml")?;
    until(
        || client::connect(stage.master(), to, SILENCE).map(drop),
        Result::is_err,
    )?;
    Ok(())
}

fn external_of_the_node() -> Result<(), Failed> {
    // Within the underlay, so that others ask for it.
    let external: Ipv4Addr = "172.100.101.200".parse()?;
    let cluster = ClusterBuilder::seed().build()?;
    let _server = serve_who(&cluster, &["pod-5"])?;
    let mut service = web(&cluster, &["pod-5"]);
    service.external_ips = vec![external.into()];
    let stage = Stage::start(cluster, &[service], &[])?;
    let to = SocketAddr::new(external.into(), 80);
    let (outside, master) = (stage.cluster.outside(), stage.master());
    let ask = |from| move || client::who(from, to, LIMIT);
    // By route first.
    until(ask(master), Result::is_ok)?;
    assert!(client::connect(outside, to, SILENCE).is_err());
    // The node gets it, as by kube-vip, and loses it again.
    add_address(master, "eth0", external)?;
    until(ask(outside), Result::is_ok)?;
    assert_eq!(client::who(master, to, LIMIT)?.name, "pod-5");
    // While it leaves, the proxy turns from one to the other by itself.
    remove_address(master, "eth0", external)?;
    until(ask(master), Result::is_ok)?;
    Ok(())
}

fn list_shows_the_flows() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let _server = cluster.pod("pod-5").serve_tcp(80, Tcp::Echo)?;
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    let mut stream = client::connect(stage.cluster.outside(), stage.at(PORT), LIMIT)?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;
    let output = stage
        .proxy
        .command(&["list", "--flows", "-n", "-o", "json"])?;
    let text = String::from_utf8(output.stdout)?;
    for part in [
        stream.local_addr()?.to_string(),
        stage.at(PORT).to_string(),
        "10.1.65.5:80".to_owned(),
        "ESTABLISHED".to_owned(),
        "default/web".to_owned(),
    ] {
        assert!(text.contains(&part), "{part:?} is not in {text}");
    }
    drop(stream);
    let access = stage
        .proxy
        .wait_for_log("ending=\"closed\"", LIMIT)
        .ok_or("no event")?;
    assert!(
        access.contains("bytes_in=5") && access.contains("bytes_out=5"),
        "{access}"
    );
    Ok(())
}

fn add_address(on: &Namespace, interface: &str, address: Ipv4Addr) -> Result<(), Failed> {
    let index = on.run(|| if_nametoindex(interface))?;
    on.netlink(async |handle| {
        let request = handle.address().add(index, address.into(), 32);
        Ok(request.execute().await)
    })??;
    Ok(())
}

fn remove_address(on: &Namespace, interface: &str, address: Ipv4Addr) -> Result<(), Failed> {
    use futures_util::TryStreamExt as _;
    let index = on.run(|| if_nametoindex(interface))?;
    on.netlink(async |handle| {
        let of = handle.address().get();
        let mut found = of
            .set_link_index_filter(index)
            .set_address_filter(address.into())
            .execute();
        let message = found.try_next().await;
        Ok(match message {
            Ok(Some(message)) => handle.address().del(message).execute().await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        })
    })??;
    Ok(())
}

fn route(on: &Namespace, to: IpAddr, gateway: Ipv4Addr) -> Result<(), Failed> {
    let route = rtnetlink::RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, 32)?
        .gateway(gateway.into())?
        .build();
    on.netlink(async |handle| Ok(handle.route().add(route).execute().await))??;
    Ok(())
}
