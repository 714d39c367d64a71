//! Frames as smoltcp's packets leave them, checked by a second hand.

use std::net::SocketAddr;

use super::*;
use crate::dataplane::testing::{Random, deliver};
use crate::packet::{IpPacket, TcpSegment, transport_checksum_ok};

/// A TCP packet as smoltcp writes it without checksum: 20 bytes of header, the
/// checksum field 0, and `len` bytes of data.
fn packet(source: SocketAddr, destination: SocketAddr, options: usize, len: usize) -> Vec<u8> {
    let tcp_header = 20 + options;
    let (mut packet, start) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (20 + tcp_header + len) as u16;
            let mut header = vec![0x45, 0];
            header.extend(total.to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = !smoltcp_sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            (header, 20)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(((tcp_header + len) as u16).to_be_bytes());
            header.extend([6, 64]);
            header.extend(source.octets());
            header.extend(destination.octets());
            (header, 40)
        }
        _ => unreachable!("two families"),
    };
    let mut random = Random::new(len as u64);
    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend(0xffff_fff0_u32.to_be_bytes());
    packet.extend(0x0102_0304_u32.to_be_bytes());
    packet.extend([((tcp_header / 4) as u8) << 4, 0x19]);
    packet.extend([0x12, 0x34, 0, 0, 0, 0]);
    packet.resize(start + tcp_header, 1);
    packet.extend((0..len).map(|_| random.next() as u8));
    packet
}

fn smoltcp_sum(header: &[u8]) -> u16 {
    smoltcp::wire::Ipv4Packet::new_unchecked(header).verify_checksum();
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn both() -> [(SocketAddr, SocketAddr); 2] {
    [
        (
            "10.0.0.3:443".parse().unwrap(),
            "10.1.65.5:40000".parse().unwrap(),
        ),
        (
            "[fd00:10::3]:443".parse().unwrap(),
            "[fd00:10:1:65::5]:40000".parse().unwrap(),
        ),
    ]
}

#[test]
fn the_kernel_completes_the_checksum_of_a_packet() {
    for (source, destination) in both() {
        for (options, len) in [(0, 0), (0, 1), (4, 2), (20, 1_409), (12, 65_443)] {
            let mut packet = packet(source, destination, options, len);
            let header = finish_tcp(&mut packet, Outgoing::WHOLE);
            let sent = deliver(header, &packet);
            assert_eq!(sent.len(), 1);
            let parsed = IpPacket::parse(&sent[0]).unwrap();
            assert!(transport_checksum_ok(&parsed), "{source} {len}");
            assert_eq!(TcpSegment::parse(&parsed).unwrap().payload.len(), len);
        }
    }
}

/// Only the checksum field differs from what smoltcp wrote.
#[test]
fn nothing_else_is_touched() {
    for (source, destination) in both() {
        let before = packet(source, destination, 4, 100);
        let mut after = before.clone();
        finish_tcp(&mut after, Outgoing::WHOLE);
        let at = if source.is_ipv4() { 36 } else { 56 };
        assert_ne!(before[at..at + 2], after[at..at + 2]);
        after[at..at + 2].fill(0);
        assert_eq!(before, after);
    }
}

/// A size that is the client's MSS has room for options.
#[test]
fn segments_with_options_are_no_longer_than_the_mss() {
    for (source, destination) in both() {
        let mut whole = packet(source, destination, 12, 5_000);
        let how = Outgoing {
            segment_size: Some(1_410),
            with_options: true,
        };
        let header = finish_tcp(&mut whole, how);
        let sent = deliver(header, &whole);
        let lengths = sent.iter().map(|packet| {
            let parsed = IpPacket::parse(packet).unwrap();
            TcpSegment::parse(&parsed).unwrap().payload.len()
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [1_398, 1_398, 1_398, 806]);
    }
}

#[test]
fn the_kernel_cuts_a_super_packet() {
    for (source, destination) in both() {
        for (options, len, size) in [
            (0, 1_411, 1_410_u16),
            (0, 60_000, 1_410),
            (12, 2_820, 1_410),
            (4, 5_000, 48),
        ] {
            let mut whole = packet(source, destination, options, len);
            let how = Outgoing {
                segment_size: Some(size),
                ..Outgoing::WHOLE
            };
            let header = finish_tcp(&mut whole, how);
            let sent = deliver(header, &whole);
            assert_eq!(sent.len(), len.div_ceil(size.into()));
            let mut place = 0xffff_fff0_u32;
            let mut data = Vec::new();
            for (index, packet) in sent.iter().enumerate() {
                let parsed = IpPacket::parse(packet).unwrap();
                assert!(transport_checksum_ok(&parsed));
                let segment = TcpSegment::parse(&parsed).unwrap();
                assert_eq!(segment.seq, place);
                assert_eq!(segment.header_len, 20 + options);
                assert_eq!(segment.flags.fin(), index + 1 == sent.len());
                place = place.wrapping_add(segment.payload.len() as u32);
                data.extend(segment.payload);
            }
            assert!(whole.ends_with(&data) && data.len() == len);
        }
    }
}
