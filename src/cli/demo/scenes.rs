//! The story: the seed's four conclusions and what becomes of each, then what
//! else a service proxy owes its clients. Each scene shows what was on the wire
//! and says whether it was as it should be.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::console::Console;
use super::interrupt::Interrupt;
use super::world::{CLIENT, DASHBOARD, DNS, GRAFANA, METRICS, TUN, World};
use crate::lab::capture::{Capture, Packet};
use crate::lab::client::{self, Seen};
use crate::lab::servers::{Server, Tcp};
use crate::lab::{LabError, Namespace};

/// The longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Packets of a capture shown in one scene.
const SHOWN: usize = 4;

/// How a scene came out: the sentence that says so.
type Outcome = Result<String, Trouble>;

/// Why a scene did not go as it should.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Lab(#[from] LabError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Unexpected(String),
}

type Scene = fn(&World, &mut Console) -> Outcome;

const SCENES: [(&str, Scene); 8] = [
    (
        "1. \"Every node owns the service IPs\": here none does, a route leads to the proxy",
        nobody_owns,
    ),
    (
        "2. \"Reaching a service IP is reaching the host\": here it is not",
        not_the_host,
    ),
    (
        "3. \"The source is the service IP itself\": here it is the client's own",
        own_source,
    ),
    (
        "4. \"With MASQUERADE the packet leaves from flannel.1's 10.1.15.0\": so it does here",
        masquerade,
    ),
    ("5. Three real servers take turns", round_robin),
    ("6. UDP: a question to the DNS service", udp),
    (
        "7. A real server that refuses is stepped over",
        stepped_over,
    ),
    ("8. kube-tun-proxy list", list),
];

/// Tells it all; returns how many scenes did not go as they should. Stops early
/// when it is interrupted.
pub(super) fn tell(
    world: &World,
    interrupt: &Interrupt,
    console: &mut Console,
) -> io::Result<usize> {
    introduce(world, console)?;
    let mut failed = 0;
    for (title, scene) in SCENES {
        if interrupt.came() {
            break;
        }
        console.title(title)?;
        let outcome = scene(world, console).map_err(|trouble| trouble.to_string());
        console.verdict(&outcome)?;
        failed += usize::from(outcome.is_err());
    }
    console.gap()?;
    Ok(failed)
}

fn introduce(world: &World, console: &mut Console) -> io::Result<()> {
    console.title("A cluster in network namespaces; nothing outside them is touched")?;
    for node in world.cluster.nodes() {
        let pods: Vec<String> = node
            .pods()
            .iter()
            .map(|pod| pod.address().to_string())
            .collect();
        console.say(&format!(
            "{:<7} {}  {} {}  pods {}",
            node.name(),
            node.address(),
            world.cluster.overlay(),
            node.overlay_address(),
            pods.join(" ")
        ))?;
    }
    console.say(&format!(
        "On the master: kube-tun-proxy (pid {}), services in {} through {TUN}; no netfilter, no \
         IPVS, no eBPF",
        world.proxy.pid(),
        world.cluster.service_cidr()
    ))
}

/// Conclusion one: kube-proxy's IPVS mode gives each VIP to a dummy device.
fn nobody_owns(world: &World, console: &mut Console) -> Outcome {
    let master = world.master().namespace();
    let (route, owned) = master.run(|| -> io::Result<_> {
        let routes = fs::read_to_string("/proc/thread-self/net/route")?;
        let trie = fs::read_to_string("/proc/thread-self/net/fib_trie")?;
        Ok((route_through(&routes, TUN), is_local(&trie, METRICS.ip())))
    })?;
    let route = route.ok_or_else(|| unexpected(format!("no route through {TUN}")))?;
    console.say(&format!("ip route: {route}"))?;
    expect(!owned, || format!("{} is in the local table", METRICS.ip()))?;
    let capture = Capture::start(master, TUN)?;
    for (who, from) in [("the master", master), ("a pod on it", client_pod(world))] {
        let took = client::ping(from, METRICS.ip(), 56, LIMIT)
            .map_err(|error| unexpected(format!("ping {} from {who}: {error}", METRICS.ip())))?;
        console.say(&format!(
            "ping {} from {who}: answered in {took:.0?}",
            METRICS.ip()
        ))?;
    }
    show(console, TUN, &capture.stop()?.packets().collect::<Vec<_>>())?;
    Ok(format!(
        "{} is no address of this node, and answers ping",
        METRICS.ip()
    ))
}

/// Conclusion two: `ssh root@10.0.0.3` ended on the host itself.
fn not_the_host(world: &World, console: &mut Console) -> Outcome {
    /// Where sshd would listen.
    const SSH: u16 = 22;
    let master = world.master().namespace();
    let own = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), SSH);
    let sshd = Server::tcp(master, own, Tcp::Who("the master's own sshd".to_owned()))?;
    let through_service = SocketAddr::new(METRICS.ip(), SSH);
    let capture = Capture::start(master, TUN)?;
    let refused = client::who(master, through_service, LIMIT);
    show(console, TUN, &capture.stop()?.packets().collect::<Vec<_>>())?;
    match refused {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        other => return Err(unexpected(format!("{through_service} said {other:?}"))),
    }
    expect(sshd.accepted() == 0, || {
        "the master's own sshd was reached".to_owned()
    })?;
    let directly = SocketAddr::new(world.master().address().into(), SSH);
    let seen = client::who(master, directly, LIMIT)?;
    Ok(format!(
        "{} listens on every address of the master, yet {through_service} refuses",
        seen.name
    ))
}

