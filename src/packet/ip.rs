//! The IP header as a checked view.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::extension;

/// RFC 791 3.1: the more-fragments flag within the flags and offset field.
const MORE_FRAGMENTS: u16 = 0x2000;
/// RFC 791 3.1: the fragment offset, in units of 8 bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Why bytes are not a packet that can be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the header or than the length that the header names.
    #[error("the packet is shorter than its header says")]
    Truncated,
    /// Neither IPv4 nor IPv6.
    #[error("the IP version is neither 4 nor 6")]
    Version,
    /// The IPv4 header length is below 20 bytes.
    #[error("the IPv4 header length is below 20 bytes")]
    HeaderLength,
    /// The IPv4 total length is smaller than the header.
    #[error("the IPv4 total length is smaller than the header")]
    TotalLength,
    /// An IPv6 packet without a payload length (RFC 2675), which no TUN hands out.
    #[error("the packet is an IPv6 jumbogram")]
    Jumbogram,
    /// An IPv6 extension header is cut off, out of place, holds an option that asks to be
    /// discarded by who does not know it (RFC 8200 4.2), or is one too many.
    #[error("an IPv6 extension header is cut off, out of place or not to be skipped")]
    ExtensionHeader,
    /// A routing header with segments left: this is not the packet's last stop
    /// (RFC 8200 4.4, RFC 5095).
    #[error("a routing header has segments left")]
    RoutingHeader,
    /// A transport view was asked for of a packet that carries another protocol.
    #[error("the packet carries another protocol")]
    OtherProtocol,
    /// A transport view was asked for of a fragment; reassemble first.
    #[error("the packet is a fragment")]
    Fragment,
    /// The transport header is cut off.
    #[error("the transport header is cut off")]
    TransportTruncated,
    /// The TCP data offset is below 20 bytes or beyond the packet.
    #[error("the TCP data offset does not fit the packet")]
    DataOffset,
    /// The UDP length is below 8 bytes or beyond the packet.
    #[error("the UDP length does not fit the packet")]
    UdpLength,
    /// An ICMP message other than an echo request.
    #[error("the ICMP message is not an echo request")]
    NotEchoRequest,
}

impl Malformed {
    /// A label for counters: lower case, words joined by underscores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Version => "ip_version",
            Self::HeaderLength => "ip_header_length",
            Self::TotalLength => "ip_total_length",
            Self::Jumbogram => "jumbogram",
            Self::ExtensionHeader => "extension_header",
            Self::RoutingHeader => "routing_header",
            Self::OtherProtocol => "other_protocol",
            Self::Fragment => "fragment",
            Self::TransportTruncated => "transport_truncated",
            Self::DataOffset => "tcp_data_offset",
            Self::UdpLength => "udp_length",
            Self::NotEchoRequest => "not_echo_request",
        }
    }
}

/// Where a fragment belongs in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentInfo {
    /// The identification that the datagram's fragments share; 16 bits in IPv4.
    pub ident: u32,
    /// Where the fragment's payload stands in the datagram's payload, in bytes.
    pub offset: u16,
    /// Whether fragments with a higher offset exist.
    pub more: bool,
    /// IPv6: where the fragment header begins in the packet. IPv4: unused, 0.
    pub(super) header_at: usize,
    /// IPv6: the byte that says that a fragment header follows. IPv4: unused, 0.
    pub(super) next_header_at: usize,
}

/// One IP packet whose header is checked: the lengths fit, `payload` cannot fail.
///
/// The checksum of an IPv4 header is not looked at; see
/// [`ipv4_header_checksum_ok`](super::ipv4_header_checksum_ok).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Exactly one packet: bytes beyond the length that the header names are cut off.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for; the same family as `source`.
    pub destination: IpAddr,
    /// Bytes up to the transport header. IPv6: hop-by-hop options, routing and destination
    /// options headers are walked; at a fragment header the walk ends behind it, because
    /// what follows is whole only in the reassembled packet.
    pub header_len: usize,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Type of service, or traffic class: DSCP in the upper 6 bits, ECN in the lower 2.
    pub traffic_class: u8,
    /// What `payload` holds, see [`protocol`](super::protocol).
    pub protocol: u8,
    /// Set when the packet is a fragment, IPv6 atomic fragments (RFC 6946) included.
    pub fragment: Option<FragmentInfo>,
}

impl<'a> IpPacket<'a> {
    /// Checks the IP header of `bytes`, IPv6 extension headers included.
    ///
    /// # Errors
    ///
    /// [`Malformed`] says which field does not fit.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(Malformed::Version),
            None => Err(Malformed::Truncated),
        }
    }

    /// What follows the headers: a transport segment, or a fragment's share of it.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header_len..).unwrap_or_default()
    }

    /// Whether this is IPv4; IPv6 otherwise.
    #[inline]
    pub fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The payload, if the packet is whole and carries `protocol`.
    #[inline]
    pub(super) fn transport(&self, protocol: u8) -> Result<&'a [u8], Malformed> {
        if self.protocol != protocol {
            return Err(Malformed::OtherProtocol);
        }
        if self.fragment.is_some() {
            return Err(Malformed::Fragment);
        }
        Ok(self.payload())
    }

    #[inline]
    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<20>().ok_or(Malformed::Truncated)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header_len < header.len() {
            return Err(Malformed::HeaderLength);
        }
        let total_len = usize::from(be16(header[2], header[3]));
        if total_len < header_len {
            return Err(Malformed::TotalLength);
        }
        let bytes = bytes.get(..total_len).ok_or(Malformed::Truncated)?;
        let flags = be16(header[6], header[7]);
        let fragment = (flags & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0).then(|| FragmentInfo {
            ident: u32::from(be16(header[4], header[5])),
            offset: (flags & FRAGMENT_OFFSET) << 3,
            more: flags & MORE_FRAGMENTS != 0,
            header_at: 0,
            next_header_at: 0,
        });
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        Ok(Self {
            bytes,
            source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
            destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
            header_len,
            hop_limit: header[8],
            traffic_class: header[1],
            protocol: header[9],
            fragment,
        })
    }

    #[inline]
    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<40>().ok_or(Malformed::Truncated)?;
        let payload_len = usize::from(be16(header[4], header[5]));
        let bytes = bytes
            .get(..header.len() + payload_len)
            .ok_or(Malformed::Truncated)?;
        let walk = extension::walk(bytes, header[6])?;
        Ok(Self {
            bytes,
            source: IpAddr::V6(ipv6_at(header, 8)),
            destination: IpAddr::V6(ipv6_at(header, 24)),
            header_len: walk.header_len,
            hop_limit: header[7],
            traffic_class: header[0] << 4 | header[1] >> 4,
            protocol: walk.protocol,
            fragment: walk.fragment,
        })
    }
}

/// Two bytes in network order as a number.
#[inline]
pub(super) const fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

#[inline]
fn ipv6_at(header: &[u8; 40], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests;
