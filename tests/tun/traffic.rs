//! Packets through a queue: what the kernel hands over, and what it takes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use kube_tun_proxy::tun::{
    ChecksumState, DEFAULT_ADDRESS_V4, DEFAULT_ADDRESS_V6, Gso, Link, MAX_FRAME_LEN, Queue, Queues,
    VNET_HEADER_LEN, VnetHeader,
};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use smoltcp::wire::IpVersion;
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{block_on, config, ok, open, sysctl};
use crate::packets::{self, ACK, Packet, SYN};

/// How long a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn datagram_v4_is_read() {
    datagram_is_read("10.0.0.3:53", DEFAULT_ADDRESS_V4.into());
}

pub(crate) fn datagram_v6_is_read() {
    datagram_is_read("[fd00:10::3]:53", DEFAULT_ADDRESS_V6.into());
}

fn datagram_is_read(vip: &str, own: IpAddr) {
    let queues = ready(2);
    let vip: SocketAddr = vip.parse().unwrap();
    let client = client_of(vip);
    client.send_to(b"who is there?", vip).unwrap();

    let (header, packet) = next(&queues.queues);
    assert!(packet.is_udp());
    assert_eq!((packet.source.ip(), packet.destination), (own, vip));
    assert_eq!(packet.payload, b"who is there?");
    let start = u16::try_from(packet.ip_header_len).unwrap();
    assert_eq!(header.gso, Gso::None);
    let len = packet.header_len + packet.payload.len();
    assert_eq!(
        header.checksum_state(len),
        Ok(ChecksumState::Partial { start, offset: 6 })
    );
}

pub(crate) fn reply_v4_is_received() {
    // Strict: the way back to the source must lead through the same device.
    sysctl("ipv4/conf/all/rp_filter", "1");
    reply_is_received("10.0.0.3:53");
}

pub(crate) fn reply_v6_is_received() {
    reply_is_received("[fd00:10::3]:53");
}

fn reply_is_received(vip: &str) {
    let queues = ready(1);
    let vip: SocketAddr = vip.parse().unwrap();
    let client = client_of(vip);
    client.connect(vip).unwrap();
    client.send(b"ping").unwrap();
    let (_, request) = next(&queues.queues);

    let reply = packets::udp(vip, request.source, b"pong, of odd length");
    let start = u16::try_from(request.ip_header_len).unwrap();
    write(&queues.queues[0], VnetHeader::udp_checksum(start), &reply);

    let mut buf = [0; 64];
    let len = client.recv(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"pong, of odd length");
}

pub(crate) fn tcp_v4_super_packets() {
    tcp_super_packets("10.0.0.3:443", IpVersion::Ipv4, Gso::TcpV4, 1460);
}

pub(crate) fn tcp_v6_super_packets() {
    tcp_super_packets("[fd00:10::3]:443", IpVersion::Ipv6, Gso::TcpV6, 1440);
}

/// A TCP client on the node against a peer that consists of three packets.
fn tcp_super_packets(vip: &str, version: IpVersion, gso: Gso, mss: u16) {
    // A congestion controller that paces would make the first bursts small.
    sysctl("ipv4/tcp_congestion_control", "reno");
    let queues = ready(1);
    let queue = &queues.queues[0];
    let vip: SocketAddr = vip.parse().unwrap();
    let socket = Socket::new(Domain::for_address(vip), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.connect(&vip.into()).unwrap_err();

    let (header, syn) = next_that(&queues.queues, |packet| packet.flags & (SYN | ACK) == SYN);
    assert_eq!(header.gso, Gso::None);
    let start = u16::try_from(syn.ip_header_len).unwrap();
    let client = syn.source;
    let numbers = (1_000, syn.sequence.wrapping_add(1));
    let [high, low] = mss.to_be_bytes();
    let syn_ack = packets::tcp(vip, client, numbers, SYN | ACK, &[2, 4, high, low], &[]);
    write(queue, VnetHeader::tcp_checksum(start), &syn_ack);
    next_that(&queues.queues, |packet| packet.flags & (SYN | ACK) == ACK);

    // Up: one read holds many segments.
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = bytes(30_000);
    stream.write_all(&sent).unwrap();
    let (header, up) = next_that(&queues.queues, |packet| !packet.payload.is_empty());
    assert_eq!((header.gso, header.gso_size), (gso, mss));
    assert!(
        up.payload.len() > usize::from(mss),
        "{} bytes",
        up.payload.len()
    );
    assert_eq!(up.payload, sent[..up.payload.len()]);
    let len = up.header_len + up.payload.len();
    assert_eq!(
        header.checksum_state(len),
        Ok(ChecksumState::Partial { start, offset: 16 })
    );

    // Down: one write holds many segments, the last one short.
    let sent = bytes(20_001);
    let numbers = (1_001, syn.sequence.wrapping_add(1));
    let down = packets::tcp(vip, client, numbers, ACK, &[], &sent);
    write(
        queue,
        VnetHeader::tcp_segments(version, start + 20, mss, start),
        &down,
    );
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, sent);
}

