//! What a proxy tells of itself: health, `list`, one event for each flow.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use super::world::{Client, Family, LIMIT, Trials, World, expect_refused, expect_silence};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("telling")
        .one("health", health)
        .one("list_in_the_seed_s_cluster", list_of_the_seed)
        .both("list_and_flows", list)
        .both("an_event_for_each_flow", access_events)
        .one("nobody_there_to_ask", nobody_there)
        .done()
}

fn health() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.start(&[])?;
    let node = world.node().namespace();
    let get = |path| client::http_get(node, world.proxy().healthz(), path, LIMIT);
    assert_eq!(get("/readyz")?, (200, "ready\n".to_owned()));
    for path in ["/healthz", "/livez"] {
        let (status, body) = get(path)?;
        let body: Value = serde_json::from_str(&body)?;
        assert_eq!((status, &body["healthy"]), (200, &Value::Bool(true)));
        assert_eq!(body["status"]["IPv6"]["healthy"], Value::Bool(true));
        assert!(body["lastUpdated"].is_string(), "{body}");
    }
    assert_eq!(get("/healthz/no")?.0, 404);
    Ok(())
}

/// As section 6 of the design shows it.
fn list_of_the_seed() -> Result<(), Failed> {
    let mut world = World::seed()?;
    let ports = [Port::tcp("https", 443, 443)];
    let (vip, pod) = (world.vip(Family::V4, 3), world.pod(0).address().into());
    let text = kube_tun_proxy::lab::manifests::service_with_endpoints(
        "kube-system",
        "metrics-server",
        &[vip],
        &ports,
        &[pod],
    );
    world.manifests.write("metrics-server.yaml", &text)?;
    let _server = world.pod(0).serve_tcp(443, Tcp::Echo)?;
    world.start(&[])?;
    let at = SocketAddr::new(vip, 443);
    let _stream = client::connect(world.from(Client::Pod), at, LIMIT)?;
    world.wait_for_flows("one flow", |flows| {
        flows.len() == 1 && flows[0].state == "ESTABLISHED"
    })?;
    let expected = "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.3:443 rr  kube-system/metrics-server:https
  -> 10.1.65.5:443                Masq    1      1          0
";
    assert_eq!(output(&world, &["list"])?, expected);
    let numeric = expected.replace("  kube-system/metrics-server:https", "");
    assert_eq!(output(&world, &["list", "-n"])?, numeric);
    let flows = output(&world, &["list", "--flows"])?;
    let row: Vec<&str> = flows
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(row[..3], ["TCP", "-", "ESTABLISHED"], "{flows}");
    assert!(row[3].starts_with("10.1.15.7:"), "{flows}");
    let rest = [
        "10.0.0.3:443",
        "10.1.65.5:443",
        "kube-system/metrics-server:https",
    ];
    assert_eq!(row[4..], rest, "{flows}");
    Ok(())
}

fn list(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5300)];
    world.serve("app", 2, &ports, &[world.pod(0)])?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let _dns = world.pod(0).serve_udp(5300, Udp::Echo)?;
    world.start(&[])?;
    let (web, dns) = (world.vip_at(family, 2, 80), world.vip_at(family, 2, 53));
    let from = world.from(Client::Pod);
    let mut stream = client::connect(from, web, LIMIT)?;
    stream.write_all(b"12345")?;
    stream.read_exact(&mut [0; 5])?;
    let socket = client::udp_socket(from, dns, LIMIT)?;
    socket.send(b"1234567")?;
    socket.recv(&mut [0; 7])?;

    let flows: Value = serde_json::from_str(&output(&world, &["list", "--flows", "-o", "json"])?)?;
    let flows = flows["flows"].as_array().ok_or("no flows")?;
    assert_eq!(flows.len(), 2, "{flows:?}");
    let local = [stream.local_addr()?, socket.local_addr()?];
    for (at, protocol, state, vip, port, bytes) in [
        (0, "TCP", "ESTABLISHED", web, 8000, 5),
        (1, "UDP", "UDP", dns, 5300, 7),
    ] {
        let flow = &flows[at];
        assert_eq!(flow["protocol"], protocol, "{flow}");
        assert_eq!(flow["state"], state);
        assert_eq!(flow["client"], local[at].to_string());
        assert_eq!(flow["virtualAddress"], vip.to_string());
        assert_eq!(
            flow["realServer"],
            family.at(world.pod(0), port).to_string()
        );
        let source: SocketAddr = flow["source"].as_str().unwrap_or_default().parse()?;
        assert_eq!(source.ip(), world.overlay_address(family));
        assert_eq!(flow["bytesToRealServer"], bytes);
        assert_eq!(flow["bytesToClient"], bytes);
    }
    assert_eq!(flows[0].get("expiresSeconds"), None);
    assert!(
        flows[1]["expiresSeconds"]
            .as_u64()
            .is_some_and(|left| left > 200)
    );

    drop(stream);
    world.wait_for_flows("the one over UDP", |flows| flows.len() == 1)?;
    let services: Value = serde_json::from_str(&output(&world, &["list", "-o", "json"])?)?;
    let services = services["virtualServers"].as_array().ok_or("no services")?;
    let servers: Vec<&Value> = services
        .iter()
        .filter(|server| {
            [web, dns]
                .iter()
                .any(|vip| server["address"] == vip.to_string())
        })
        .collect();
    assert_eq!((services.len(), servers.len()), (4, 2));
    for (server, active, inactive, bytes) in [(servers[0], 0, 0, 5), (servers[1], 0, 1, 0)] {
        let real = &server["realServers"][0];
        assert_eq!(server["scheduler"], "rr");
        assert_eq!(real["forward"], "Masq");
        assert_eq!(real["weight"], 1);
        assert_eq!(real["activeFlows"], active, "{server}");
        assert_eq!(real["inactiveFlows"], inactive, "{server}");
        assert_eq!(real["connections"], 1);
        assert_eq!(real["failedAttempts"], 0);
        // Counted when a flow ends.
        assert_eq!(real["bytesToRealServer"], bytes, "{server}");
    }
    Ok(())
}