/// Conclusion three: on lo, the VIP spoke to itself.
fn own_source(world: &World, console: &mut Console) -> Outcome {
    let master = world.master().namespace();
    let (lo, tun) = (Capture::start(master, "lo")?, Capture::start(master, TUN)?);
    ask(master, METRICS)?;
    ask(client_pod(world), METRICS)?;
    let (lo, tun) = (lo.stop()?, tun.stop()?);
    let syns: Vec<Packet> = tun.packets().filter(Packet::is_syn).collect();
    show(console, TUN, &syns)?;
    expect(
        !lo.packets().any(|packet| packet.touches(METRICS.ip())),
        || format!("{} was seen on lo", METRICS.ip()),
    )?;
    expect(syns.len() == 2, || {
        format!("{} SYNs on {TUN}, not 2", syns.len())
    })?;
    expect(syns.iter().all(|syn| syn.source != METRICS.ip()), || {
        format!("a client came from {}", METRICS.ip())
    })?;
    Ok("nothing on lo; the clients keep their addresses up to the proxy".to_owned())
}

/// Conclusion four, and the point of it all.
fn masquerade(world: &World, console: &mut Console) -> Outcome {
    let overlay = world.cluster.overlay();
    let master = world.master().namespace();
    let leaving = Capture::start(master, overlay)?;
    let arriving = Capture::start(world.node2().namespace(), overlay)?;
    let seen = ask(master, METRICS)?;
    let from_pod = ask(client_pod(world), METRICS)?;
    console.command(&format!("curl http://{METRICS}/"))?;
    console.quote(&format!("{} saw {}", seen.name, seen.peer))?;
    let (leaving, arriving) = (leaving.stop()?, arriving.stop()?);
    let packets: Vec<Packet> = leaving.packets().collect();
    let of_ours = |packet: &&Packet| packet.from() == seen.peer || packet.to() == seen.peer;
    let ours: Vec<Packet> = packets.iter().filter(of_ours).cloned().collect();
    show(console, overlay, &ours)?;
    let source = IpAddr::from(world.master().overlay_address());
    let real_server = world.cluster.pod("pod-5").at(METRICS.port());
    for packet in packets
        .iter()
        .chain(&arriving.packets().collect::<Vec<_>>())
    {
        expect(!packet.touches(METRICS.ip()), || {
            format!("the service IP was on {overlay}: {packet}")
        })?;
        expect(
            !packet.is_syn() || (packet.source, packet.to()) == (source, real_server),
            || format!("not from {source} to {real_server}: {packet}"),
        )?;
    }
    let arrived = arriving.packets().filter(Packet::is_syn).count();
    expect(arrived == 2, || {
        format!("{arrived} SYNs arrived on node2, not 2")
    })?;
    for seen in [seen, from_pod] {
        expect(seen.peer.ip() == source, || {
            format!("the pod saw {}", seen.peer)
        })?;
    }
    Ok(format!(
        "{METRICS} arrives at {real_server} from {source}, from the node as from a pod on it, and \
         never from {}",
        METRICS.ip()
    ))
}

fn round_robin(world: &World, console: &mut Console) -> Outcome {
    const TURNS: usize = 3;
    const PODS: usize = 3;
    let mut names = Vec::new();
    for _ in 0..TURNS * PODS {
        names.push(ask(world.master().namespace(), GRAFANA)?.name);
    }
    console.say(&format!(
        "{} connections to {GRAFANA}: {}",
        names.len(),
        names.join(" ")
    ))?;
    let (first, rest) = names.split_at(PODS);
    let mut distinct = first.to_vec();
    distinct.sort();
    distinct.dedup();
    expect(
        distinct.len() == PODS && rest.chunks(PODS).all(|turn| turn == first),
        || "the real servers did not take equal turns".to_owned(),
    )?;
    Ok(format!("each of {PODS} once in {PODS}, in the same order"))
}

fn udp(world: &World, console: &mut Console) -> Outcome {
    let (master, overlay) = (world.master().namespace(), world.cluster.overlay());
    let (inside, outside) = (
        Capture::start(master, TUN)?,
        Capture::start(master, overlay)?,
    );
    let answer = client::udp_exchange(client_pod(world), DNS, &dns_question(), LIMIT)?;
    let seen = Seen::parse(&String::from_utf8_lossy(&answer))?;
    for (interface, capture) in [(TUN, inside), (overlay, outside)] {
        // Connections of the scenes before may still be closing.
        let captured = capture.stop()?;
        let of_dns = captured
            .packets()
            .filter(|packet| packet.tcp_flags().is_none());
        show(console, interface, &of_dns.collect::<Vec<_>>())?;
    }
    let source = IpAddr::from(world.master().overlay_address());
    expect(seen.peer.ip() == source, || {
        format!("{} saw {}", seen.name, seen.peer)
    })?;
    Ok(format!(
        "{} answered, and saw {}; the client saw {DNS}",
        seen.name, seen.peer
    ))
}

