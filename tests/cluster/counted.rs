//! Every counter of `kube_tun_proxy_`, against traffic whose every connection, byte and
//! refusal is known here.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::manifests::{self, Port};
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::{Failed, Trial};
use socket2::SockRef;

use super::world::{Client, Family, LIMIT, Trials, World, expect_refused, syns};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("counted")
        .both("every_counter_moves_by_what_happened", everything)
        .one("the_answers_of_health", health)
        .done()
}

/// Connections that send and get back as much.
const ECHOES: usize = 7;
const ECHO_BYTES: usize = 5000;

/// What one connection sends for its digest, which is two words in a line.
const UP: usize = 400_001;

/// What one connection gets for nothing.
const DOWN: usize = 300_003;

/// UDP conversations, and the datagrams of each.
const ASKERS: usize = 3;
const QUESTIONS: usize = 4;
const QUESTION: &[u8] = b"who is there?";

/// Datagrams to an address that no service has.
const ASTRAY: usize = 5;

/// Connections to what refuses.
const TO_DEAD: usize = 3;
const TO_UNKNOWN_PORT: usize = 2;
const TO_EMPTY: usize = 4;

const NODE_PORT: u16 = 30_555;

/// Connections and conversations through it.
const THROUGH_NODE_PORT: usize = 6;
const DATAGRAMS_THROUGH_NODE_PORT: usize = 2;

fn serve(world: &World) -> Result<(), Failed> {
    let pod = world.pod(0);
    let ports = [
        Port::tcp("echo", 80, 8000),
        Port::tcp("digest", 81, 8001),
        Port::tcp("source", 82, 8002),
        Port::tcp("reset", 83, 8003),
        Port::tcp("dead", 84, 8004),
        Port::udp("ask", 53, 8053),
    ];
    world.serve("app", 2, &ports, &[pod])?;
    // One of the two does not listen.
    let both = [world.pod(1), world.pod(2)];
    world.serve("pair", 3, &[Port::tcp("web", 80, 7000)], &both)?;
    world.serve("empty", 4, &[Port::tcp("web", 80, 7000)], &[])?;
    let ports = [Port::tcp("tcp", 90, 8000), Port::udp("udp", 90, 8053)];
    let endpoints = [pod.address().into(), pod.address6().into()];
    let vips = world.vips(5);
    let text = manifests::service_with_endpoints("default", "open", &vips, &ports, &endpoints);
    let text = text.replacen("spec:\n", "spec:\n  type: NodePort\n", 1);
    let node_port = format!("    nodePort: {NODE_PORT}\n");
    let text = ["8000", "8053"].iter().fold(text, |text, target| {
        let target = format!("    targetPort: {target}\n");
        text.replacen(&target, &format!("{target}{node_port}"), 1)
    });
    Ok(world.manifests.write("open.yaml", &text)?)
}

