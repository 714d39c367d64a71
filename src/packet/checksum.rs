//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

use super::IpPacket;
use super::ip::be16;
use super::protocol::{ICMP, ICMPV6, TCP, UDP};

/// Whether the checksum in the header of an IPv4 packet is right; true for IPv6, which has none.
#[inline]
pub fn ipv4_header_checksum_ok(packet: &IpPacket<'_>) -> bool {
    let header = packet.bytes.get(..packet.header_len).unwrap_or_default();
    !packet.is_ipv4() || fold(sum(header)) == 0xffff
}

/// Whether the checksum of a TCP segment, UDP datagram or ICMP message is right, computed over
/// all its bytes.
///
/// A UDP checksum of zero means "none" in IPv4 (RFC 768) and is wrong in IPv6 (RFC 8200 8.1).
/// False for a fragment, whose bytes do not suffice: reassemble first. True for protocols
/// whose checksum is not known here.
pub fn transport_checksum_ok(packet: &IpPacket<'_>) -> bool {
    if packet.fragment.is_some() {
        return false;
    }
    let payload = packet.payload();
    let covered = match (packet.protocol, packet.is_ipv4()) {
        (ICMP, true) => return fold(sum(payload)) == 0xffff,
        (TCP, _) | (ICMPV6, false) => payload,
        (UDP, v4) => {
            let Some(header) = payload.first_chunk::<8>() else {
                return false;
            };
            if header[6] == 0 && header[7] == 0 {
                return v4;
            }
            // Bytes behind the datagram's own length are padding.
            let Some(datagram) = payload.get(..usize::from(be16(header[4], header[5]))) else {
                return false;
            };
            datagram
        }
        _ => return true,
    };
    let pseudo = pseudo_header(
        packet.source,
        packet.destination,
        packet.protocol,
        covered.len(),
    );
    fold(pseudo + sum(covered)) == 0xffff
}

/// The sum over the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1), folded
/// but not complemented: what the checksum field holds in a packet that is written with
/// NEEDS_CSUM, for the kernel to finish.
///
/// `len` is the length of transport header and payload in bytes; both addresses are of one
/// family.
#[inline]
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> u16 {
    fold(pseudo_header_u32(source, destination, protocol, len))
}

/// The checksum of `data`: the complement of its sum.
#[inline]
pub(super) fn checksum(data: &[u8]) -> u16 {
    !fold(sum(data))
}

/// The checksum of a transport segment that is laid out in two parts, of which the first has
/// an even length; its checksum field is zero.
#[inline]
pub(super) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    head: &[u8],
    tail: &[u8],
) -> u16 {
    debug_assert!(
        head.len().is_multiple_of(2),
        "an odd first part shifts the second"
    );
    let pseudo = pseudo_header(source, destination, protocol, head.len() + tail.len());
    !fold(pseudo + sum(head) + sum(tail))
}

#[inline]
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    // An IP packet is shorter than 2^32 bytes; longer slices never come from one.
    pseudo_header_u32(
        source,
        destination,
        protocol,
        u32::try_from(len).unwrap_or(u32::MAX),
    )
}

#[inline]
fn pseudo_header_u32(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> u64 {
    address(source)
        + address(destination)
        + u64::from(u16::from(protocol).to_be())
        + u64::from(len.to_be())
}

#[inline]
fn address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// The sum of `data` in words of the machine's own byte order, not folded.
///
/// One's complement sums do not depend on byte order or on the width of the words added
/// (RFC 1071 2): eight bytes are taken a step, as two words of 32 bits into 64, which cannot
/// overflow below 2^32 steps and which the compiler turns into vector instructions.
#[inline]
fn sum(data: &[u8]) -> u64 {
    let (chunks, rest) = data.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    chunks.iter().map(words).sum::<u64>() + words(&last)
}

/// Eight bytes as the sum of two words.
#[inline]
fn words(bytes: &[u8; 8]) -> u64 {
    let value = u64::from_ne_bytes(*bytes);
    (value & 0xffff_ffff) + (value >> 32)
}

/// Folds a sum to 16 bits and turns it into network order read as a number.
#[inline]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop leaves 16 bits.
    u16::from_be(sum as u16)
}

#[cfg(test)]
mod tests;
