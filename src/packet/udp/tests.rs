use super::super::samples::{self, bytes};
use super::super::{ipv4_header_checksum_ok, transport_checksum_ok};
use super::*;

#[test]
fn reads_a_captured_datagram() {
    for sample in [samples::UDP_V4, samples::UDP_V6] {
        let packet = bytes(sample);
        let datagram = UdpDatagram::parse(&IpPacket::parse(&packet).unwrap()).unwrap();
        assert_eq!(
            (datagram.source_port, datagram.destination_port),
            (40_001, 53)
        );
        assert_eq!(datagram.payload, b"\x12\x34 who is it?");
    }
}

#[test]
fn the_datagrams_own_length_counts() {
    for (length, expected) in [
        (8, Ok(0)),
        (20, Ok(12)),
        (7, Err(Malformed::UdpLength)),
        (0, Err(Malformed::UdpLength)),
        (22, Err(Malformed::UdpLength)),
    ] {
        let mut packet = bytes(samples::UDP_V4);
        packet[25] = length;
        let datagram = UdpDatagram::parse(&IpPacket::parse(&packet).unwrap());
        assert_eq!(
            datagram.map(|datagram| datagram.payload.len()),
            expected,
            "{length}"
        );
    }
    let mut packet = bytes(samples::UDP_V4);
    packet[3] = 27;
    let packet = IpPacket::parse(&packet).unwrap();
    assert_eq!(
        UdpDatagram::parse(&packet),
        Err(Malformed::TransportTruncated)
    );
}

#[test]
fn a_partial_checksum_is_the_kernels_own() {
    let addresses = |pair: [&str; 2]| pair.map(|address| address.parse().unwrap());
    let [source, destination] = addresses(["10.1.15.7:40001", "10.0.0.3:53"]);
    let mut out = [0xff; 60];
    let len = udp_header(
        source,
        destination,
        13,
        0xf84c,
        ChecksumMode::Partial,
        &mut out,
    );
    let mut expected = bytes(samples::UDP_V4);
    // Linux forbids fragmenting a small datagram of a connected socket.
    expected[6] = 0;
    expected[10] += 0x40;
    assert_eq!(len, Ok(28));
    assert_eq!(out[..28], expected[..28]);

    let [source, destination] = addresses(["[fd00::7]:40001", "[fd00::3]:53"]);
    let len = udp_header(source, destination, 13, 0, ChecksumMode::Partial, &mut out);
    let mut expected = bytes(samples::UDP_V6);
    expected[1..4].fill(0);
    assert_eq!(len, Ok(48));
    assert_eq!(out[..48], expected[..48]);
}

#[test]
fn the_largest_datagram_fits_and_no_larger() {
    let [source, destination] = ["10.0.0.3:53", "10.1.15.7:40001"].map(|a| a.parse().unwrap());
    let mut packet = vec![0x5a; 28 + 65_507];
    let (head, payload) = packet.split_at_mut(28);
    let full = ChecksumMode::Full(payload);
    assert_eq!(
        udp_header(source, destination, 65_507, 9, full, head),
        Ok(28)
    );
    let parsed = IpPacket::parse(&packet).unwrap();
    assert_eq!(parsed.bytes.len(), 65_535);
    assert!(ipv4_header_checksum_ok(&parsed) && transport_checksum_ok(&parsed));
    let mut head = [0; 28];
    for len in [65_508, usize::MAX] {
        let result = udp_header(
            source,
            destination,
            len,
            9,
            ChecksumMode::Partial,
            &mut head,
        );
        assert_eq!(result, Err(CannotBuild::TooLong), "{len}");
    }
}

#[test]
fn what_cannot_be_written_is_named() {
    let v4 = "10.0.0.3:53".parse().unwrap();
    let v6 = "[fd00::7]:40001".parse().unwrap();
    let mut out = [0; 48];
    let mut build =
        |from, to, len, mode, space: usize| udp_header(from, to, len, 1, mode, &mut out[..space]);
    assert_eq!(
        build(v4, v6, 1, ChecksumMode::Partial, 48),
        Err(CannotBuild::Families)
    );
    assert_eq!(
        build(v6, v4, 1, ChecksumMode::Partial, 48),
        Err(CannotBuild::Families)
    );
    assert_eq!(
        build(v4, v4, 1, ChecksumMode::Partial, 27),
        Err(CannotBuild::Space)
    );
    assert_eq!(
        build(v6, v6, 1, ChecksumMode::Partial, 47),
        Err(CannotBuild::Space)
    );
    assert_eq!(
        build(v6, v6, 1, ChecksumMode::Partial, 0),
        Err(CannotBuild::Space)
    );
    assert_eq!(
        build(v4, v4, 2, ChecksumMode::Full(b"x"), 48),
        Err(CannotBuild::PayloadLength)
    );
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let [source, destination] = ["10.0.0.3:53", "10.1.15.7:40001"].map(|a| a.parse().unwrap());
    // With the payload's only word chosen so that everything sums up to ffff.
    let header = full_header(source, destination, &[0, 0]).unwrap();
    let payload = [header[6], header[7]];
    let header = full_header(source, destination, &payload).unwrap();
    assert_eq!(header[6..], [0xff, 0xff]);
}