fn everything(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    serve(&world)?;
    let pod = world.pod(0);
    let _servers = [
        pod.serve_tcp(8000, Tcp::Echo)?,
        pod.serve_tcp(8001, Tcp::Digest)?,
        pod.serve_tcp(8002, Tcp::Source(DOWN as u64))?,
        pod.serve_tcp(8003, Tcp::Reset)?,
        pod.serve_udp(8053, Udp::Echo)?,
        world.pod(2).serve_tcp(7000, Tcp::Who("there".to_owned()))?,
    ];
    world.start(&["--ipvs-udp-timeout", "1s"])?;
    let before = scrape(&world)?;
    for (series, value) in counters(&before) {
        assert!(value == 0.0 || is_busy(&series), "{series} {value}");
    }
    let from = world.from(Client::Pod);
    let at = |port| world.vip_at(family, 2, port);

    let mut held = Vec::new();
    for _ in 0..ECHOES {
        held.push(echo(from, at(80))?);
    }
    // One goes on, one ends with RST, the others as they should.
    let open = held.pop().ok_or("no connection")?;
    let cut = held.pop().ok_or("no connection")?;
    SockRef::from(&cut).set_linger(Some(Duration::ZERO))?;
    drop(cut);
    held.into_iter().try_for_each(finish)?;

    let mut up = client::connect(from, at(81), LIMIT)?;
    up.write_all(&vec![1; UP])?;
    up.shutdown(Shutdown::Write)?;
    let mut digest = Vec::new();
    up.read_to_end(&mut digest)?;
    let mut down = client::connect(from, at(82), LIMIT)?;
    down.shutdown(Shutdown::Write)?;
    let mut got = Vec::new();
    down.read_to_end(&mut got)?;
    assert_eq!(got.len(), DOWN);
    let mut reset = client::connect(from, at(83), LIMIT)?;
    reset.write_all(b"x")?;
    let end = reset.read(&mut [0; 1]);
    assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset));
    drop((up, down, reset));

    for _ in 0..TO_DEAD {
        expect_refused(from, at(84))?;
    }
    for _ in 0..TO_UNKNOWN_PORT {
        expect_refused(from, at(99))?;
    }
    for _ in 0..TO_EMPTY {
        expect_refused(from, world.vip_at(family, 4, 80))?;
    }

    // Who was tried is seen on the wire, not asked of the proxy.
    let overlay = world.capture_overlay()?;
    for _ in 0..4 {
        client::who(from, world.vip_at(family, 3, 80), LIMIT)?;
    }
    let tried = syns(overlay.stop()?.packets());
    let silent = family.at(world.pod(1), 7000);
    let failovers = tried.iter().filter(|syn| syn.to() == silent).count();
    assert!(failovers > 0, "{tried:?}");

    for _ in 0..ASKERS {
        ask(from, at(53), QUESTIONS)?;
    }
    let nobody = client::udp_socket(from, world.vip_at(family, 200, 53), LIMIT)?;
    for _ in 0..ASTRAY {
        nobody.send(QUESTION)?;
    }

    let outside = world.other_node().namespace();
    let node = match family {
        Family::V4 => world.node().address().into(),
        Family::V6 => world.node().address6().into(),
    };
    let through = SocketAddr::new(node, NODE_PORT);
    for _ in 0..THROUGH_NODE_PORT {
        finish(echo(outside, through)?)?;
    }
    ask(outside, through, DATAGRAMS_THROUGH_NODE_PORT)?;

    let closed = ECHOES - 2 + 2 + 4 + THROUGH_NODE_PORT;
    let udp = ASKERS + 1;
    let echoed = (ECHOES * ECHO_BYTES) as f64;
    let asked = (ASKERS * QUESTIONS * QUESTION.len()) as f64;
    let through_tcp = (THROUGH_NODE_PORT * ECHO_BYTES) as f64;
    let through_udp = (DATAGRAMS_THROUGH_NODE_PORT * QUESTION.len()) as f64;
    // "saw" lines: what the server says is part of the payload.
    let text = settled(&world, closed + 2 + TO_DEAD + udp)?;
    let said = counted(&text, "service_sent_bytes_total", "service=\"pair\"");
    assert!(said > 4.0 * "there saw ".len() as f64, "{said}");

    let mut expected = Expected::default();
    let tcp = ECHOES + 2 + 1 + TO_DEAD + 4 + THROUGH_NODE_PORT;
    expected.total("flows_opened_total{protocol=\"TCP\"}", tcp as f64);
    expected.total("flows_opened_total{protocol=\"UDP\"}", udp as f64);
    for (ending, count) in [
        ("closed", closed),
        ("client_reset", 1),
        ("server_reset", 1),
        ("connect_refused", TO_DEAD),
        ("idle", udp),
    ] {
        let name = format!("flows_ended_total{{ending=\"{ending}\"}}");
        expected.total(&name, count as f64);
    }
    for (reason, count) in [
        ("connect_failed", TO_DEAD),
        ("unknown_port", TO_UNKNOWN_PORT),
        ("no_endpoints", TO_EMPTY),
    ] {
        let name = format!("rejected_flows_total{{reason=\"{reason}\"}}");
        expected.total(&name, count as f64);
    }
    let name = "dropped_packets_total{reason=\"unknown_address\"}";
    expected.total(name, ASTRAY as f64);
    expected.total("failovers_total", failovers as f64);
    let refused = (TO_DEAD + failovers) as f64;
    expected.total("dial_failures_total{reason=\"refused\"}", refused);
    for (port, opened, received, sent) in [
        ("app/echo/TCP", ECHOES, echoed, echoed),
        ("app/digest/TCP", 1, UP as f64, digest.len() as f64),
        ("app/source/TCP", 1, 0.0, DOWN as f64),
        ("app/reset/TCP", 1, 1.0, 0.0),
        ("app/ask/UDP", ASKERS, asked, asked),
        ("pair/web/TCP", 4, 0.0, said),
        ("open/tcp/TCP", THROUGH_NODE_PORT, through_tcp, through_tcp),
        ("open/udp/UDP", 1, through_udp, through_udp),
    ] {
        expected.service("flows_opened_total", port, opened as f64);
        expected.service("received_bytes_total", port, received);
        expected.service("sent_bytes_total", port, sent);
    }
    let name = "dial_failures_total";
    expected.service(name, "app/dead/TCP", TO_DEAD as f64);
    expected.service(name, "pair/web/TCP", failovers as f64);
    expected.hold_against(&text);

    for (name, value) in [
        // Those that got a real server.
        ("dial_duration_seconds_count", (tcp - TO_DEAD) as f64),
        ("flow_duration_seconds_count", (tcp + udp - 1) as f64),
        ("flows", 1.0),
        ("ready", 1.0),
    ] {
        let line = format!("kube_tun_proxy_{name} ");
        let found = text.lines().find_map(|found| found.strip_prefix(&line));
        let found: f64 = found.ok_or("no such series")?.parse()?;
        assert_eq!(found, value, "{name}");
    }
    assert_eq!(counted(&text, "service_flows{", "port=\"echo\""), 1.0);
    assert_eq!(counted(&text, "service_flows{", ""), 1.0);
    // Of one family: both lead to the same pods.
    let real_servers = counted(&text, "service_real_servers{", "\"pair\"");
    assert_eq!(real_servers, 2.0);
    for worker in ["worker-", "node-port-"] {
        let busy = |text| counted(text, "worker_busy_seconds_total{", worker);
        assert!(busy(&text) > busy(&before), "{worker}\n{text}");
    }
    drop(open);
    settled(&world, closed + 3 + TO_DEAD + udp).map(drop)
}

