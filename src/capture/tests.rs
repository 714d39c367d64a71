//! Packets offered, flows told, and what comes out; and the file, read back.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Hold, Interfaces, ListedFlow, PcapngPacket, PcapngWriter, Received, Scope, Told};
use crate::lab::capture::read_pcapng;
use crate::packet::protocol;

const TUN: u32 = 7;
const OVERLAY: u32 = 3;
const BRIDGE: u32 = 4;
const VETH: u32 = 5;

const CLIENT: &str = "10.1.7.5:41000";
const VIP: &str = "10.0.0.3:80";
const OTHER_VIP: &str = "10.0.0.4:80";
/// The node's own address, at its node port.
const NODE: &str = "192.168.1.2:30080";
const SOURCE: &str = "10.1.7.0:50000";
const REAL_SERVER: &str = "10.1.15.8:8080";
const OTHER_REAL_SERVER: &str = "10.1.15.9:8080";

const CLIENT_SIDE: &str = "service default/web:http, real server 10.1.15.8:8080, \
    client 10.1.7.5:41000, virtual server 10.0.0.3:80/TCP; client's side";
const SERVER_SIDE: &str = "service default/web:http, real server 10.1.15.8:8080, \
    client 10.1.7.5:41000, virtual server 10.0.0.3:80/TCP; real server's side";
const UNKNOWN: &str = "service default/web:http, real server not known, \
    client 10.1.7.5:41000, virtual server 10.0.0.3:80/TCP; client's side";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A packet with nothing in it but addresses and a TCP header's control bits.
fn packet(protocol: u8, from: &str, to: &str, flags: u8) -> Vec<u8> {
    let (from, to) = (at(from), at(to));
    let mut bytes = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 20, protocol, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        mixed => panic!("{mixed:?}"),
    };
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn syn(from: &str, to: &str) -> Vec<u8> {
    packet(protocol::TCP, from, to, 0x02)
}

fn syn_ack(from: &str, to: &str) -> Vec<u8> {
    packet(protocol::TCP, from, to, 0x12)
}

fn ack(from: &str, to: &str) -> Vec<u8> {
    packet(protocol::TCP, from, to, 0x10)
}

fn flow() -> ListedFlow {
    ListedFlow {
        protocol: protocol::TCP,
        client: at(CLIENT),
        virtual_address: at(VIP),
        real_server: Some(at(REAL_SERVER)),
        source: Some(at(SOURCE)),
        service: "default/web:http".to_owned(),
    }
}

fn scope() -> Scope {
    Scope {
        virtual_servers: [
            ((protocol::TCP, at(VIP)), "default/web:http".to_owned()),
            (
                (protocol::TCP, at("0.0.0.0:30080")),
                "default/web:http".to_owned(),
            ),
        ]
        .into(),
        real_servers: [REAL_SERVER, OTHER_REAL_SERVER]
            .map(|server| {
                let services = ["default/web:http".to_owned()].into();
                ((protocol::TCP, at(server)), services)
            })
            .into(),
        interfaces: Interfaces {
            tun: Some(TUN),
            members: [VETH].into(),
            names: [(TUN, "svc-tun0".to_owned())].into(),
            addresses: [at(SOURCE).ip(), at(NODE).ip()].into(),
        },
    }
}

/// A [`Hold`] and the time.
struct Bench {
    hold: Hold,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(Hold::new(scope(), |_| true, true))
    }

    fn with(hold: Hold) -> Self {
        Self {
            hold,
            now: Instant::now(),
        }
    }

    fn offer(&mut self, interface: u32, bytes: &[u8]) {
        let received = Received {
            interface,
            outgoing: true,
            hardware: 1,
            at: UNIX_EPOCH,
            length: bytes.len(),
        };
        self.hold.offer(self.now, received, bytes);
    }

    fn tell(&mut self, flows: &[ListedFlow]) {
        self.hold.update(self.now, flows.to_vec(), None);
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    fn written(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.hold.next(self.now)).collect()
    }

    fn comments(&mut self) -> Vec<String> {
        let written = self.written().into_iter();
        written.map(|told| told.comment).collect()
    }
}