fn access_events(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::udp("dns", 53, 5300)];
    world.serve("app", 2, &ports, &[world.pod(0)])?;
    world.serve("refused", 3, &ports[..1], &[world.pod(1)])?;
    world.serve("half", 4, &ports[..1], &[world.pod(0), world.pod(1)])?;
    let silent = super::failover::silent_addresses(&world)?;
    world.serve_addresses("silent", 5, &ports[..1], &silent)?;
    let _web = world.pod(0).serve_tcp(8000, Tcp::Digest)?;
    world.start(&["--log-format", "json", "--connect-timeout", "200ms"])?;
    let from = world.from(Client::Pod);
    let red = family.at(world.pod(0), 8000).to_string();

    let vip = world.vip_at(family, 2, 80);
    let mut stream = client::connect(from, vip, LIMIT)?;
    let address = stream.local_addr()?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    drop(stream);
    let event = access_event(&world, "default/app:web", "closed")?;
    assert_eq!(event["level"], "INFO");
    assert_eq!(event["protocol"], "TCP");
    assert_eq!(event["client"], address.to_string());
    assert_eq!(event["virtual_server"], vip.to_string());
    assert_eq!(event["real_server"], red);
    let source: SocketAddr = event["source"].as_str().unwrap_or_default().parse()?;
    assert_eq!(source.ip(), world.overlay_address(family));
    assert_eq!(event["attempts"], 1);
    assert!(
        event["dial_us"].as_u64().is_some_and(|time| time > 0),
        "{event}"
    );
    assert!(event["duration_ms"].is_u64());
    assert_eq!(event["bytes_in"], 5);
    assert_eq!(event["bytes_out"], answer.len());

    expect_refused(from, world.vip_at(family, 3, 80))?;
    let event = access_event(&world, "default/refused:web", "connect_refused")?;
    assert_eq!(event["attempts"], 1);
    assert_eq!(event.get("dial_us"), None, "{event}");

    for _ in 0..2 {
        // Read to its end: unread data at a close is RST.
        let mut stream = client::connect(from, world.vip_at(family, 4, 80), LIMIT)?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
    }
    let stepped_over = |event: &Value| event["attempts"] == 2 && event["real_server"] == red;
    access_event_that(&world, "default/half:web", "closed", stepped_over)?;

    expect_silence(from, world.vip_at(family, 5, 80))?;
    let event = access_event(&world, "default/silent:web", "connect_timeout")?;
    assert_eq!(event["attempts"], 1);
    Ok(())
}

fn nobody_there() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.start(&[])?;
    world.proxy_mut().kill()?;
    let output = world.proxy().command(&["list"])?;
    let errors = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("kube-tun-proxy run"), "{errors}");
    Ok(())
}

fn output(world: &World, arguments: &[&str]) -> Result<String, Failed> {
    let output = world.proxy().command(arguments)?;
    let errors = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(0), "{errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn access_event(world: &World, service: &str, ending: &str) -> Result<Value, Failed> {
    access_event_that(world, service, ending, |_| true)
}

/// Waits for an event of a flow that was this service's and ended so.
fn access_event_that(
    world: &World,
    service: &str,
    ending: &str,
    fits: impl Fn(&Value) -> bool,
) -> Result<Value, Failed> {
    let mut found = None;
    super::world::wait_until(&format!("{service} {ending}"), || {
        found = world
            .proxy()
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|event| {
                event["target"] == "access"
                    && event["service"] == service
                    && event["ending"] == ending
                    && fits(event)
            });
        Ok(found.is_some())
    })
    .map_err(|error| format!("{error:?}\n{}", world.proxy().log()))?;
    Ok(found.unwrap_or_default())
}
