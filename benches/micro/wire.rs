//! TCP packets of a client at 10.1.15.7, to the service 10.0.0.3:9000.

use std::net::Ipv4Addr;

/// The client.
pub(crate) const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 15, 7), 40_000);

/// The service.
pub(crate) const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 3), 9_000);

/// Header lengths in bytes, without options (RFC 791, RFC 9293).
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const TCP_HEADER: usize = 20;

/// Flags of RFC 9293 section 3.1.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// Maximum segment size of the client: MTU 1500 less the headers.
pub(crate) const MSS: u16 = 1460;

/// The MSS, a window scale of 8, one NOP to fill up (RFC 9293, RFC 7323).
const SYN_OPTIONS: [u8; 8] = [2, 4, (MSS >> 8) as u8, MSS as u8, 1, 3, 3, 8];

/// A packet with payload zeros. Its TCP checksum is left out, as the kernel leaves
/// it out for a TUN with checksum offload.
pub(crate) fn packet(flags: u8, sequence: u32, acknowledgement: u32, payload: usize) -> Vec<u8> {
    let options: &[u8] = if flags & SYN == 0 { &[] } else { &SYN_OPTIONS };
    let header = IPV4_HEADER + TCP_HEADER + options.len();
    let length = u16::try_from(header + payload).expect("an IPv4 packet");
    let mut bytes = vec![0; header + payload];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[6] = 0x40; // don't fragment
    bytes[8] = 64;
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&CLIENT.0.octets());
    bytes[16..20].copy_from_slice(&SERVICE.0.octets());
    let sum = bytes[..IPV4_HEADER]
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    let tcp = &mut bytes[IPV4_HEADER..];
    tcp[0..2].copy_from_slice(&CLIENT.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&SERVICE.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12] = (((TCP_HEADER + options.len()) / 4) as u8) << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    tcp[TCP_HEADER..TCP_HEADER + options.len()].copy_from_slice(options);
    bytes
}

/// Makes a packet another by its sequence numbers.
pub(crate) fn renumber(packet: &mut [u8], sequence: u32, acknowledgement: u32) {
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[28..32].copy_from_slice(&acknowledgement.to_be_bytes());
}
