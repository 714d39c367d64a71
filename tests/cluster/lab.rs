//! The lab itself: what the other trials stand on.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::capture::Capture;
use kube_tun_proxy::lab::servers::Tcp;
use kube_tun_proxy::lab::{
    ClusterBuilder, LabError, Namespace, NodeSpec, PodSpec, ProxyOptions, ProxyProcess, TempDir,
    client,
};
use libtest_mimic::{Failed, Trial};
use nix::net::if_::if_nametoindex;

/// Longer than anything here takes; reached only by a failure.
const LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test(
            "lab::pods_reach_each_other_over_the_overlay",
            pods_reach_each_other,
        ),
        Trial::test(
            "lab::the_source_is_the_interface_s_address",
            source_addresses,
        ),
        Trial::test(
            "lab::pods_are_behind_1450_bytes",
            pods_are_behind_1450_bytes,
        ),
        Trial::test(
            "lab::nothing_answers_at_a_service_address",
            service_addresses_are_unrouted,
        ),
        Trial::test("lab::capture_sees_the_packets", capture_sees_the_packets),
        Trial::test(
            "lab::capture_loses_nothing_of_a_bulk_transfer",
            capture_loses_nothing,
        ),
        Trial::test("lab::clusters_side_by_side", clusters_side_by_side),
        Trial::test("lab::other_names_and_addresses", other_names_and_addresses),
        Trial::test("lab::pods_come_and_go", pods_come_and_go),
        Trial::test(
            "lab::nothing_is_left_of_a_cluster",
            nothing_is_left_of_a_cluster,
        ),
        Trial::test(
            "lab::nothing_is_left_after_a_panic",
            nothing_is_left_after_a_panic,
        ),
        Trial::test("lab::commands_run_inside", commands_run_inside),
        Trial::test(
            "lab::a_proxy_that_fails_is_told_with_its_log",
            failed_proxy_is_told,
        ),
    ]
}

fn pods_reach_each_other() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let (from, to) = (cluster.pod("client"), cluster.pod("pod-6"));
    let server = to.serve_tcp(80, Tcp::Who("six".to_owned()))?;
    for (at, source) in [(to.at(80), from.at(0)), (to.at6(80), from.at6(0))] {
        let seen = client::who(from.namespace(), at, LIMIT)?;
        assert_eq!((seen.name.as_str(), seen.peer.ip()), ("six", source.ip()));
        client::ping(from.namespace(), at.ip(), 56, LIMIT)?;
    }
    assert_eq!(server.accepted(), 2);
    Ok(())
}

fn source_addresses() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let master = cluster.node("master");
    let (remote, local) = (cluster.pod("pod-5"), cluster.pod("client"));
    let _remote = remote.serve_tcp(80, Tcp::Who("remote".to_owned()))?;
    let _local = local.serve_tcp(80, Tcp::Who("local".to_owned()))?;
    let expected: [(SocketAddr, IpAddr); 4] = [
        (remote.at(80), "10.1.15.0".parse()?),
        (remote.at6(80), "fd00:10:1:15::".parse()?),
        (local.at(80), "10.1.15.1".parse()?),
        (local.at6(80), "fd00:10:1:15::1".parse()?),
    ];
    for (at, source) in expected {
        let seen = client::who(master.namespace(), at, LIMIT)?;
        assert_eq!(seen.peer.ip(), source, "to {at}");
    }
    assert_eq!(master.overlay_address(), expected[0].1);
    assert_eq!(master.bridge_address6(), expected[3].1);
    Ok(())
}

