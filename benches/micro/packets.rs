//! From bytes to a flow.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use divan::{Bencher, black_box};
use kube_tun_proxy::ipvs::Protocol;
use kube_tun_proxy::packet::{IpPacket, TcpSegment};

use crate::wire::{ACK, CLIENT, SERVICE, packet};

/// The five-tuple, and the table of flows by it: the types of the data plane's own,
/// which nobody else sees.
type Key = (SocketAddr, SocketAddr, Protocol);
type Flows = HashMap<Key, u64, foldhash::fast::RandomState>;

/// Checks a packet and reads its TCP header.
#[divan::bench(args = [0, 1_410, 64_000])]
fn parse(bencher: Bencher<'_, '_>, payload: usize) {
    let bytes = packet(ACK, 1, 1, payload);
    bencher.bench(|| {
        let packet = IpPacket::parse(black_box(&bytes)).expect("a packet");
        TcpSegment::parse(&packet).expect("a segment").seq
    });
}

/// The same, and finds its flow among so many.
#[divan::bench(args = [10, 1_000, 10_000])]
fn parse_and_demultiplex(bencher: Bencher<'_, '_>, flows: u32) {
    let service: SocketAddr = SERVICE.into();
    let mut table = Flows::default();
    for number in 0..flows {
        let ip = Ipv4Addr::from(u32::from(CLIENT.0) + number);
        table.insert(
            (SocketAddr::new(ip.into(), CLIENT.1), service, Protocol::Tcp),
            1,
        );
    }
    let bytes = packet(ACK, 1, 1, 0);
    bencher.bench(|| {
        let packet = IpPacket::parse(black_box(&bytes)).expect("a packet");
        let segment = TcpSegment::parse(&packet).expect("a segment");
        let client = SocketAddr::new(packet.source, segment.source_port);
        let service = SocketAddr::new(packet.destination, segment.destination_port);
        table.get(&(client, service, Protocol::Tcp)).copied()
    });
}
