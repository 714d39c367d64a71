use super::super::samples::{self, bytes};
use super::super::{
    FragmentLimits, FragmentOutcome, FragmentStore, UdpDatagram, echo_reply, transport_checksum_ok,
};
use super::*;
use std::time::Instant;

fn addresses() -> [SocketAddr; 2] {
    ["[fd00::3]:53", "[fd00::7]:40001"].map(|address| address.parse().unwrap())
}

fn cut_udp(payload: &[u8]) -> Vec<Vec<u8>> {
    let [source, destination] = addresses();
    let mut packets = Vec::new();
    let count = udp_fragments_v6(
        source,
        destination,
        payload,
        77,
        &mut Vec::new(),
        |packet| {
            packets.push(packet.to_vec());
        },
    );
    assert_eq!(count, Ok(packets.len()));
    packets
}

fn join(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut store = FragmentStore::new(FragmentLimits::default());
    let now = Instant::now();
    let mut outcomes: Vec<_> = packets
        .iter()
        .map(|packet| store.insert(now, &IpPacket::parse(packet).unwrap()))
        .collect();
    match outcomes.pop() {
        Some(FragmentOutcome::Complete(whole)) => {
            assert!(
                outcomes
                    .iter()
                    .all(|outcome| *outcome == FragmentOutcome::Pending)
            );
            whole
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_datagram_that_fits_stays_whole() {
    // 1280 bytes less 40 of IPv6 and 8 of UDP.
    let packets = cut_udp(&[7; 1232]);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].len(), 1280);
    assert_eq!(IpPacket::parse(&packets[0]).unwrap().fragment, None);
}

#[test]
fn a_longer_one_is_cut_at_the_minimum_mtu() {
    for (len, count) in [(1233, 2), (2456, 2), (2457, 3), (65_507, 54), (65_527, 54)] {
        let payload: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
        let packets = cut_udp(&payload);
        assert_eq!(packets.len(), count, "{len}");
        let (last, others) = packets.split_last().unwrap();
        assert!(others.iter().all(|packet| packet.len() == 1280), "{len}");
        assert!(last.len() <= 1280, "{len}");
        let whole = join(&packets);
        let packet = IpPacket::parse(&whole).unwrap();
        assert!(transport_checksum_ok(&packet), "{len}");
        assert_eq!(
            UdpDatagram::parse(&packet).unwrap().payload,
            payload,
            "{len}"
        );
    }
}

#[test]
fn the_fragment_header_is_that_of_rfc_8200() {
    let packets = cut_udp(&[0; 1500]);
    // Next header UDP, reserved, offset 0 with more, identification 77.
    assert_eq!(packets[0][40..48], [17, 0, 0, 1, 0, 0, 0, 77]);
    // Offset 1232 = 04d0, the last one: 1508 bytes in all leave 276.
    assert_eq!(packets[1][40..48], [17, 0, 0x04, 0xd0, 0, 0, 0, 77]);
    assert_eq!(packets[1].len(), 48 + 276);
    // Payload length and next header, the fragment header.
    assert_eq!(packets[1][4..7], [0x01, 0x1c, 44]);
}

#[test]
fn a_long_echo_reply_is_cut_too() {
    let mut ping = bytes(samples::PING_V6);
    ping.extend_from_slice(&samples::big_payload());
    let length = u16::try_from(ping.len() - 40).unwrap();
    ping[4..6].copy_from_slice(&length.to_be_bytes());
    let mut reply = Vec::new();
    echo_reply(&IpPacket::parse(&ping).unwrap(), &mut reply).unwrap();
    let mut packets = Vec::new();
    let parsed = IpPacket::parse(&reply).unwrap();
    let count = fragment_v6(&parsed, 5, &mut Vec::new(), |packet| {
        packets.push(packet.to_vec())
    });
    assert_eq!(count, Ok(2));
    assert_eq!(join(&packets), reply);
}

#[test]
fn what_cannot_be_cut_is_named() {
    let [source, destination] = addresses();
    let v4 = "10.0.0.3:53".parse().unwrap();
    let mut scratch = Vec::new();
    let mut udp = |from, to, payload: &[u8]| {
        udp_fragments_v6(from, to, payload, 1, &mut scratch, |_| {
            panic!("nothing to send")
        })
    };
    assert_eq!(udp(v4, v4, &[]), Err(CannotBuild::NotPlainIpv6));
    assert_eq!(udp(v4, destination, &[]), Err(CannotBuild::NotPlainIpv6));
    assert_eq!(
        udp(source, destination, &[0; 65_528]),
        Err(CannotBuild::TooLong)
    );
    for packet in [
        bytes(samples::PING_V4),
        samples::big_fragments(false)[0].clone(),
    ] {
        let packet = IpPacket::parse(&packet).unwrap();
        let result = fragment_v6(&packet, 1, &mut scratch, |_| panic!("nothing to send"));
        assert_eq!(result, Err(CannotBuild::NotPlainIpv6));
    }
}