fn pods_are_behind_1450_bytes() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let (from, to) = (cluster.pod("client"), cluster.pod("pod-5"));
    let capture = Capture::start(to.namespace(), "eth0")?;
    // 1500 bytes of IP each: one packet would pass the underlay's MTU.
    client::ping(from.namespace(), to.at(0).ip(), 1472, LIMIT)?;
    client::ping(from.namespace(), to.at6(0).ip(), 1452, LIMIT)?;
    let captured = capture.stop()?;
    for address in [from.at(0).ip(), from.at6(0).ip()] {
        let parts = captured.packets().filter(|packet| packet.source == address);
        let parts: Vec<_> = parts.filter(|packet| packet.fragment.is_some()).collect();
        assert_eq!(parts.len(), 2, "fragments from {address}: {parts:?}");
        assert!(parts.iter().all(|part| part.length <= 1450), "{parts:?}");
    }
    Ok(())
}

fn service_addresses_are_unrouted() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let vip: SocketAddr = "10.0.0.3:443".parse()?;
    for from in [
        cluster.node("master").namespace(),
        cluster.pod("client").namespace(),
    ] {
        let error = client::connect(from, vip, SILENCE).expect_err("nothing serves it");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    Ok(())
}

fn capture_sees_the_packets() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let master = cluster.node("master").namespace();
    let pod = cluster.pod("pod-5");
    let _server = pod.serve_tcp(443, Tcp::Who("five".to_owned()))?;
    let directory = TempDir::new()?;
    let file = directory.path().join("flannel.pcap");
    let capture = Capture::start_to_file(master, cluster.overlay(), &file)?;
    client::who(master, pod.at(443), LIMIT)?;
    let syn = capture
        .wait_for(LIMIT, |packet| packet.is_syn())
        .ok_or("no SYN")?;
    assert_eq!(
        syn.source,
        IpAddr::from(cluster.node("master").overlay_address())
    );
    assert_eq!(syn.to(), pod.at(443));
    let captured = capture.stop()?;
    assert_eq!(captured.lost, 0);
    assert!(
        captured
            .packets()
            .any(|packet| packet.payload.starts_with(b"five saw 10.1.15.0:"))
    );
    let outgoing = captured
        .frames
        .iter()
        .find(|frame| frame.outgoing)
        .ok_or("none sent")?;
    assert!(outgoing.packet().ok_or("no packet")?.is_syn());
    let bytes: usize = captured
        .frames
        .iter()
        .map(|frame| 16 + frame.bytes.len())
        .sum();
    assert_eq!(std::fs::metadata(&file)?.len(), 24 + bytes as u64);

    // Another interface of the same node sees the same segment in UDP.
    let outer = Capture::start(master, "eth0")?;
    client::ping(master, pod.at(0).ip(), 0, LIMIT)?;
    let vxlan = outer
        .wait_for(LIMIT, |packet| packet.to().port() == 8472)
        .ok_or("no vxlan")?;
    assert_eq!(vxlan.source, IpAddr::from(cluster.node("master").address()));

    let missing = Capture::start(master, "no-such").expect_err("no such interface");
    assert!(missing.to_string().contains("no-such"), "{missing}");
    Ok(())
}

fn capture_loses_nothing() -> Result<(), Failed> {
    const BYTES: u64 = 4 << 20;
    let cluster = ClusterBuilder::seed().build()?;
    let master = cluster.node("master").namespace();
    let pod = cluster.pod("pod-5");
    let _server = pod.serve_tcp(80, Tcp::Source(BYTES))?;
    let capture = Capture::start(master, cluster.overlay())?;
    let received = read_to_end(&mut client::connect(master, pod.at(80), LIMIT)?)?;
    assert_eq!(received.len() as u64, BYTES);
    let captured = capture.stop()?;
    assert_eq!(captured.lost, 0);
    let from_pod = captured
        .packets()
        .filter(|packet| packet.from() == pod.at(80));
    let payload: usize = from_pod.map(|packet| packet.payload.len()).sum();
    assert!(payload as u64 >= BYTES, "{payload}");
    Ok(())
}

