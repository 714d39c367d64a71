//! What the kernel makes of a frame that is written to the TUN.

use crate::tun::{Gso, VnetHeader};

/// The checksum field of TCP from the header's start.
const TCP_CHECKSUM: u16 = 16;

/// The packets that leave for a frame: a super-packet is cut into its segments,
/// checksums are completed. Panics where the kernel would refuse the frame.
pub(in crate::dataplane) fn deliver(header: VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let start = usize::from(header.csum_start);
    let v4 = packet[0] >> 4 == 4;
    let (told, ip_header) = if v4 {
        (u16::from_be_bytes([packet[2], packet[3]]), 20)
    } else {
        (u16::from_be_bytes([packet[4], packet[5]]) + 40, 40)
    };
    assert_eq!(usize::from(told), packet.len(), "the IP length is wrong");
    if v4 {
        assert_eq!(sum(&packet[..20], 0), 0xffff, "the IP checksum is wrong");
    }
    if header == VnetHeader::none() {
        return vec![packet.to_vec()];
    }
    assert_eq!(start, ip_header, "the checksum does not start at TCP");
    assert_eq!(header.csum_offset, TCP_CHECKSUM);
    let field = start + usize::from(TCP_CHECKSUM);
    assert_eq!(
        u16::from_be_bytes([packet[field], packet[field + 1]]),
        pseudo(packet, v4, packet.len() - start),
        "the checksum field does not hold the pseudo-header sum"
    );
    if header.gso == Gso::None {
        let mut whole = packet.to_vec();
        complete(&mut whole, v4);
        return vec![whole];
    }
    assert_eq!(header.gso, if v4 { Gso::TcpV4 } else { Gso::TcpV6 });
    let head = usize::from(header.header_len);
    assert_eq!(head, start + usize::from(packet[start + 12] >> 4) * 4);
    let size = usize::from(header.gso_size);
    let payload = &packet[head..];
    assert!(payload.len() > size, "one segment is no super-packet");
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, chunk)| {
            let last = (index + 1) * size >= payload.len();
            segment(&packet[..head], index, chunk, size, last)
        })
        .collect()
}

/// Segment `index` of a super-packet.
fn segment(head: &[u8], index: usize, chunk: &[u8], size: usize, last: bool) -> Vec<u8> {
    let v4 = head[0] >> 4 == 4;
    let mut packet = [head, chunk].concat();
    let len = packet.len() as u16;
    let tcp = if v4 {
        let ident = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[4..6].copy_from_slice(&ident.to_be_bytes());
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..20], 0);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        20
    } else {
        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        40
    };
    let number: [u8; 4] = packet[tcp + 4..tcp + 8].try_into().unwrap();
    let number = u32::from_be_bytes(number).wrapping_add((index * size) as u32);
    packet[tcp + 4..tcp + 8].copy_from_slice(&number.to_be_bytes());
    if !last {
        // FIN and PSH belong to the last segment.
        packet[tcp + 13] &= !0x09;
    }
    let pseudo = pseudo(&packet, v4, packet.len() - tcp);
    packet[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
    complete(&mut packet, v4);
    packet
}

/// Completes a TCP checksum whose field holds the pseudo-header sum.
fn complete(packet: &mut [u8], v4: bool) {
    let start = if v4 { 20 } else { 40 };
    let checksum = !sum(&packet[start..], 0);
    packet[start + 16..start + 18].copy_from_slice(&checksum.to_be_bytes());
}

fn pseudo(packet: &[u8], v4: bool, tcp_len: usize) -> u16 {
    let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
    sum(addresses, 6 + tcp_len as u32)
}

/// The plain one's complement sum, word by word (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