fn stepped_over(world: &World, console: &mut Console) -> Outcome {
    const CONNECTIONS: usize = 4;
    let (master, overlay) = (world.master().namespace(), world.cluster.overlay());
    let capture = Capture::start(master, overlay)?;
    let mut names = Vec::new();
    for _ in 0..CONNECTIONS {
        names.push(ask(master, DASHBOARD)?.name);
    }
    let captured = capture.stop()?;
    let opening = |packet: &Packet| {
        packet
            .tcp_flags()
            .is_some_and(|flags| flags.syn || flags.rst)
    };
    let opening: Vec<Packet> = captured.packets().filter(opening).collect();
    show(console, overlay, &opening)?;
    let refused = opening
        .iter()
        .filter(|packet| packet.tcp_flags().is_some_and(|f| f.rst))
        .count();
    expect(refused > 0, || "10.1.65.6:8443 was never tried".to_owned())?;
    expect(names.iter().all(|name| name == "pod-7"), || {
        format!("answers from {names:?}")
    })?;
    Ok(format!(
        "{CONNECTIONS} connections to {DASHBOARD}, {refused} times refused by 10.1.65.6, all \
         answered by 10.1.65.7"
    ))
}

fn list(world: &World, console: &mut Console) -> Outcome {
    let output = world.proxy.command(&["list"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    console.quote(&text)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    expect(output.status.success(), || {
        format!("list ended ({}): {errors}", output.status)
    })?;
    for service in [METRICS, GRAFANA, DNS, DASHBOARD] {
        expect(text.contains(&service.to_string()), || {
            format!("{service} is not in it")
        })?;
    }
    Ok("as ipvsadm -Ln has it".to_owned())
}

/// One HTTP request; what the real server said of itself and of us.
fn ask(from: &Namespace, to: SocketAddr) -> Result<Seen, Trouble> {
    let (status, body) = client::http_get(from, to, "/", LIMIT)
        .map_err(|error| unexpected(format!("http://{to}/: {error}")))?;
    expect(status == 200, || format!("http://{to}/: status {status}"))?;
    Ok(Seen::parse(&body)?)
}

/// `A? kubernetes.default.svc.cluster.local.` (RFC 1035, section 4.1).
fn dns_question() -> Vec<u8> {
    let mut message = vec![0x1d, 0x05, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn client_pod(world: &World) -> &Namespace {
    world.cluster.pod(CLIENT).namespace()
}

fn show(console: &mut Console, interface: &str, packets: &[Packet]) -> io::Result<()> {
    packets
        .iter()
        .take(SHOWN)
        .try_for_each(|packet| console.wire(interface, packet))
}

fn expect(truth: bool, otherwise: impl FnOnce() -> String) -> Result<(), Trouble> {
    if truth {
        Ok(())
    } else {
        Err(Trouble::Unexpected(otherwise()))
    }
}

fn unexpected(text: String) -> Trouble {
    Trouble::Unexpected(text)
}

/// The first IPv4 route through a device, as `ip route` prints it. Lines of
/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses as
/// hexadecimal numbers in this machine's byte order (net/ipv4/fib_trie.c,
/// fib_route_seq_show).
fn route_through(routes: &str, device: &str) -> Option<String> {
    routes.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        if words.first() != Some(&device) {
            return None;
        }
        let destination = Ipv4Addr::from(number(1)?.to_ne_bytes());
        Some(format!(
            "{destination}/{} dev {device}",
            number(7)?.count_ones()
        ))
    })
}

/// Whether an address is in the local table: in `/proc/net/fib_trie` the line
/// after its own says `/32 host LOCAL`.
fn is_local(trie: &str, address: IpAddr) -> bool {
    let own = format!("|-- {address}");
    let mut lines = trie.lines();
    while let Some(line) = lines.next() {
        if line.trim() == own && lines.next().is_some_and(|next| next.contains("host LOCAL")) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_as_ip_route_prints_them() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t016564AC\t0003\t0\t0\t0\t00000000\n\
                      svc-tun0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\n";
        let route = route_through(routes, "svc-tun0");
        assert_eq!(route.as_deref(), Some("10.0.0.0/16 dev svc-tun0"));
        assert_eq!(route_through(routes, "svc-tun1"), None);
    }

    #[test]
    fn a_local_address_is_found() {
        let trie = "Local:\n  +-- 10.1.15.0/31 2 0 2\n     |-- 10.1.15.0\n        /32 host LOCAL\n";
        assert!(is_local(trie, "10.1.15.0".parse().unwrap()));
        assert!(!is_local(trie, "10.0.0.3".parse().unwrap()));
    }

    #[test]
    fn the_question_is_dns() {
        let question = dns_question();
        assert_eq!(question.len(), 12 + 38 + 4);
        assert_eq!(question[12..23], *b"\x0akubernetes");
    }
}