/// A flow that has sent and got back its bytes.
fn echo(from: &Namespace, to: SocketAddr) -> Result<TcpStream, Failed> {
    let mut stream = client::connect(from, to, LIMIT)?;
    stream.write_all(&[7; ECHO_BYTES])?;
    stream.read_exact(&mut [0; ECHO_BYTES])?;
    Ok(stream)
}

fn finish(mut stream: TcpStream) -> Result<(), Failed> {
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(stream.read(&mut [0; 1])?, 0);
    Ok(())
}

/// One conversation.
fn ask(from: &Namespace, to: SocketAddr, questions: usize) -> Result<(), Failed> {
    let socket = client::udp_socket(from, to, LIMIT)?;
    for _ in 0..questions {
        socket.send(QUESTION)?;
        assert_eq!(socket.recv(&mut [0; 100])?, QUESTION.len());
    }
    Ok(())
}

/// What must be counted, in full series without the namespace; everything else is 0.
#[derive(Default)]
struct Expected(BTreeMap<String, f64>);

impl Expected {
    fn total(&mut self, series: &str, value: f64) {
        self.0.insert(format!("kube_tun_proxy_{series}"), value);
    }

    /// `service/port/protocol`.
    fn service(&mut self, name: &str, port: &str, value: f64) {
        let parts: Vec<&str> = port.split('/').collect();
        let [service, port, protocol] = parts[..] else {
            panic!("{port} is not service/port/protocol");
        };
        let labels = format!("service=\"{service}\",port=\"{port}\",protocol=\"{protocol}\"");
        self.total(&format!("service_{name}{{{labels}}}"), value);
    }

    fn hold_against(mut self, text: &str) {
        let mut wrong = Vec::new();
        for (series, value) in counters(text) {
            let expected = self.0.remove(&series).unwrap_or(0.0);
            if value != expected && !is_busy(&series) && !series.contains("handed_over") {
                wrong.push(format!("{series} is {value} instead of {expected}"));
            }
        }
        wrong.extend(self.0.keys().map(|series| format!("{series} is not there")));
        assert!(wrong.is_empty(), "{}\n{text}", wrong.join("\n"));
    }
}

/// Time does not come by the piece.
fn is_busy(series: &str) -> bool {
    series.contains("_worker_busy_seconds_total")
}

/// Each counter of ours.
fn counters(text: &str) -> BTreeMap<String, f64> {
    let lines = text
        .lines()
        .filter(|line| line.starts_with("kube_tun_proxy_"));
    let series = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.split('{').next()?;
        let value = value.parse().ok()?;
        let series = series.replace("namespace=\"default\",", "");
        name.ends_with("_total").then_some((series, value))
    });
    series.collect()
}

fn counted(text: &str, name: &str, label: &str) -> f64 {
    let name = format!("kube_tun_proxy_{name}");
    let lines = text
        .lines()
        .filter(|line| line.starts_with(&name) && line.contains(label));
    lines
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// The metrics once so many flows have ended.
fn settled(world: &World, ended: usize) -> Result<String, Failed> {
    let until = Instant::now() + LIMIT;
    loop {
        let text = scrape(world)?;
        let found = counted(&text, "flows_ended_total{", "");
        if found == ended as f64 {
            return Ok(text);
        }
        if Instant::now() > until {
            return Err(format!("{found} flows have ended, not {ended}:\n{text}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn scrape(world: &World) -> Result<String, Failed> {
    let at = world.proxy().metrics();
    let (status, text) = client::http_get(world.node().namespace(), at, "/metrics", LIMIT)?;
    assert_eq!(status, 200);
    Ok(text)
}

/// kube-proxy's counters of its own health, by path and status.
fn health() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.start(&[])?;
    let node = world.node().namespace();
    let count = |path: &str| -> Result<f64, Failed> {
        let text = scrape(&world)?;
        let name = format!("kubeproxy_proxy_{path}_total{{code=\"200\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        Ok(line.unwrap_or("0").parse()?)
    };
    for (path, times) in [("healthz", 3), ("livez", 2)] {
        let before = count(path)?;
        for _ in 0..times {
            let at = world.proxy().healthz();
            client::http_get(node, at, &format!("/{path}"), LIMIT)?;
        }
        assert_eq!(count(path)?, before + f64::from(times), "{path}");
    }
    Ok(())
}
