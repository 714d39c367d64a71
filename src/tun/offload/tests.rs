//! Literal bytes follow `struct virtio_net_hdr` of
//! include/uapi/linux/virtio_net.h, little-endian.

use proptest::prelude::*;

use super::*;

fn written(header: VnetHeader) -> [u8; VNET_HEADER_LEN] {
    // Every byte has to be written, so start from ones.
    let mut bytes = [0xff; VNET_HEADER_LEN];
    header.write(&mut bytes);
    bytes
}

#[test]
fn an_ordinary_packet_is_ten_zeros() {
    assert_eq!(written(VnetHeader::none()), [0; 10]);
    let header = VnetHeader::parse(&[0; 10]).unwrap();
    assert_eq!(header, VnetHeader::none());
    assert_eq!(header.checksum_state(20), Ok(ChecksumState::MustVerify));
}

#[test]
fn checksums_left_to_the_kernel() {
    // IPv4 without options: the transport header starts at 20 = 0x14.
    assert_eq!(
        written(VnetHeader::tcp_checksum(20)),
        [1, 0, 0, 0, 0, 0, 0x14, 0, 16, 0]
    );
    assert_eq!(
        written(VnetHeader::udp_checksum(20)),
        [1, 0, 0, 0, 0, 0, 0x14, 0, 6, 0]
    );
    // ICMPv6 behind an IPv6 header: checksum at 2 (RFC 4443 section 2.1).
    assert_eq!(
        written(VnetHeader::needs_checksum(40, 2)),
        [1, 0, 0, 0, 0, 0, 0x28, 0, 2, 0]
    );
}

#[test]
fn tcp_super_packets() {
    // 20 bytes IPv4, 32 bytes TCP, segments of 1410 = 0x0582.
    assert_eq!(
        written(VnetHeader::tcp_segments(IpVersion::Ipv4, 52, 1410, 20)),
        [1, 1, 52, 0, 0x82, 0x05, 20, 0, 16, 0]
    );
    assert_eq!(
        written(VnetHeader::tcp_segments(IpVersion::Ipv6, 60, 1390, 40)),
        [1, 4, 60, 0, 0x6e, 0x05, 40, 0, 16, 0]
    );
}

#[test]
fn what_the_kernel_hands_over() {
    let tso = VnetHeader::parse(&[1, 0x81, 52, 0, 0x82, 0x05, 20, 0, 16, 0]).unwrap();
    assert_eq!(
        (tso.gso, tso.ecn, tso.header_len, tso.gso_size),
        (Gso::TcpV4, true, 52, 1410)
    );
    assert_eq!(
        tso.checksum_state(64_860),
        Ok(ChecksumState::Partial {
            start: 20,
            offset: 16
        })
    );

    let uso = VnetHeader::parse(&[1, 5, 28, 0, 0xb0, 0x04, 20, 0, 6, 0]).unwrap();
    assert_eq!(
        (uso.gso, uso.ecn, uso.gso_size),
        (Gso::UdpDatagrams, false, 1200)
    );

    let ufo = VnetHeader::parse(&[1, 3, 28, 0, 1, 0, 20, 0, 6, 0]).unwrap();
    assert_eq!(ufo.gso, Gso::UdpFragments);

    // A packet that came over a real network, verified by its card.
    let valid = VnetHeader::parse(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(valid.checksum_state(20), Ok(ChecksumState::Valid));
}

#[test]
fn nonsense_is_named() {
    let gso = |gso_type, size| VnetHeader::parse(&[0, gso_type, 0, 0, size, 0, 0, 0, 0, 0]);
    assert_eq!(gso(2, 1), Err(VnetHeaderError::UnknownGso(2)));
    // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, never asked for.
    assert_eq!(gso(0x21, 1), Err(VnetHeaderError::UnknownGso(0x21)));
    assert_eq!(gso(1, 0), Err(VnetHeaderError::NoGsoSize(1)));

    let header = VnetHeader::udp_checksum(20);
    assert_eq!(
        header.checksum_state(28),
        Ok(ChecksumState::Partial {
            start: 20,
            offset: 6
        })
    );
    let error = header.checksum_state(27).unwrap_err();
    assert_eq!(
        error,
        VnetHeaderError::ChecksumOutside {
            start: 20,
            offset: 6,
            packet_len: 27
        }
    );
    let far = VnetHeader::needs_checksum(u16::MAX, u16::MAX);
    assert!(far.checksum_state(65_535).is_err());
}

proptest! {
    /// Whatever parses is written back byte for byte, and nothing panics.
    #[test]
    fn parse_and_write_are_inverse(bytes: [u8; VNET_HEADER_LEN], packet_len in 0_usize..70_000) {
        if let Ok(header) = VnetHeader::parse(&bytes) {
            prop_assert_eq!(written(header), bytes);
            if let Ok(ChecksumState::Partial { start, offset }) = header.checksum_state(packet_len) {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= packet_len);
            }
        }
    }
}
