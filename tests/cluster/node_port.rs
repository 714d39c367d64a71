//! Node ports: who reaches them, and what becomes of connections and datagrams.

use std::fs::Permissions;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kube_tun_proxy::lab::servers::{Fnv1a, How, Tcp, Udp, pattern};
use kube_tun_proxy::lab::{ClusterBuilder, TempDir, client};
use libtest_mimic::{Failed, Trial};

use crate::node_port_objects::EndpointAt;
use crate::node_port_stage::{LIMIT, PORT, Stage, is_refused, is_reset, serve_who, until, web};

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
        Trial::test("node_port::datagrams_of_all_sizes", datagrams),
        Trial::test(
            "node_port::datagrams_leave_a_removed_endpoint",
            datagrams_move,
        ),
        Trial::test(
            "node_port::icmp_errors_of_real_servers_reach_udp_clients",
            udp_errors,
        ),
        Trial::test("node_port::list_shows_the_flows", list_shows_the_flows),
        Trial::test(
            "node_port::few_descriptors_serve_one_after_the_other",
            few_descriptors,
        ),
    ]
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
    // An answer that is on its way when its flow ends is lost: asked again.
    socket.set_read_timeout(Some(LIMIT / 10))?;
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

fn udp_errors() -> Result<(), Failed> {
    const AGAIN: Duration = Duration::from_millis(500);
    let cluster = ClusterBuilder::seed().build()?;
    // Nobody listens in the pod.
    let service = web(&cluster, &["pod-5"]);
    let stage = Stage::start(cluster, &[service], &[])?;
    let loopback6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT);
    for (from, to) in [
        (stage.cluster.outside(), stage.at(PORT)),
        (stage.cluster.outside(), stage.at6(PORT)),
        (stage.cluster.pod("client").namespace(), stage.at(PORT)),
        (stage.master(), stage.at(PORT)),
        (stage.master(), Stage::local(PORT)),
        (stage.master(), loopback6),
    ] {
        for size in [0, 100, 3000] {
            // The pod's kernel limits the rate of its errors (icmp_ratelimit).
            let ask = || client::udp_exchange(from, to, &vec![0; size], AGAIN);
            until(ask, is_refused)
                .map_err(|_| format!("{size} bytes from {} to {to}", from.name()))?;
        }
    }
    let listed = stage.proxy.command(&["list", "--counters", "-o", "json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let counted = &listed["nodePorts"];
    assert!(counted["opened"].as_u64() >= Some(18), "{listed}");
    let refused = counted["rejected"]["connect_failed"].as_u64();
    assert!(refused >= Some(18), "{listed}");
    assert_eq!(listed["tun"]["opened"], 0, "{listed}");
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

fn few_descriptors() -> Result<(), Failed> {
    const CLIENTS: usize = 60;
    let cluster = ClusterBuilder::seed().build()?;
    let server = cluster.pod("pod-5").serve_tcp(80, Tcp::Echo)?;
    let service = web(&cluster, &["pod-5"]);
    let directory = TempDir::new()?;
    let stingy = directory.path().join("stingy");
    let binary = env!("CARGO_BIN_EXE_kube-tun-proxy");
    std::fs::write(
        &stingy,
        format!("#!/bin/sh\nulimit -n 100\nexec {binary} \"$@\"\n"),
    )?;
    std::fs::set_permissions(&stingy, Permissions::from_mode(0o700))?;
    let stage = Stage::start_binary(
        &stingy,
        cluster,
        &[service],
        &["--workers", "1", "--max-flows", "1000"],
    )?;
    let (outside, to) = (stage.cluster.outside(), stage.at(PORT));
    // The kernel takes them all; the proxy has descriptors for some.
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = client::connect(outside, to, LIMIT)?;
        stream.write_all(b"hello")?;
        waiting.push(stream);
    }
    let told = stage.proxy.wait_for_log("out of descriptors", LIMIT);
    assert!(told.is_some(), "{}", stage.proxy.log());
    // Every one that ends makes room for others, and most are served in the end.
    let mut served = 0;
    for mut stream in waiting {
        match stream.read_exact(&mut [0; 5]) {
            Ok(()) => served += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert!(served > CLIENTS / 2, "{served}");
    assert!(server.wait_for_ended(served, LIMIT));
    until(
        || client::connect(outside, to, LIMIT).and_then(echo),
        Result::is_ok,
    )?;
    Ok(())
}

/// Says something and hears it.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}
