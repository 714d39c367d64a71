use super::super::samples::{self, bytes};
use super::*;

#[test]
fn sums_the_example_of_rfc_1071() {
    // RFC 1071 3: the words 0001 f203 f4f5 f6f7 give ddf2.
    assert_eq!(
        fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
        0xddf2
    );
}

#[test]
fn the_capture_verifies_until_a_bit_is_turned() {
    for sample in [
        samples::RST_V4,
        samples::PING_V4,
        samples::PONG_V4,
        samples::PING_V6,
        samples::PONG_V6,
        samples::UNREACHABLE_V4,
        samples::UNREACHABLE_V6,
    ] {
        let good = bytes(sample);
        let packet = IpPacket::parse(&good).unwrap();
        assert!(transport_checksum_ok(&packet), "{sample}");
        assert!(ipv4_header_checksum_ok(&packet), "{sample}");
        for bit in packet.header_len * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !transport_checksum_ok(&IpPacket::parse(&bad).unwrap()),
                "{sample} {bit}"
            );
        }
    }
}

#[test]
fn a_damaged_ipv4_header_is_seen() {
    let mut packet = bytes(samples::UDP_V4);
    assert!(ipv4_header_checksum_ok(&IpPacket::parse(&packet).unwrap()));
    packet[8] -= 1;
    assert!(!ipv4_header_checksum_ok(&IpPacket::parse(&packet).unwrap()));
}

#[test]
fn the_pseudo_header_is_what_the_kernel_leaves_in_the_field() {
    for (sample, at) in [
        (samples::SYN_V4, 36),
        (samples::UDP_V4, 26),
        (samples::SYN_V6, 56),
        (samples::UDP_V6, 46),
    ] {
        let packet = bytes(sample);
        let packet = IpPacket::parse(&packet).unwrap();
        let len = u32::try_from(packet.payload().len()).unwrap();
        let sum = pseudo_header_sum(packet.source, packet.destination, packet.protocol, len);
        assert_eq!(
            sum,
            be16(packet.bytes[at], packet.bytes[at + 1]),
            "{sample}"
        );
        assert!(
            !transport_checksum_ok(&packet),
            "a partial checksum is no checksum"
        );
    }
}

#[test]
fn a_udp_checksum_of_zero_is_for_ipv4_only() {
    for (sample, at, expected) in [(samples::UDP_V4, 26, true), (samples::UDP_V6, 46, false)] {
        let mut packet = bytes(sample);
        packet[at..at + 2].fill(0);
        assert_eq!(
            transport_checksum_ok(&IpPacket::parse(&packet).unwrap()),
            expected
        );
    }
}

#[test]
fn a_fragment_never_verifies_and_an_unknown_protocol_always() {
    for v4 in [true, false] {
        let [first, _] = samples::big_fragments(v4);
        assert!(!transport_checksum_ok(&IpPacket::parse(&first).unwrap()));
    }
    let mut sctp = bytes(samples::UDP_V6);
    sctp[6] = super::super::protocol::SCTP;
    assert!(transport_checksum_ok(&IpPacket::parse(&sctp).unwrap()));
}

#[test]
fn a_udp_length_beyond_the_packet_does_not_verify() {
    let mut packet = bytes(samples::UDP_V4);
    packet[25] += 1;
    assert!(!transport_checksum_ok(&IpPacket::parse(&packet).unwrap()));
}