#[test]
fn both_sides_of_a_known_flow_come_out_at_once() {
    let mut bench = Bench::new();
    bench.tell(&[flow()]);
    bench.offer(TUN, &ack(CLIENT, VIP));
    bench.offer(OVERLAY, &ack(SOURCE, REAL_SERVER));
    bench.offer(OVERLAY, &ack(REAL_SERVER, SOURCE));
    bench.offer(TUN, &ack(VIP, CLIENT));
    assert_eq!(
        bench.comments(),
        [CLIENT_SIDE, SERVER_SIDE, SERVER_SIDE, CLIENT_SIDE]
    );
}

#[test]
fn each_packet_comes_out_once_and_nothing_foreign_does() {
    let mut bench = Bench::new();
    bench.tell(&[flow()]);
    // The client's packet before it reaches the TUN, and a bridge's member.
    bench.offer(BRIDGE, &ack(CLIENT, VIP));
    bench.offer(VETH, &ack(SOURCE, REAL_SERVER));
    bench.offer(TUN, &ack(CLIENT, OTHER_VIP));
    bench.offer(TUN, &packet(protocol::UDP, CLIENT, VIP, 0));
    // A pod that goes to the real server by itself.
    bench.offer(BRIDGE, &ack(CLIENT, REAL_SERVER));
    bench.offer(TUN, b"no packet");
    bench.pass(5000);
    assert!(bench.comments().is_empty());
}

#[test]
fn what_comes_before_its_flow_is_told_waits_and_keeps_its_place() {
    let mut bench = Bench::new();
    bench.offer(TUN, &syn(CLIENT, VIP));
    assert!(bench.hold.asks(), "a client opens a flow");
    assert!(!bench.hold.asks(), "said once");
    bench.offer(OVERLAY, &syn(SOURCE, REAL_SERVER));
    assert!(bench.comments().is_empty());

    // It dials: its source is not known, so its packets there are not either.
    let dialing = ListedFlow {
        source: None,
        ..flow()
    };
    bench.tell(&[dialing]);
    assert!(bench.comments().is_empty());
    bench.pass(1000);
    bench.tell(&[flow()]);
    assert_eq!(bench.comments(), [CLIENT_SIDE, SERVER_SIDE]);
}

#[test]
fn a_flow_that_is_never_told_shows_its_clients_side() {
    let mut bench = Bench::new();
    bench.offer(OVERLAY, &syn(SOURCE, REAL_SERVER));
    bench.offer(TUN, &syn(CLIENT, VIP));
    bench.pass(2499);
    bench.tell(&[]);
    assert!(bench.comments().is_empty());
    bench.pass(1);
    let written = bench.written();
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].comment, UNKNOWN);
    assert!(!written[0].listed);

    // At the end nothing waits.
    bench.offer(TUN, &syn(CLIENT, VIP));
    bench.hold.finish();
    assert_eq!(bench.comments(), [UNKNOWN]);
}

/// A connection of the client, which goes to the real server; refused by another.
fn short_connection(bench: &mut Bench) {
    bench.offer(TUN, &syn(CLIENT, VIP));
    bench.offer(OVERLAY, &syn("10.1.7.0:50001", OTHER_REAL_SERVER));
    let refusal = packet(protocol::TCP, OTHER_REAL_SERVER, "10.1.7.0:50001", 0x14);
    bench.offer(OVERLAY, &refusal);
    bench.offer(OVERLAY, &syn(SOURCE, REAL_SERVER));
    bench.offer(OVERLAY, &syn_ack(REAL_SERVER, SOURCE));
    bench.offer(OVERLAY, &ack(SOURCE, REAL_SERVER));
    bench.offer(TUN, &syn_ack(VIP, CLIENT));
    bench.offer(TUN, &ack(CLIENT, VIP));
    bench.offer(OVERLAY, &ack(REAL_SERVER, SOURCE));
}

#[test]
fn the_sides_of_a_flow_that_is_never_told_are_put_together() {
    let mut bench = Bench::new();
    // One that is told meanwhile is nobody else's.
    let told = ListedFlow {
        client: at("10.1.7.6:41000"),
        source: Some(at("10.1.7.0:50002")),
        ..flow()
    };
    bench.tell(std::slice::from_ref(&told));
    bench.offer(TUN, &syn("10.1.7.6:41000", VIP));
    short_connection(&mut bench);
    bench.offer(OVERLAY, &syn("10.1.7.0:50002", REAL_SERVER));
    bench.pass(1000);
    bench.tell(&[told]);
    let comments = bench.comments();
    assert_eq!(comments.len(), 1, "{comments:?}");
    bench.pass(1500);
    let comments = bench.comments();
    let by_time = |side: &str| side.replace(REAL_SERVER, "10.1.15.8:8080 (by time)");
    let (client, server) = (by_time(CLIENT_SIDE), by_time(SERVER_SIDE));
    assert_eq!(
        comments[..7],
        [
            &client, &server, &server, &server, &client, &client, &server
        ]
        .map(String::clone)
    );
    assert_eq!(comments.len(), 8);
    // What follows of it is known now.
    bench.offer(TUN, &ack(VIP, CLIENT));
    assert_eq!(bench.comments(), [client]);
}