fn clusters_side_by_side() -> Result<(), Failed> {
    // Same names, same addresses, at the same time.
    let clusters = [
        ClusterBuilder::seed().build()?,
        ClusterBuilder::seed().build()?,
    ];
    let mut servers = Vec::new();
    for (number, cluster) in clusters.iter().enumerate() {
        servers.push(
            cluster
                .pod("pod-5")
                .serve_tcp(80, Tcp::Who(format!("of {number}")))?,
        );
    }
    for (number, cluster) in clusters.iter().enumerate() {
        let at = cluster.pod("pod-5").at(80);
        let seen = client::who(cluster.node("master").namespace(), at, LIMIT)?;
        assert_eq!(seen.name, format!("of {number}"));
    }
    let [first, second] = clusters;
    first
        .node("master")
        .namespace()
        .set_sysctl("net.ipv4.ip_forward", "0")?;
    assert_eq!(
        second
            .node("master")
            .namespace()
            .sysctl("net.ipv4.ip_forward")?,
        "1"
    );
    drop(first);
    let at = second.pod("pod-5").at(80);
    assert_eq!(
        client::who(second.node("master").namespace(), at, LIMIT)?.name,
        "of 1"
    );
    Ok(())
}

fn other_names_and_addresses() -> Result<(), Failed> {
    let node = |name: &str, host: u8, pods: &str| -> Result<NodeSpec, Failed> {
        Ok(NodeSpec::new(name, [192, 168, 7, host].into(), pods.parse()?).interface("ens3"))
    };
    let cluster = ClusterBuilder::new()
        .underlay("192.168.7.0/25".parse()?)
        .service_cidrs("172.20.0.0/20".parse()?, "fd77::/112".parse()?)
        .overlay("vx9", 9, 4789)
        .pod_bridge("pods0")
        .mtus(9000, 8000)
        .congestion_control("reno")
        .node(node("a", 10, "10.44.3.0/24")?.pod(PodSpec::new("a1", 9)))
        .node(node("b", 11, "10.44.4.64/26")?.pod(PodSpec::new("b1", 20)))
        .node(node("c", 12, "10.44.128.0/17")?.pod_cidr6("fd99:1::/64".parse()?))
        .pod("c", PodSpec::new("c1", 300))
        .build()?;
    assert_eq!(cluster.pod("b1").address().to_string(), "10.44.4.84");
    assert_eq!(cluster.pod("c1").address().to_string(), "10.44.129.44");
    assert_eq!(cluster.pod("c1").address6().to_string(), "fd99:1::300");
    let _server = cluster.pod("c1").serve_tcp(80, Tcp::Who("c1".to_owned()))?;
    for (from, source, source6) in [
        (cluster.node("a").namespace(), "10.44.3.0", "fd00:10:44:3::"),
        (
            cluster.pod("b1").namespace(),
            "10.44.4.84",
            "fd00:10:44:4::20",
        ),
    ] {
        let seen = client::who(from, cluster.pod("c1").at(80), LIMIT)?;
        assert_eq!(seen.peer.ip().to_string(), source);
        let seen = client::who(from, cluster.pod("c1").at6(80), LIMIT)?;
        assert_eq!(seen.peer.ip().to_string(), source6);
    }
    let congestion = cluster
        .pod("b1")
        .namespace()
        .sysctl("net.ipv4.tcp_congestion_control")?;
    assert_eq!(congestion, "reno");
    let twice = ClusterBuilder::seed()
        .pod("master", PodSpec::new("pod-5", 9))
        .build();
    assert!(matches!(twice, Err(LabError::Plan(_))), "{twice:?}");
    Ok(())
}

