//! Whatever the bytes, nothing panics; and what we write is read alike by smoltcp.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
};
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet};
use smoltcp::wire::{Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr};

use super::*;

/// Calls everything that reads or answers a packet.
fn exercise(bytes: &[u8]) {
    let Ok(packet) = IpPacket::parse(bytes) else {
        return;
    };
    assert!(bytes.starts_with(packet.bytes));
    assert_eq!(
        packet.header_len + packet.payload().len(),
        packet.bytes.len()
    );
    assert_eq!(packet.is_ipv4(), packet.destination.is_ipv4());
    ipv4_header_checksum_ok(&packet);
    transport_checksum_ok(&packet);
    if let Ok(segment) = TcpSegment::parse(&packet) {
        let parts = segment.header_len + segment.payload.len();
        assert_eq!(parts, packet.payload().len());
        assert_eq!(segment.options.len() + 20, segment.header_len);
        segment.max_segment_size();
        segment.segment_len();
    }
    if let Ok(datagram) = UdpDatagram::parse(&packet) {
        assert!(datagram.payload.len() + 8 <= packet.payload().len());
    }
    let _ = Echo::parse(&packet);

    let mut out = Vec::new();
    let answers = [
        tcp_reset(&packet, &mut out).map(|()| out.clone()),
        echo_reply(&packet, &mut out).map(|()| out.clone()),
        unreachable(&packet, Unreachable::Host, &mut out).map(|()| out.clone()),
    ];
    for answer in answers.iter().flatten() {
        let answer = IpPacket::parse(answer).unwrap();
        assert!(ipv4_header_checksum_ok(&answer) && transport_checksum_ok(&answer));
        assert_eq!(
            (answer.source, answer.destination),
            (packet.destination, packet.source)
        );
        // No answer is answered with an error, so that two of us cannot keep each other busy.
        if answer.protocol != protocol::TCP && TcpSegment::parse(&packet).is_err() {
            assert!(echo_reply(&answer, &mut out).is_err());
        }
        assert!(tcp_reset(&answer, &mut out).is_err());
    }
    let _ = fragment_v6(&packet, 1, &mut out, |fragment| {
        assert!(fragment.len() <= IPV6_MINIMUM_MTU);
        IpPacket::parse(fragment).unwrap();
    });
    let mut store = FragmentStore::new(FragmentLimits::default());
    let now = Instant::now();
    if let FragmentOutcome::Complete(whole) = store.insert(now, &packet) {
        assert_eq!(IpPacket::parse(&whole).unwrap().fragment, None);
    }
    store.expire(now + Duration::from_secs(60));
    assert!(store.is_empty());
}

fn endpoints() -> impl Strategy<Value = [SocketAddr; 2]> {
    let client = 1u16..;
    (any::<bool>(), 1u8..255, client, 1u16..).prop_map(|(v4, host, from, to)| {
        let [client, server]: [IpAddr; 2] = if v4 {
            [[10, 1, 65, host].into(), [10, 0, 0, 3].into()]
        } else {
            [
                [0xfd00, 0, 0, 0, 0, 0, 1, u16::from(host)].into(),
                [0xfd00, 0, 0, 0, 0, 0, 0, 3].into(),
            ]
        };
        [SocketAddr::new(client, from), SocketAddr::new(server, to)]
    })
}

fn control() -> impl Strategy<Value = TcpControl> {
    prop_oneof![
        Just(TcpControl::None),
        Just(TcpControl::Psh),
        Just(TcpControl::Syn),
        Just(TcpControl::Fin),
        Just(TcpControl::Rst),
    ]
}

fn data(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

/// An echo request with whole checksums, from smoltcp.
fn ping(client: IpAddr, server: IpAddr, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let caps = ChecksumCapabilities::default();
    match (client, server) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let echo = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let ip = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header: IpProtocol::Icmp,
                payload_len: echo.buffer_len(),
                hop_limit: 7,
            };
            let mut out = vec![0; ip.buffer_len() + echo.buffer_len()];
            let mut packet = Ipv4Packet::new_unchecked(&mut out[..]);
            ip.emit(&mut packet, &caps);
            echo.emit(
                &mut Icmpv4Packet::new_unchecked(packet.payload_mut()),
                &caps,
            );
            out
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let echo = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let ip = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header: IpProtocol::Icmpv6,
                payload_len: echo.buffer_len(),
                hop_limit: 7,
            };
            let mut out = vec![0; ip.buffer_len() + echo.buffer_len()];
            let mut packet = Ipv6Packet::new_unchecked(&mut out[..]);
            ip.emit(&mut packet);
            let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
            echo.emit(&src_addr, &dst_addr, &mut message, &caps);
            out
        }
        _ => panic!("addresses of two families"),
    }
}