#[test]
fn sides_that_could_be_anothers_are_not_put_together() {
    let mut bench = Bench::new();
    bench.offer(TUN, &syn(CLIENT, VIP));
    bench.offer(OVERLAY, &syn("10.1.7.0:50001", OTHER_REAL_SERVER));
    bench.offer(OVERLAY, &syn_ack(OTHER_REAL_SERVER, "10.1.7.0:50001"));
    bench.offer(OVERLAY, &syn(SOURCE, REAL_SERVER));
    bench.offer(OVERLAY, &syn_ack(REAL_SERVER, SOURCE));
    bench.offer(TUN, &syn_ack(VIP, CLIENT));
    bench.hold.finish();
    assert_eq!(bench.comments(), [UNKNOWN, UNKNOWN]);
}

#[test]
fn other_clients_and_other_real_servers_are_left_out() {
    let mut bench = Bench::with(Hold::new(scope(), |client| client != at(CLIENT), true));
    bench.offer(TUN, &syn(CLIENT, VIP));
    assert!(!bench.hold.asks());
    bench.hold.finish();
    assert!(bench.comments().is_empty());

    // With a wanted real server, a client's packet without one is not told.
    let mut bench = Bench::with(Hold::new(scope(), |_| true, false));
    bench.offer(TUN, &syn(CLIENT, VIP));
    bench.hold.finish();
    assert!(bench.comments().is_empty());
}

#[test]
fn a_flow_is_remembered_for_its_last_packets_and_not_for_the_next() {
    let mut bench = Bench::new();
    bench.tell(&[flow()]);
    bench.pass(1000);
    bench.tell(&[]);
    bench.offer(TUN, &ack(VIP, CLIENT));
    assert_eq!(bench.comments(), [CLIENT_SIDE]);
    // The same ports again, to another real server.
    bench.offer(TUN, &syn(CLIENT, VIP));
    assert!(bench.comments().is_empty());
    let next = ListedFlow {
        real_server: Some(at("10.1.15.9:8080")),
        ..flow()
    };
    bench.tell(&[next]);
    let comments = bench.comments();
    assert!(comments[0].contains("real server 10.1.15.9:8080"));
    bench.tell(&[]);
    bench.pass(10_000);
    bench.tell(&[]);
    bench.offer(TUN, &ack(VIP, CLIENT));
    assert!(bench.comments().is_empty(), "forgotten after ten seconds");
}

#[test]
fn a_node_port_has_its_clients_at_the_nodes_interfaces() {
    let mut bench = Bench::new();
    bench.offer(OVERLAY, &syn("192.168.9.9:1234", NODE));
    bench.offer(OVERLAY, &syn("192.168.9.9:1234", "192.168.1.3:30080"));
    bench.hold.finish();
    let comments = bench.comments();
    assert_eq!(comments.len(), 1, "not of another node");
    assert!(comments[0].contains("default/web:http"));
    assert!(comments[0].contains("virtual server 192.168.1.2:30080/TCP"));
}

#[test]
fn what_waits_is_bounded() {
    let mut bench = Bench::new();
    let mut big = syn(CLIENT, VIP);
    big.resize(65_000, 0);
    big[2..4].copy_from_slice(&65_000_u16.to_be_bytes());
    let mut written = 0;
    for _ in 0..1000 {
        bench.offer(TUN, &big);
        written += bench.written().len();
    }
    assert_eq!(written, 0);
    let crowded_out = bench.hold.crowded_out();
    let held = (32 << 20) / 65_000;
    assert!(crowded_out >= 1000 - held, "{crowded_out}");
    bench.hold.finish();
    assert_eq!(bench.written().len() as u64, 1000 - crowded_out);
}

