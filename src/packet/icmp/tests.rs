use super::super::samples::{self, bytes};
use super::super::{
    Malformed, TcpSegment, UdpDatagram, ipv4_header_checksum_ok, transport_checksum_ok,
};
use super::*;

type Builder = fn(&IpPacket<'_>, &mut Vec<u8>) -> Result<(), NoReply>;

fn build(builder: Builder, packet: &[u8]) -> Result<Vec<u8>, NoReply> {
    // What stood in the buffer before must not matter.
    let mut out = vec![0xff; 100];
    builder(&IpPacket::parse(packet)?, &mut out).map(|()| out)
}

/// The kernel's answer without what is its own choice: identification, flags, flow label.
fn expected(sample: &str) -> Vec<u8> {
    let mut packet = bytes(sample);
    neutral(&mut packet);
    packet
}

fn neutral(packet: &mut [u8]) {
    if packet[0] == 0x45 {
        packet[4..8].fill(0);
        packet[10..12].fill(0);
    } else {
        packet[1] &= 0xf0;
        packet[2..4].fill(0);
    }
}

#[test]
fn the_echo_reply_is_the_kernels_own() {
    for (ping, pong) in [
        (samples::PING_V4, samples::PONG_V4),
        (samples::PING_V6, samples::PONG_V6),
    ] {
        let mut reply = build(echo_reply, &bytes(ping)).unwrap();
        let packet = IpPacket::parse(&reply).unwrap();
        assert!(ipv4_header_checksum_ok(&packet) && transport_checksum_ok(&packet));
        neutral(&mut reply);
        // Both directions of the capture have DSCP 46 without ECN.
        assert_eq!(reply, expected(pong));
    }
}

#[test]
fn an_echo_request_is_read() {
    for sample in [samples::PING_V4, samples::PING_V6] {
        let packet = bytes(sample);
        let packet = IpPacket::parse(&packet).unwrap();
        let expected = Echo {
            ident: 0x4d2,
            seq: 7,
            payload: b"ping to a virtual IP",
        };
        assert_eq!(Echo::parse(&packet), Ok(expected));
    }
}

#[test]
fn a_reply_keeps_dscp_and_identification_but_not_ecn() {
    let mut ping = bytes(samples::PING_V4);
    ping[1] = 0xb8 | 0b11;
    let reply = build(echo_reply, &ping).unwrap();
    assert_eq!(reply[1], 0xb8);
    assert_eq!(reply[4..8], [0xe4, 0xfd, 0, 0]);
}

#[test]
fn nothing_but_a_request_gets_a_reply() {
    for (sample, expected) in [
        (samples::PONG_V4, Malformed::NotEchoRequest),
        (samples::PONG_V6, Malformed::NotEchoRequest),
        (samples::UNREACHABLE_V4, Malformed::NotEchoRequest),
        (samples::UDP_V6, Malformed::OtherProtocol),
    ] {
        let result = build(echo_reply, &bytes(sample));
        assert_eq!(result, Err(NoReply::Malformed(expected)), "{sample}");
    }
    // ICMP for IPv4 in an IPv6 packet is not ICMP.
    let mut crossed = bytes(samples::PING_V6);
    (crossed[6], crossed[40]) = (ICMP, 8);
    let result = build(echo_reply, &crossed);
    assert_eq!(result, Err(NoReply::Malformed(Malformed::OtherProtocol)));
    // Cut off within its header.
    let mut short = bytes(samples::PING_V4);
    short[3] = 27;
    let result = build(echo_reply, &short);
    assert_eq!(
        result,
        Err(NoReply::Malformed(Malformed::TransportTruncated))
    );
    let mut multicast = bytes(samples::PING_V6);
    multicast[24] = 0xff;
    assert_eq!(build(echo_reply, &multicast), Err(NoReply::Destination));
}

#[test]
fn the_port_unreachable_is_the_kernels_own() {
    for (datagram, error) in [
        (samples::UDP_V4, samples::UNREACHABLE_V4),
        (samples::UDP_V6, samples::UNREACHABLE_V6),
    ] {
        let mut ours = build(port_unreachable, &bytes(datagram)).unwrap();
        neutral(&mut ours);
        assert_eq!(ours, expected(error));
    }
}

#[test]
fn a_long_quote_is_cut_where_the_kernel_cuts_it() {
    let mut store = super::super::FragmentStore::new(super::super::FragmentLimits::default());
    let now = std::time::Instant::now();
    for (v4, error, len) in [
        (true, samples::BIG_UNREACHABLE_V4, 576),
        (false, samples::BIG_UNREACHABLE_V6, 1280),
    ] {
        let [first, last] = samples::big_fragments(v4);
        store.insert(now, &IpPacket::parse(&first).unwrap());
        let whole = store.insert(now, &IpPacket::parse(&last).unwrap());
        let super::super::FragmentOutcome::Complete(whole) = whole else {
            panic!("{whole:?}")
        };
        let mut ours = build(port_unreachable, &whole).unwrap();
        neutral(&mut ours);
        let mut expected = expected(error);
        let quoted = len - expected.len();
        expected.extend_from_slice(&samples::big_payload()[..quoted]);
        assert_eq!(ours.len(), len);
        assert_eq!(ours, expected);
    }
}

#[test]
fn each_kind_has_its_codes() {
    for (what, v4, v6) in [
        (Unreachable::Network, 0, 0),
        (Unreachable::Host, 1, 3),
        (Unreachable::Port, 3, 4),
        (Unreachable::Prohibited, 13, 1),
    ] {
        let mut out = Vec::new();
        let syn = bytes(samples::SYN_V4);
        unreachable(&IpPacket::parse(&syn).unwrap(), what, &mut out).unwrap();
        assert_eq!(out[20..22], [3, v4], "{what:?}");
        let syn = bytes(samples::SYN_V6);
        unreachable(&IpPacket::parse(&syn).unwrap(), what, &mut out).unwrap();
        assert_eq!(out[40..42], [1, v6], "{what:?}");
        assert!(transport_checksum_ok(&IpPacket::parse(&out).unwrap()));
    }
}

#[test]
fn no_error_where_the_rfcs_forbid_one() {
    let change = |sample: &str, changes: &[(usize, u8)]| {
        let mut packet = bytes(sample);
        for (at, value) in changes {
            packet[*at] = *value;
        }
        build(port_unreachable, &packet).map(|_| ())
    };
    let (v4, v6) = (samples::UDP_V4, samples::UDP_V6);
    assert_eq!(change(v4, &[(12, 0)]), Err(NoReply::Source));
    assert_eq!(change(v4, &[(12, 127)]), Err(NoReply::Source));
    assert_eq!(change(v4, &[(12, 230)]), Err(NoReply::Source));
    assert_eq!(change(v4, &[(12, 240)]), Err(NoReply::Source));
    assert_eq!(change(v4, &[(16, 224)]), Err(NoReply::Destination));
    let broadcast = [(16, 255), (17, 255), (18, 255), (19, 255)];
    assert_eq!(change(v4, &broadcast), Err(NoReply::Destination));
    assert_eq!(change(v6, &[(8, 0xff)]), Err(NoReply::Source));
    assert_eq!(change(v6, &[(8, 0), (23, 0)]), Err(NoReply::Source));
    assert_eq!(change(v6, &[(8, 0), (23, 1)]), Err(NoReply::Source));
    assert_eq!(change(v6, &[(23, 3)]), Err(NoReply::Source));
    assert_eq!(change(v6, &[(24, 0xff)]), Err(NoReply::Destination));
    assert_eq!(
        change(samples::UNREACHABLE_V4, &[]),
        Err(NoReply::IcmpError)
    );
    assert_eq!(
        change(samples::UNREACHABLE_V6, &[]),
        Err(NoReply::IcmpError)
    );
    // A redirect is not an error by its number, but counts as one.
    assert_eq!(
        change(samples::PING_V6, &[(40, 137)]),
        Err(NoReply::IcmpError)
    );
    assert_eq!(change(samples::PING_V4, &[]), Ok(()));
    assert_eq!(change(samples::PING_V6, &[]), Ok(()));
    for v4 in [true, false] {
        let [first, last] = samples::big_fragments(v4);
        assert!(build(port_unreachable, &first).is_ok());
        assert_eq!(build(port_unreachable, &last), Err(NoReply::LaterFragment));
    }
}

#[test]
fn an_error_without_the_datagram_names_the_flow() {
    for [client, server] in [
        ["10.1.15.7:40001", "10.0.0.3:53"],
        ["[fd00::7]:40001", "[fd00::3]:53"],
    ] {
        let [client, server]: [SocketAddr; 2] = [client, server].map(|a| a.parse().unwrap());
        let mut out = Vec::new();
        udp_unreachable(client, server, 13, Unreachable::Port, &mut out).unwrap();
        let packet = IpPacket::parse(&out).unwrap();
        assert!(ipv4_header_checksum_ok(&packet) && transport_checksum_ok(&packet));
        assert_eq!(
            (packet.source, packet.destination),
            (server.ip(), client.ip())
        );
        // The quote ends behind the UDP header; with the data it would be the datagram.
        let mut quote = packet.payload()[8..].to_vec();
        assert_eq!(quote.len(), if client.is_ipv4() { 28 } else { 48 });
        quote.extend_from_slice(&[0; 13]);
        let quote = IpPacket::parse(&quote).unwrap();
        assert_eq!(quote.bytes.len(), quote.header_len + 8 + 13);
        assert_eq!(
            (quote.source, quote.destination),
            (client.ip(), server.ip())
        );
        let datagram = UdpDatagram::parse(&quote).unwrap();
        let ports = (datagram.source_port, datagram.destination_port);
        assert_eq!(ports, (client.port(), server.port()));
        assert!(TcpSegment::parse(&quote).is_err());
        let result = udp_unreachable(client, server, 65_536, Unreachable::Port, &mut out);
        assert_eq!(result, Err(CannotBuild::TooLong));
    }
}
