use super::super::samples::{self, bytes};
use super::super::{ipv4_header_checksum_ok, transport_checksum_ok};
use super::*;
use smoltcp::wire::TcpControl;

fn reset(packet: &[u8]) -> Result<Vec<u8>, NoReply> {
    // What stood in the buffer before must not matter.
    let mut out = vec![0xff; 100];
    tcp_reset(&IpPacket::parse(packet)?, &mut out).map(|()| out)
}

#[test]
fn reads_a_captured_syn() {
    let packet = bytes(samples::SYN_V4);
    let packet = IpPacket::parse(&packet).unwrap();
    let segment = TcpSegment::parse(&packet).unwrap();
    assert_eq!(
        (segment.source_port, segment.destination_port),
        (40_000, 443)
    );
    assert_eq!(
        (segment.seq, segment.ack, segment.window),
        (0x47b3_8f9a, 0, 64_860)
    );
    assert_eq!((segment.header_len, segment.options.len()), (40, 20));
    assert!(segment.flags.syn() && segment.flags.opens() && !segment.flags.ack());
    assert_eq!(segment.max_segment_size(), Some(1410));
    assert_eq!(segment.segment_len(), 1);
    assert!(segment.payload.is_empty());
}

#[test]
fn the_reset_is_the_kernels_own() {
    assert_eq!(
        reset(&bytes(samples::SYN_V4)).unwrap(),
        bytes(samples::RST_V4)
    );
    let mut expected = bytes(samples::RST_V6);
    // The kernel makes up a flow label; we have none.
    expected[1..4].fill(0);
    let reset = reset(&bytes(samples::SYN_V6)).unwrap();
    assert!(transport_checksum_ok(&IpPacket::parse(&reset).unwrap()));
    // It leaves the checksum of this one partial.
    expected[56..58].copy_from_slice(&reset[56..58]);
    assert_eq!(reset, expected);
}

#[test]
fn a_segment_with_ack_is_reset_at_that_number() {
    let [client, server] = ["10.1.15.7:40000", "10.0.0.3:443"].map(|a| a.parse().unwrap());
    let data = samples::tcp(
        client,
        server,
        TcpControl::Psh,
        7,
        Some(0xdead_beef),
        b"late",
    );
    let reset = reset(&data).unwrap();
    let packet = IpPacket::parse(&reset).unwrap();
    assert!(ipv4_header_checksum_ok(&packet) && transport_checksum_ok(&packet));
    let segment = TcpSegment::parse(&packet).unwrap();
    assert_eq!((segment.seq, segment.flags), (0xdead_beef, TcpFlags::RST));
}

#[test]
fn without_ack_the_reset_acknowledges_data_syn_and_fin() {
    let [client, server] = ["[fd00::7]:40000", "[fd00::3]:443"].map(|a| a.parse().unwrap());
    let data = samples::tcp(client, server, TcpControl::Fin, u32::MAX, None, b"four");
    let reset = reset(&data).unwrap();
    let segment = TcpSegment::parse(&IpPacket::parse(&reset).unwrap()).unwrap();
    assert_eq!((segment.seq, segment.ack), (0, 4));
    assert_eq!(segment.flags, TcpFlags::RST | TcpFlags::ACK);
}

#[test]
fn a_reset_is_not_answered() {
    assert_eq!(reset(&bytes(samples::RST_V4)), Err(NoReply::Reset));
    assert_eq!(reset(&bytes(samples::RST_V6)), Err(NoReply::Reset));
}

#[test]
fn a_reset_goes_to_one_other_host() {
    for source in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255; 4],
        [10, 0, 0, 3],
    ] {
        let mut packet = bytes(samples::SYN_V4);
        packet[12..16].copy_from_slice(&source);
        assert_eq!(reset(&packet), Err(NoReply::Source), "{source:?}");
    }
    assert_eq!(
        reset(&bytes(samples::UDP_V4)),
        Err(NoReply::Malformed(Malformed::OtherProtocol))
    );
}

#[test]
fn a_data_offset_must_fit() {
    for (offset, expected) in [
        (0x40, Malformed::DataOffset),
        (0xb0, Malformed::DataOffset),
        (0x00, Malformed::DataOffset),
    ] {
        let mut packet = bytes(samples::SYN_V4);
        packet[32] = offset;
        assert_eq!(
            TcpSegment::parse(&IpPacket::parse(&packet).unwrap()),
            Err(expected)
        );
    }
    let mut packet = bytes(samples::SYN_V4);
    packet[3] = 39;
    let packet = IpPacket::parse(&packet).unwrap();
    assert_eq!(
        TcpSegment::parse(&packet),
        Err(Malformed::TransportTruncated)
    );
}

#[test]
fn odd_options_give_no_segment_size() {
    for (options, expected) in [
        ([1, 1, 2, 4, 5, 180, 0, 0], Some(1460)),
        ([0, 1, 2, 4, 5, 180, 0, 0], None),
        ([2, 3, 5, 180, 0, 0, 0, 0], None),
        ([8, 0, 2, 4, 5, 180, 0, 0], None),
        ([8, 1, 2, 4, 5, 180, 0, 0], None),
        ([8, 200, 2, 4, 5, 180, 0, 0], None),
        ([1, 1, 1, 1, 1, 2, 4, 5], None),
        ([1, 1, 1, 1, 1, 1, 1, 8], None),
    ] {
        let segment = TcpSegment {
            source_port: 1,
            destination_port: 2,
            seq: 0,
            ack: 0,
            flags: TcpFlags::SYN,
            window: 0,
            header_len: 28,
            options: &options,
            payload: &[],
        };
        assert_eq!(segment.max_segment_size(), expected, "{options:?}");
    }
}