/// A valid packet of any kind that we read, IPv6 extension headers and fragments among them.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let whole = (endpoints(), control(), any::<[u32; 2]>(), 0u8..4, data(300)).prop_map(
        |([client, server], control, [seq, ack], kind, data)| match kind {
            0 => samples::tcp(client, server, control, seq, Some(ack), &data),
            1 => samples::tcp(client, server, control, seq, None, &data),
            2 => samples::udp(client, server, &data),
            _ => ping(client.ip(), server.ip(), 1, 2, &data),
        },
    );
    let fragment = (
        endpoints(),
        any::<u32>(),
        0u16..8191,
        any::<bool>(),
        data(300),
    )
        .prop_map(|([client, server], ident, units, more, data)| {
            samples::fragment(client.ip(), server.ip(), ident, units << 3, more, &data)
        });
    let extended = (
        endpoints(),
        prop::sample::select(vec![0, 43, 60, 44]),
        data(300),
    )
        .prop_map(|([client, server], kind, data)| {
            let mut packet = samples::udp(client, server, &data);
            if packet[0] >> 4 == 6 {
                let length = u16::try_from(packet.len() - 32).unwrap();
                packet[4..6].copy_from_slice(&length.to_be_bytes());
                packet[6] = kind;
                packet.splice(40..40, [protocol::UDP, 0, 1, 0, 1, 2, 0, 0]);
            }
            packet
        });
    prop_oneof![4 => whole, 1 => fragment, 1 => extended]
}

