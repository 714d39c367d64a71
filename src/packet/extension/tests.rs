use super::super::IpPacket;
use super::super::protocol::UDP;
use super::super::samples::{self, bytes};
use super::*;

/// The captured datagram with `headers` in front of it; each names the next one's type.
fn with_headers(first: u8, headers: &[u8]) -> Vec<u8> {
    let mut packet = bytes(samples::UDP_V6);
    packet[6] = first;
    let length = u16::try_from(21 + headers.len()).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet.splice(40..40, headers.iter().copied());
    packet
}

#[test]
fn walks_to_the_transport_header() {
    let headers = [
        // Hop-by-hop options with a router alert (RFC 2711) and two bytes of padding.
        DESTINATION_OPTIONS,
        0,
        5,
        2,
        0,
        0,
        1,
        0,
        // Destination options, 16 bytes, padded with PadN and single bytes.
        ROUTING,
        1,
        1,
        9,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        // A routing header at its last stop.
        UDP,
        0,
        4,
        0,
        0,
        0,
        0,
        0,
    ];
    let packet = with_headers(HOP_BY_HOP, &headers);
    let packet = IpPacket::parse(&packet).unwrap();
    assert_eq!((packet.protocol, packet.header_len), (UDP, 72));
    assert_eq!(packet.payload().len(), 21);
}

#[test]
fn ends_behind_a_fragment_header() {
    let headers = [
        FRAGMENT,
        0,
        1,
        4,
        0,
        0,
        0,
        0,
        DESTINATION_OPTIONS,
        0,
        0x12,
        0x31,
        0xde,
        0xad,
        0xbe,
        0xef,
    ];
    let packet = with_headers(DESTINATION_OPTIONS, &headers);
    let packet = IpPacket::parse(&packet).unwrap();
    assert_eq!(
        (packet.protocol, packet.header_len),
        (DESTINATION_OPTIONS, 56)
    );
    let expected = FragmentInfo {
        ident: 0xdead_beef,
        offset: 0x1230,
        more: true,
        header_at: 48,
        next_header_at: 40,
    };
    assert_eq!(packet.fragment, Some(expected));
}

#[test]
fn refuses_what_must_not_be_skipped() {
    let error = |first, headers: &[u8]| {
        IpPacket::parse(&with_headers(first, headers)).map(|packet| packet.protocol)
    };
    // An option of an unknown type whose two highest bits ask to discard; with 00 it is skipped.
    for (kind, expected) in [
        (0x1e, Ok(UDP)),
        (0x5e, Err(Malformed::ExtensionHeader)),
        (0x9e, Err(Malformed::ExtensionHeader)),
        (0xde, Err(Malformed::ExtensionHeader)),
    ] {
        assert_eq!(
            error(DESTINATION_OPTIONS, &[UDP, 0, kind, 4, 0, 0, 0, 0]),
            expected
        );
    }
    let cases: [(u8, &[u8], Malformed); 6] = [
        // An option longer than its header.
        (
            DESTINATION_OPTIONS,
            &[UDP, 0, 1, 5, 0, 0, 0, 0],
            Malformed::ExtensionHeader,
        ),
        // An option without its length.
        (
            DESTINATION_OPTIONS,
            &[UDP, 0, 1, 3, 0, 0, 0, 1],
            Malformed::ExtensionHeader,
        ),
        // A header longer than the packet.
        (
            DESTINATION_OPTIONS,
            &[UDP, 4, 1, 4, 0, 0, 0, 0],
            Malformed::ExtensionHeader,
        ),
        // Hop-by-hop options behind another header.
        (
            DESTINATION_OPTIONS,
            &[HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 1, 4, 0, 0, 0, 0],
            Malformed::ExtensionHeader,
        ),
        // Routing headers with a segment left: type 0 and segment routing.
        (
            ROUTING,
            &[UDP, 0, 0, 1, 0, 0, 0, 0],
            Malformed::RoutingHeader,
        ),
        (
            ROUTING,
            &[UDP, 0, 4, 2, 0, 0, 0, 0],
            Malformed::RoutingHeader,
        ),
    ];
    for (first, headers, expected) in cases {
        assert_eq!(error(first, headers), Err(expected), "{headers:?}");
    }
}

#[test]
fn gives_up_after_eight_headers() {
    let chain = |count: usize| {
        let mut headers = [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(count);
        headers[(count - 1) * 8] = UDP;
        with_headers(DESTINATION_OPTIONS, &headers)
    };
    assert_eq!(IpPacket::parse(&chain(8)).unwrap().header_len, 104);
    assert_eq!(IpPacket::parse(&chain(9)), Err(Malformed::ExtensionHeader));
}
