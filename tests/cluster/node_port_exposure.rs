//! Policies, health checks, external addresses, the PROXY protocol, ports that are taken.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use kube_tun_proxy::lab::servers::Tcp;
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use nix::net::if_::if_nametoindex;

use crate::node_port_objects::EndpointAt;
use crate::node_port_stage::{
    LIMIT, PORT, Stage, eventually, is_refused, is_reset, serve_who, until, web,
};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test(
            "node_port::a_port_that_is_taken_is_opened_later",
            port_taken,
        ),
        Trial::test("node_port::policy_local", policy_local),
        Trial::test("node_port::proxy_protocol", proxy_protocol),
        Trial::test("node_port::health_checks", health_checks),
        Trial::test("node_port::an_external_address_by_route", external_by_route),
        Trial::test(
            "node_port::an_external_address_of_the_node",
            external_of_the_node,
        ),
        Trial::test(
            "node_port::an_endpoint_that_leads_back_is_refused",
            a_circle,
        ),
    ]
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
    let ask = || client::who(outside, stage.at(PORT), SILENCE).map_err(|error| error.kind());
    until(ask, |seen| matches!(seen, Err(io::ErrorKind::TimedOut)))?;
    for to in [stage.at(PORT), stage.at6(PORT), Stage::local(PORT)] {
        let ask = || client::who(stage.master(), to, LIMIT);
        until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "pod-5"))?;
    }
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
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t}},\n\
             \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": true\n}}"
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

fn a_circle() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    // The endpoint is the node port itself.
    let mut service = web(&cluster, &[]);
    service.port = PORT;
    service.endpoints.push(EndpointAt {
        address: cluster.node("master").address().into(),
        node: None,
    });
    let stage = Stage::start(cluster, &[service], &[])?;
    let stream = client::connect(stage.cluster.outside(), stage.at(PORT), LIMIT);
    assert!(is_reset(stream));
    let event = stage
        .proxy
        .wait_for_log("connect_refused", LIMIT)
        .ok_or("no event")?;
    assert!(event.contains("attempts=1"), "{event}");
    Ok(())
}