/// The checksum as RFC 1071 1 defines it, a word at a time.
fn naive_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        first in prop::option::of(prop::sample::select(vec![0x45, 0x46, 0x4f, 0x60, 0x6f])),
    ) {
        if let (Some(first), Some(byte)) = (first, bytes.first_mut()) {
            *byte = first;
        }
        exercise(&bytes);
    }

    #[test]
    fn damaged_packets_do_not_panic(
        packet in valid(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
        header_flips in prop::collection::vec((0usize..72, any::<u8>()), 0..3),
        cut in any::<prop::sample::Index>(),
        fit in any::<bool>(),
    ) {
        exercise(&packet);
        let mut damaged = packet;
        for (at, bit) in flips {
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
        }
        for (at, value) in header_flips {
            if let Some(byte) = damaged.get_mut(at) {
                *byte = value;
            }
        }
        exercise(&damaged);
        let cut = cut.index(damaged.len() + 1);
        let mut damaged = damaged[..cut].to_vec();
        if fit && cut >= 40 {
            // So that the cut hits the transport header, not the IP length.
            let (at, length) = if damaged[0] >> 4 == 4 { (2, cut) } else { (4, cut - 40) };
            damaged[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        exercise(&damaged);
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071(bytes in data(3_000)) {
        prop_assert_eq!(checksum::checksum(&bytes), !naive_sum(&bytes));
    }

    #[test]
    fn segments_of_smoltcp_read_alike(
        [client, server] in endpoints(),
        control in control(),
        [seq, ack] in any::<[u32; 2]>(),
        acked in any::<bool>(),
        data in data(2_000),
    ) {
        let packet = samples::tcp(client, server, control, seq, acked.then_some(ack), &data);
        let packet = IpPacket::parse(&packet).unwrap();
        prop_assert!(ipv4_header_checksum_ok(&packet) && transport_checksum_ok(&packet));
        let segment = TcpSegment::parse(&packet).unwrap();
        prop_assert_eq!(SocketAddr::new(packet.source, segment.source_port), client);
        prop_assert_eq!(SocketAddr::new(packet.destination, segment.destination_port), server);
        prop_assert_eq!((segment.seq, segment.payload), (seq, &data[..]));
        prop_assert_eq!(segment.flags.ack().then_some(segment.ack), acked.then_some(ack));
        prop_assert_eq!(segment.flags.syn(), control == TcpControl::Syn);
        prop_assert_eq!(segment.flags.fin(), control == TcpControl::Fin);
        prop_assert_eq!(segment.flags.rst(), control == TcpControl::Rst);
        prop_assert_eq!(segment.flags.psh(), control == TcpControl::Psh);
        let mss = (control == TcpControl::Syn).then_some(1410);
        prop_assert_eq!(segment.max_segment_size(), mss);
        let space = u32::try_from(data.len() + control.len()).unwrap();
        prop_assert_eq!(segment.segment_len(), space);
    }

    #[test]
    fn smoltcp_reads_our_resets(
        [client, server] in endpoints(),
        control in control(),
        [seq, ack] in any::<[u32; 2]>(),
        acked in any::<bool>(),
        data in data(300),
    ) {
        let segment = samples::tcp(client, server, control, seq, acked.then_some(ack), &data);
        let mut out = Vec::new();
        let result = tcp_reset(&IpPacket::parse(&segment).unwrap(), &mut out);
        if control == TcpControl::Rst {
            prop_assert_eq!(result, Err(NoReply::Reset));
            return Ok(());
        }
        prop_assert_eq!(result, Ok(()));
        let (source, destination) = (server.ip().into(), client.ip().into());
        let tcp = TcpPacket::new_checked(payload_by_smoltcp(&out, IpProtocol::Tcp)).unwrap();
        let caps = ChecksumCapabilities::default();
        let repr = TcpRepr::parse(&tcp, &source, &destination, &caps).unwrap();
        prop_assert_eq!((repr.src_port, repr.dst_port), (server.port(), client.port()));
        prop_assert_eq!(repr.control, TcpControl::Rst);
        let end = seq.wrapping_add(u32::try_from(data.len() + control.len()).unwrap());
        let expected = if acked {
            (TcpSeqNumber(ack as i32), None)
        } else {
            (TcpSeqNumber(0), Some(TcpSeqNumber(end as i32)))
        };
        prop_assert_eq!((repr.seq_number, repr.ack_number), expected);
        prop_assert!(repr.payload.is_empty());
    }

    #[test]
    fn smoltcp_reads_our_echo_replies(
        [client, server] in endpoints(),
        [ident, seq_no] in any::<[u16; 2]>(),
        data in data(3_000),
    ) {
        let request = ping(client.ip(), server.ip(), ident, seq_no, &data);
        let request = IpPacket::parse(&request).unwrap();
        prop_assert!(transport_checksum_ok(&request));
        let expected = Echo { ident, seq: seq_no, payload: &data };
        prop_assert_eq!(Echo::parse(&request), Ok(expected));
        let mut out = Vec::new();
        prop_assert_eq!(echo_reply(&request, &mut out), Ok(()));
        let caps = ChecksumCapabilities::default();
        match (server.ip(), client.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let message = payload_by_smoltcp(&out, IpProtocol::Icmpv6);
                let message = Icmpv6Packet::new_checked(message).unwrap();
                let repr = Icmpv6Repr::parse(&source, &destination, &message, &caps).unwrap();
                prop_assert_eq!(repr, Icmpv6Repr::EchoReply { ident, seq_no, data: &data });
            }
            _ => {
                let message = payload_by_smoltcp(&out, IpProtocol::Icmp);
                let message = Icmpv4Packet::new_checked(message).unwrap();
                let repr = Icmpv4Repr::parse(&message, &caps).unwrap();
                prop_assert_eq!(repr, Icmpv4Repr::EchoReply { ident, seq_no, data: &data });
            }
        }
    }

    #[test]
    fn smoltcp_reads_our_errors([client, server] in endpoints(), sent in data(3_000)) {
        let datagram = samples::udp(client, server, &sent);
        let mut out = Vec::new();
        let original = IpPacket::parse(&datagram).unwrap();
        prop_assert_eq!(port_unreachable(&original, &mut out), Ok(()));
        let caps = ChecksumCapabilities::default();
        match (server.ip(), client.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                prop_assert_eq!(out.len(), (datagram.len() + 48).min(1280));
                let message = payload_by_smoltcp(&out, IpProtocol::Icmpv6);
                prop_assert!(datagram.starts_with(&message[8..]));
                let message = Icmpv6Packet::new_checked(message).unwrap();
                let repr = Icmpv6Repr::parse(&source, &destination, &message, &caps).unwrap();
                let Icmpv6Repr::DstUnreachable { reason, header, data } = repr else {
                    return Err(TestCaseError::fail(format!("{repr:?}")));
                };
                prop_assert_eq!(reason, Icmpv6DstUnreachable::PortUnreachable);
                prop_assert_eq!((header.src_addr, header.dst_addr), (destination, source));
                prop_assert!(original.payload().starts_with(data));
            }
            _ => {
                prop_assert_eq!(out.len(), (datagram.len() + 28).min(576));
                let message = payload_by_smoltcp(&out, IpProtocol::Icmp);
                prop_assert!(datagram.starts_with(&message[8..]));
                // smoltcp's representation wants the whole packet quoted, so its views have to do.
                let message = Icmpv4Packet::new_checked(message).unwrap();
                prop_assert!(message.verify_checksum());
                prop_assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
                let code = Icmpv4DstUnreachable::from(message.msg_code());
                prop_assert_eq!(code, Icmpv4DstUnreachable::PortUnreachable);
                let quote = Ipv4Packet::new_unchecked(message.data());
                prop_assert_eq!(IpAddr::V4(quote.src_addr()), client.ip());
                prop_assert_eq!(IpAddr::V4(quote.dst_addr()), server.ip());
            }
        }
    }

    #[test]
    fn smoltcp_reads_our_datagrams(
        [client, server] in endpoints(),
        sent in data(2_000),
        ident in any::<u16>(),
    ) {
        let head = if client.is_ipv4() { 28 } else { 48 };
        let mut packet = vec![0xff; head];
        packet.extend_from_slice(&sent);
        let (space, payload) = packet.split_at_mut(head);
        let full = ChecksumMode::Full(payload);
        prop_assert_eq!(udp_header(server, client, sent.len(), ident, full, space), Ok(head));
        let (source, destination) = (server.ip().into(), client.ip().into());
        let udp = UdpPacket::new_checked(payload_by_smoltcp(&packet, IpProtocol::Udp)).unwrap();
        let caps = ChecksumCapabilities::default();
        let repr = UdpRepr::parse(&udp, &source, &destination, &caps).unwrap();
        prop_assert_eq!((repr.src_port, repr.dst_port), (server.port(), client.port()));
        prop_assert_eq!(udp.payload(), &sent[..]);

        // And our own view reads what we wrote.
        let parsed = IpPacket::parse(&packet).unwrap();
        prop_assert!(transport_checksum_ok(&parsed));
        prop_assert_eq!(UdpDatagram::parse(&parsed).unwrap().payload, &sent[..]);

        // The kernel finishes a partial checksum by summing from csum_start on, field included.
        let mut partial = packet.clone();
        let (space, _) = partial.split_at_mut(head);
        let mode = ChecksumMode::Partial;
        prop_assert_eq!(udp_header(server, client, sent.len(), ident, mode, space), Ok(head));
        let finished = match !naive_sum(&partial[head - 8..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        let at = head - 8 + usize::from(UDP_CHECKSUM_OFFSET);
        partial[at..at + 2].copy_from_slice(&finished.to_be_bytes());
        prop_assert_eq!(partial, packet);
    }
}

/// The payload of our packet as smoltcp sees it, its IP header checked.
fn payload_by_smoltcp(packet: &[u8], protocol: IpProtocol) -> &[u8] {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        let repr = Ipv4Repr::parse(&ip, &ChecksumCapabilities::default()).unwrap();
        assert_eq!((repr.next_header, repr.hop_limit), (protocol, HOP_LIMIT));
        ip.payload()
    } else {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        let repr = Ipv6Repr::parse(&ip).unwrap();
        assert_eq!((repr.next_header, repr.hop_limit), (protocol, HOP_LIMIT));
        ip.payload()
    }
}