#[test]
fn ipv6_is_the_same() {
    let (client, vip) = ("[fd00:1::5]:41000", "[fd00::3]:80");
    let (source, real_server) = ("[fd00:1::1]:50000", "[fd00:2::8]:8080");
    let mut bench = Bench::new();
    bench.tell(&[ListedFlow {
        client: at(client),
        virtual_address: at(vip),
        real_server: Some(at(real_server)),
        source: Some(at(source)),
        ..flow()
    }]);
    bench.offer(TUN, &syn(client, vip));
    bench.offer(OVERLAY, &ack(real_server, source));
    let comments = bench.comments();
    assert!(comments[0].contains("virtual server [fd00::3]:80/TCP; client's side"));
    assert!(comments[1].contains("real server [fd00:2::8]:8080"));
}

#[test]
fn headers_are_enough() {
    let mut bench = Bench::new();
    bench.tell(&[flow()]);
    // Their headers tell of more than there is.
    let mut long = ack(CLIENT, VIP);
    long[2..4].copy_from_slice(&60_000_u16.to_be_bytes());
    bench.offer(TUN, &long);
    assert_eq!(bench.comments(), [CLIENT_SIDE]);
    // The second fragment of a datagram has no ports, whatever it begins with.
    let mut second = long.clone();
    second[7] = 1;
    bench.offer(TUN, &second);
    assert!(bench.comments().is_empty());
}

#[test]
fn extension_headers_are_passed() {
    let (client, vip) = ("[fd00:1::5]:41000", "[fd00::3]:80");
    let mut told = flow();
    (told.client, told.virtual_address) = (at(client), at(vip));
    let plain = ack(client, vip);
    // Hop-by-hop options of 16 bytes, then the first fragment (RFC 8200 section 4).
    let with = |offset: u8| {
        let mut bytes = plain[..40].to_vec();
        bytes[6] = 0;
        bytes.extend([44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([protocol::TCP, 0, 0, offset, 0, 0, 0, 7]);
        bytes.extend(&plain[40..]);
        bytes
    };
    let mut bench = Bench::new();
    bench.tell(&[told]);
    bench.offer(TUN, &with(1));
    assert_eq!(bench.comments().len(), 1);
    bench.offer(TUN, &with(9));
    assert!(bench.comments().is_empty());
    // Cut off in the middle of them.
    bench.offer(TUN, &with(1)[..50]);
    assert!(bench.comments().is_empty());
}

#[test]
fn a_file_is_read_back() {
    let mut writer = PcapngWriter::new(Vec::new(), "a program").unwrap();
    assert_eq!(writer.interface("svc-tun0").unwrap(), 0);
    assert_eq!(writer.interface("flannel.1").unwrap(), 1);
    let time = UNIX_EPOCH + Duration::new(1_900_000_000, 123_456_789);
    // One of each length beside a multiple of four.
    for length in 40..44 {
        writer
            .packet(&PcapngPacket {
                interface: 1,
                at: time,
                outgoing: length == 41,
                hardware: 1,
                bytes: &vec![0x45; length],
                original_length: 2 * length,
                comment: &"é".repeat(length),
            })
            .unwrap();
    }
    writer
        .packet(&PcapngPacket {
            interface: 0,
            at: UNIX_EPOCH - Duration::from_secs(1),
            outgoing: false,
            hardware: 0xfffe,
            bytes: &[],
            original_length: 0,
            // Too long for an option, cut between two characters.
            comment: &format!("x{}", "é".repeat(40_000)),
        })
        .unwrap();
    writer
        .statistics(0, SystemTime::now(), 9, 1 << 40, "all")
        .unwrap();
    let bytes = writer.into_inner();
    let file = read_pcapng(&bytes).unwrap();
    assert_eq!(file.interfaces, ["svc-tun0", "flannel.1"]);
    assert_eq!(file.dropped, [1 << 40]);
    assert_eq!(file.packets.len(), 5);
    for (number, packet) in file.packets[..4].iter().enumerate() {
        let length = 40 + number;
        assert_eq!(packet.interface, 1);
        assert_eq!(packet.frame.at, time);
        assert_eq!(packet.frame.outgoing, length == 41);
        assert_eq!(packet.frame.bytes, vec![0x45; length]);
        assert_eq!(packet.original_length, 2 * length);
        assert_eq!(packet.comment, "é".repeat(length));
    }
    assert_eq!(file.packets[4].comment.len(), 65_535);
    assert_eq!(file.packets[4].frame.at, UNIX_EPOCH);
    // Cut anywhere, what was whole is still read by readers that take what there is;
    // ours says where it ends.
    assert!(read_pcapng(&bytes[..bytes.len() - 1]).is_err());
}