/// Datagrams that a client hands to the kernel as one (UDP_SEGMENT) come as one.
pub(crate) fn udp_super_packet_is_read() {
    let queues = ready(1);
    let vip: SocketAddr = "10.0.0.3:443".parse().unwrap();
    let client = client_of(vip);
    setsockopt(&client, UdpGsoSegment, &1_000).unwrap();
    client.send_to(&bytes(3_500), vip).unwrap();
    let (header, packet) = next(&queues.queues);
    if queues.offloads.udp_segmentation {
        assert_eq!((header.gso, header.gso_size), (Gso::UdpDatagrams, 1_000));
        assert_eq!(packet.payload, bytes(3_500));
    } else {
        assert_eq!((header.gso, packet.payload.len()), (Gso::None, 1_000));
    }
}

pub(crate) fn malformed_frames_are_refused() {
    let queues = open(1);
    let queue = &queues.queues[0];
    let vip: SocketAddr = "10.0.0.3:53".parse().unwrap();
    let packet = packets::udp(vip, SocketAddr::new(DEFAULT_ADDRESS_V4.into(), 9), b"x");
    let frame = |header: VnetHeader| {
        let mut bytes = [0; VNET_HEADER_LEN];
        header.write(&mut bytes);
        [&bytes[..], &packet].concat()
    };
    let errno = |frame: &[u8]| queue.write(frame).unwrap_err().raw_os_error();

    // Down as yet.
    assert_eq!(errno(&frame(VnetHeader::udp_checksum(20))), Some(libc::EIO));
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
    queue.write(&frame(VnetHeader::udp_checksum(20))).unwrap();

    // The checksum lies outside the packet.
    assert_eq!(
        errno(&frame(VnetHeader::needs_checksum(60_000, 6))),
        Some(libc::EINVAL)
    );
    // No packet.
    assert_eq!(errno(&[0; VNET_HEADER_LEN]), Some(libc::EINVAL));
    assert_eq!(errno(&[0; 3]), Some(libc::EINVAL));
}

/// The kernel spreads flows by their hash over all queues.
pub(crate) fn every_queue_is_readable() {
    let queues = ready(3);
    let vip: SocketAddr = "10.0.0.3:53".parse().unwrap();
    let mut seen = [false; 3];
    // That 200 flows miss one of three queues has a chance of 10^-35.
    for _ in 0..200 {
        let client = client_of(vip);
        client.send_to(b"x", vip).unwrap();
        let readable = wait(&queues.queues);
        seen[readable] = true;
        read(&queues.queues[readable]);
    }
    assert_eq!(seen, [true; 3]);
}

/// The device with a range of each family routed into it.
pub(crate) fn ready(count: usize) -> Queues {
    let queues = open(count);
    let config = config(&queues, &["10.0.0.0/16", "fd00:10::/112"]);
    block_on(async { ok(Link::configure(config).await) });
    queues
}

/// A socket of the address's family that waits, but not for ever.
pub(crate) fn client_of(vip: SocketAddr) -> UdpSocket {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// The next UDP packet of any queue.
pub(crate) fn next(queues: &[Queue]) -> (VnetHeader, Packet) {
    next_that(queues, Packet::is_udp)
}

/// The next packet that is wanted; a busy machine may make TCP repeat others.
fn next_that(queues: &[Queue], wanted: impl Fn(&Packet) -> bool) -> (VnetHeader, Packet) {
    loop {
        let (header, bytes) = read(&queues[wait(queues)]);
        if let Some(packet) = Packet::parse(&bytes).filter(&wanted) {
            return (header, packet);
        }
    }
}

/// Waits for a queue to become readable.
fn wait(queues: &[Queue]) -> usize {
    let mut poll = mio::Poll::new().unwrap();
    for (number, queue) in queues.iter().enumerate() {
        let fd = queue.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), Token(number), Interest::READABLE)
            .unwrap();
    }
    let mut events = mio::Events::with_capacity(1);
    poll.poll(&mut events, Some(PATIENCE)).unwrap();
    events.iter().next().expect("nothing came").token().0
}

fn read(queue: &Queue) -> (VnetHeader, Vec<u8>) {
    let mut buf = vec![0; MAX_FRAME_LEN];
    let len = queue.read(&mut buf).unwrap();
    let (header, packet) = buf[..len].split_first_chunk().unwrap();
    (VnetHeader::parse(header).unwrap(), packet.to_vec())
}

fn write(queue: &Queue, header: VnetHeader, packet: &[u8]) {
    let mut bytes = [0; VNET_HEADER_LEN];
    header.write(&mut bytes);
    queue.write(&[&bytes[..], packet].concat()).unwrap();
}

/// Bytes whose order can be checked.
fn bytes(len: u32) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}
