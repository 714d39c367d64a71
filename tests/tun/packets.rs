//! Packets built and taken apart by hand, so that the tests lean on nothing that
//! they test.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// What a test wants to know of a packet that was read.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    /// Bytes before the transport header.
    pub(crate) ip_header_len: usize,
    /// Bytes of IP and transport header.
    pub(crate) header_len: usize,
    /// TCP only.
    pub(crate) sequence: u32,
    /// TCP only.
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// `None` for what is neither TCP nor UDP.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, ip_header_len): (IpAddr, IpAddr, _, _) =
            match bytes[0] >> 4 {
                4 => {
                    let address = |at| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into();
                    (
                        address(12),
                        address(16),
                        bytes[9],
                        usize::from(bytes[0] & 15) * 4,
                    )
                }
                6 => {
                    let address = |at| <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap().into();
                    (address(8), address(24), bytes[6], 40)
                }
                version => panic!("IP version {version}"),
            };
        let transport = &bytes[ip_header_len..];
        let (sequence, flags, transport_len) = match protocol {
            TCP => (
                u32::from_be_bytes(transport[4..8].try_into().unwrap()),
                transport[13],
                usize::from(transport[12] >> 4) * 4,
            ),
            UDP => (0, 0, 8),
            _ => return None,
        };
        let port = |at| u16::from_be_bytes([transport[at], transport[at + 1]]);
        Some(Self {
            source: SocketAddr::new(source, port(0)),
            destination: SocketAddr::new(destination, port(2)),
            protocol,
            ip_header_len,
            header_len: ip_header_len + transport_len,
            sequence,
            flags,
            payload: transport[transport_len..].to_vec(),
        })
    }

    pub(crate) fn is_udp(&self) -> bool {
        self.protocol == UDP
    }
}

/// A UDP packet whose checksum field holds the pseudo-header sum.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let mut transport = Vec::new();
    transport.extend(source.port().to_be_bytes());
    transport.extend(destination.port().to_be_bytes());
    transport.extend(len.to_be_bytes());
    transport.extend(pseudo_header_sum(source.ip(), destination.ip(), UDP, len).to_be_bytes());
    transport.extend(payload);
    ip(source.ip(), destination.ip(), UDP, &transport)
}

/// A TCP packet whose checksum field holds the pseudo-header sum; of any length,
/// so also a super-packet.
pub(crate) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    (sequence, acknowledgement): (u32, u32),
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let len = u16::try_from(header_len + payload.len()).unwrap();
    let mut transport = Vec::new();
    transport.extend(source.port().to_be_bytes());
    transport.extend(destination.port().to_be_bytes());
    transport.extend(sequence.to_be_bytes());
    transport.extend(acknowledgement.to_be_bytes());
    transport.extend([u8::try_from(header_len / 4).unwrap() << 4, flags]);
    transport.extend(65_535_u16.to_be_bytes());
    transport.extend(pseudo_header_sum(source.ip(), destination.ip(), TCP, len).to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(options);
    transport.extend(payload);
    ip(source.ip(), destination.ip(), TCP, &transport)
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = u16::try_from(20 + transport.len()).unwrap();
            packet.extend([0x45, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = !sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = u16::try_from(transport.len()).unwrap();
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("two families in one packet")
        }
    }
    packet.extend(transport);
    packet
}

/// RFC 9293 section 3.1; not complemented.
fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: u16) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend(len.to_be_bytes());
    sum(&bytes)
}

/// RFC 1071, for an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