fn pods_come_and_go() -> Result<(), Failed> {
    let mut cluster = ClusterBuilder::seed().build()?;
    let master = cluster.node("master").namespace().clone();
    let pod = cluster.add_pod("node2", PodSpec::new("late", 50))?;
    let at = pod.at(80);
    let server = pod.serve_tcp(80, Tcp::Who("late".to_owned()))?;
    assert_eq!(client::who(&master, at, LIMIT)?.name, "late");
    drop(server);
    cluster.remove_pod("late")?;
    let gone = client::connect(&master, at, SILENCE).expect_err("the pod is gone");
    assert!(
        matches!(
            gone.kind(),
            ErrorKind::TimedOut | ErrorKind::HostUnreachable
        ),
        "{gone}"
    );
    // Its address is free again.
    cluster.add_pod("node2", PodSpec::new("later", 50))?;
    let _server = cluster
        .pod("later")
        .serve_tcp(80, Tcp::Who("later".to_owned()))?;
    assert_eq!(client::who(&master, at, LIMIT)?.name, "later");
    Ok(())
}

fn nothing_is_left_of_a_cluster() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let outside = cluster.outside().clone();
    let pod = cluster.pod("pod-5");
    let server = pod.serve_tcp(80, Tcp::Hold)?;
    let stream = client::connect(cluster.node("master").namespace(), pod.at(80), LIMIT)?;
    let capture = Capture::start(cluster.node("node2").namespace(), "flannel.1")?;
    assert!(nodes_stand(&outside));
    drop((stream, server, capture, cluster));
    nodes_fall(&outside)
}

fn nothing_is_left_after_a_panic() -> Result<(), Failed> {
    let mut outside = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let cluster = ClusterBuilder::seed().build().expect("a cluster");
        outside = Some(cluster.outside().clone());
        let _server = cluster
            .pod("pod-5")
            .serve_tcp(80, Tcp::Echo)
            .expect("a server");
        let _capture =
            Capture::start(cluster.node("node2").namespace(), "cni0").expect("a capture");
        // As a failed assertion would, but without a word from the panic hook,
        // and on a thread of the lab's besides.
        cluster
            .node("master")
            .namespace()
            .run(|| resume_unwind(Box::new("in the namespace")))
    }));
    let payload = panicked
        .map(|_: ()| "no panic")
        .expect_err("panics come through");
    assert_eq!(payload.downcast_ref(), Some(&"in the namespace"));
    nodes_fall(&outside.ok_or("no cluster was built")?)
}

fn commands_run_inside() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let listing = cluster
        .pod("pod-5")
        .namespace()
        .command("cat")
        .arg("/proc/self/net/fib_trie")
        .stdin(Stdio::null())
        .output()?;
    let listing = String::from_utf8(listing.stdout)?;
    assert!(
        listing.contains("10.1.65.5") && !listing.contains("10.1.15."),
        "{listing}"
    );
    Ok(())
}

fn failed_proxy_is_told() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let master = cluster.node("master").namespace();
    let options = ProxyOptions::new(Path::new("/nowhere"), &[]);
    // cat does not know `--manifests`, says so and ends with 1.
    let error = ProxyProcess::start(master, Path::new("/bin/cat"), &options).expect_err("cat");
    let text = error.to_string();
    assert!(
        text.contains("exit status: 1") && text.contains("manifests"),
        "{text}"
    );
    let error = ProxyProcess::start(master, Path::new("/no/binary"), &options).expect_err("none");
    assert!(error.to_string().contains("/no/binary"), "{error}");
    Ok(())
}

/// Whether both nodes' ends are plugged in outside.
fn nodes_stand(outside: &Namespace) -> bool {
    outside.run(|| if_nametoindex("node1").is_ok() && if_nametoindex("node2").is_ok())
}

/// Waits until both nodes' ends are gone: a veth vanishes when the namespace of
/// its peer does, which is when nothing holds it any more.
fn nodes_fall(outside: &Namespace) -> Result<(), Failed> {
    let deadline = Instant::now() + LIMIT;
    while outside.run(|| if_nametoindex("node1").is_ok() || if_nametoindex("node2").is_ok()) {
        if Instant::now() > deadline {
            return Err("a node's namespace is still held".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn read_to_end(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}
