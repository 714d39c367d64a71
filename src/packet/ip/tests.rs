use super::super::protocol::{FRAGMENT, ICMP, TCP, UDP};
use super::super::samples::{self, bytes};
use super::*;

#[test]
fn reads_a_captured_ipv4_packet() {
    let syn = bytes(samples::SYN_V4);
    let packet = IpPacket::parse(&syn).unwrap();
    assert_eq!(packet.source.to_string(), "10.1.15.7");
    assert_eq!(packet.destination.to_string(), "10.0.0.3");
    assert_eq!(
        (packet.protocol, packet.header_len, packet.hop_limit),
        (TCP, 20, 64)
    );
    assert_eq!(packet.fragment, None);
    assert_eq!(packet.payload().len(), 40);
    assert!(packet.is_ipv4());
}

#[test]
fn reads_a_captured_ipv6_packet() {
    let ping = bytes(samples::PING_V6);
    let packet = IpPacket::parse(&ping).unwrap();
    assert_eq!(packet.source.to_string(), "fd00::7");
    assert_eq!(packet.destination.to_string(), "fd00::3");
    assert_eq!((packet.header_len, packet.traffic_class), (40, 0xb8));
    assert!(!packet.is_ipv4());
}

#[test]
fn cuts_off_what_stands_behind_the_packet() {
    for sample in [samples::UDP_V4, samples::UDP_V6] {
        let whole = bytes(sample);
        let mut padded = whole.clone();
        padded.extend_from_slice(&[0xaa; 7]);
        assert_eq!(IpPacket::parse(&padded).unwrap().bytes, whole);
    }
}

#[test]
fn skips_ipv4_options() {
    let mut packet = bytes(samples::UDP_V4);
    packet[0] = 0x46;
    packet[3] += 4;
    packet.splice(20..20, [1, 1, 1, 0]);
    let packet = IpPacket::parse(&packet).unwrap();
    assert_eq!(packet.header_len, 24);
    assert_eq!(packet.payload().len(), 21);
}

#[test]
fn reads_fragments_of_the_capture() {
    let [first, last] = samples::big_fragments(true);
    let first = IpPacket::parse(&first).unwrap();
    let expected = FragmentInfo {
        ident: 0x359d,
        offset: 0,
        more: true,
        header_at: 0,
        next_header_at: 0,
    };
    assert_eq!(first.fragment, Some(expected));
    let last = IpPacket::parse(&last).unwrap().fragment;
    assert_eq!(
        last,
        Some(FragmentInfo {
            offset: 1424,
            more: false,
            ..expected
        })
    );

    let [first, last] = samples::big_fragments(false);
    let first = IpPacket::parse(&first).unwrap();
    let expected = FragmentInfo {
        ident: 0xd4cb_3c96,
        offset: 0,
        more: true,
        header_at: 40,
        next_header_at: 6,
    };
    assert_eq!(
        (first.fragment, first.protocol, first.header_len),
        (Some(expected), UDP, 48)
    );
    let last = IpPacket::parse(&last).unwrap().fragment;
    assert_eq!(
        last,
        Some(FragmentInfo {
            offset: 1400,
            more: false,
            ..expected
        })
    );
}

#[test]
fn names_what_is_wrong() {
    fn with(sample: &str, changes: &[(usize, u8)]) -> Vec<u8> {
        let mut packet = bytes(sample);
        for (at, value) in changes {
            packet[*at] = *value;
        }
        packet
    }
    let v4 = samples::UDP_V4;
    let v6 = samples::UDP_V6;
    let cases = [
        (Vec::new(), Malformed::Truncated),
        (vec![0x45], Malformed::Truncated),
        (vec![0x60; 39], Malformed::Truncated),
        (with(v4, &[(0, 0x55)]), Malformed::Version),
        (with(v4, &[(0, 0x05)]), Malformed::Version),
        (with(v4, &[(0, 0x44)]), Malformed::HeaderLength),
        (with(v4, &[(3, 19)]), Malformed::TotalLength),
        (with(v4, &[(0, 0x4f), (3, 59)]), Malformed::TotalLength),
        (with(v4, &[(3, 42)]), Malformed::Truncated),
        (with(v6, &[(5, 22)]), Malformed::Truncated),
        (with(v6, &[(5, 0), (6, 0)]), Malformed::Jumbogram),
        (
            with(v6, &[(5, 7), (6, FRAGMENT)]),
            Malformed::ExtensionHeader,
        ),
    ];
    for (packet, expected) in cases {
        assert_eq!(IpPacket::parse(&packet), Err(expected), "{packet:02x?}");
    }
}

#[test]
fn a_transport_is_read_from_whole_packets_of_its_protocol() {
    let udp = bytes(samples::UDP_V4);
    let packet = IpPacket::parse(&udp).unwrap();
    assert_eq!(packet.transport(ICMP), Err(Malformed::OtherProtocol));
    let [first, _] = samples::big_fragments(true);
    let packet = IpPacket::parse(&first).unwrap();
    assert_eq!(packet.transport(UDP), Err(Malformed::Fragment));
}
