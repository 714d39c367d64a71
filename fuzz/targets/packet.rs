//! Whatever comes out of the TUN: parsed, answered, put together, without a panic.
//!
//! The input is a row of packets, each behind its length in two bytes.

use std::time::{Duration, Instant};

use kube_tun_proxy::packet::{
    Echo, FragmentLimits, FragmentOutcome, FragmentStore, IpPacket, TcpSegment, UdpDatagram,
    Unreachable, echo_reply, ipv4_header_checksum_ok, port_unreachable, tcp_ack, tcp_reset,
    transport_checksum_ok, udp_unreachable, unreachable,
};

/// Runs one input.
pub(crate) fn run(mut data: &[u8]) {
    let mut now = Instant::now();
    let mut store = FragmentStore::new(FragmentLimits::default());
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (packet, next) = rest.split_at(len);
        data = next;
        one(packet);
        if let Ok(parsed) = IpPacket::parse(packet) {
            let (held, cut) = (store.bytes(), parsed.fragment.is_some());
            match store.insert(now, &parsed) {
                FragmentOutcome::Complete(whole) => {
                    let parsed = IpPacket::parse(&whole).expect("a whole packet parses");
                    let made = cut && parsed.is_ipv4();
                    assert!(!made || ipv4_header_checksum_ok(&parsed));
                    one(&whole);
                }
                FragmentOutcome::Pending => assert!(store.bytes() <= held + 70_000),
                FragmentOutcome::Dropped(_) => {}
            }
        }
        now += Duration::from_secs(len as u64 % 5);
        store.expire(now);
        assert!(store.bytes() <= FragmentLimits::default().bytes);
    }
    store.expire(now + Duration::from_secs(60));
    assert!(store.is_empty() && store.bytes() == 0);
}

/// Reads a packet in every way and builds every answer to it.
fn one(bytes: &[u8]) {
    let Ok(packet) = IpPacket::parse(bytes) else {
        return;
    };
    let _ = ipv4_header_checksum_ok(&packet);
    let _ = transport_checksum_ok(&packet);
    if let Ok(segment) = TcpSegment::parse(&packet) {
        let _ = segment.max_segment_size();
        assert!(segment.payload.len() < bytes.len());
    }
    let _ = UdpDatagram::parse(&packet);
    let _ = Echo::parse(&packet);
    let mut answer = Vec::new();
    let made = [
        echo_reply(&packet, &mut answer).map(|()| answer.clone()),
        tcp_reset(&packet, &mut answer).map(|()| answer.clone()),
        tcp_ack(&packet, 1, u32::MAX, &mut answer).map(|()| answer.clone()),
        port_unreachable(&packet, &mut answer).map(|()| answer.clone()),
        unreachable(&packet, Unreachable::Host, &mut answer).map(|()| answer.clone()),
    ];
    for answer in made.into_iter().flatten() {
        let parsed = IpPacket::parse(&answer).expect("an answer parses");
        assert_eq!(parsed.destination, packet.source);
        assert!(
            transport_checksum_ok(&parsed),
            "an answer's checksum is right"
        );
        assert!(!parsed.is_ipv4() || ipv4_header_checksum_ok(&parsed));
    }
    let (source, destination) = (packet.source, packet.destination);
    let (source, destination) = ((source, 1).into(), (destination, 2).into());
    let _ = udp_unreachable(
        source,
        destination,
        bytes.len(),
        Unreachable::Port,
        &mut answer,
    );
}
