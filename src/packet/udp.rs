//! UDP datagrams and their headers.

use std::net::SocketAddr;

use super::checksum::{pseudo_header_sum, transport_checksum};
use super::header::{CannotBuild, Header};
use super::ip::{IpPacket, Malformed, be16};
use super::protocol::UDP;

/// Bytes of a UDP header (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;

/// Where the checksum stands in the UDP header: `csum_offset` of the virtio-net header of a
/// packet written with [`ChecksumMode::Partial`]; its `csum_start` is the length of the IP
/// header.
pub const UDP_CHECKSUM_OFFSET: u16 = 6;

/// A UDP datagram whose header is checked. Its checksum is not looked at; see
/// [`transport_checksum_ok`](super::transport_checksum_ok).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpDatagram<'a> {
    /// Source port; 0 where the sender wants no answer.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The data, without padding that stands behind the datagram's own length.
    pub payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    /// Checks the UDP header of a whole packet.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the packet is a fragment, carries another protocol or has a length
    /// that does not fit.
    #[inline]
    pub fn parse(packet: &IpPacket<'a>) -> Result<Self, Malformed> {
        let datagram = packet.transport(UDP)?;
        let header = datagram
            .first_chunk::<UDP_HEADER_LEN>()
            .ok_or(Malformed::TransportTruncated)?;
        let payload = datagram
            .get(UDP_HEADER_LEN..usize::from(be16(header[4], header[5])))
            .ok_or(Malformed::UdpLength)?;
        Ok(Self {
            source_port: be16(header[0], header[1]),
            destination_port: be16(header[2], header[3]),
            payload,
        })
    }
}

/// How the checksum of a datagram gets there.
#[derive(Clone, Copy, Debug)]
pub enum ChecksumMode<'a> {
    /// Computed here over this payload.
    Full(&'a [u8]),
    /// The field gets the pseudo-header's sum; the kernel finishes it on a write that says
    /// NEEDS_CSUM, with [`UDP_CHECKSUM_OFFSET`].
    Partial,
}

/// Writes the IP and UDP headers of a datagram from `source` (the virtual server) to
/// `destination` (the client) to the start of `out`; returns their length in bytes: 28 for
/// IPv4, 48 for IPv6.
///
/// `payload_len` bytes of payload follow in the packet. IPv4: `ident` must differ between
/// datagrams that can be under way to one client at a time, and the don't-fragment flag is
/// clear, so that the kernel can cut the datagram for a smaller MTU. IPv6: `ident` is not
/// used; a datagram above [`IPV6_MINIMUM_MTU`](super::IPV6_MINIMUM_MTU) goes through
/// [`udp_fragments_v6`](super::udp_fragments_v6).
///
/// # Errors
///
/// [`CannotBuild`] for addresses of two families, a payload that is too long or not of the
/// length stated, or an `out` that is too short.
pub fn udp_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload_len: usize,
    ident: u16,
    checksum: ChecksumMode<'_>,
    out: &mut [u8],
) -> Result<usize, CannotBuild> {
    let header = udp_ip_header(source, destination, payload_len, Some(ident));
    let ip_len = header.write(out)?;
    let udp = match checksum {
        ChecksumMode::Full(payload) if payload.len() == payload_len => {
            full_header(source, destination, payload)?
        }
        ChecksumMode::Full(_) => return Err(CannotBuild::PayloadLength),
        ChecksumMode::Partial => partial_header(source, destination, payload_len)?,
    };
    let end = ip_len + UDP_HEADER_LEN;
    out.get_mut(ip_len..end)
        .ok_or(CannotBuild::Space)?
        .copy_from_slice(&udp);
    Ok(end)
}

/// The IP header of a UDP datagram with `payload_len` bytes of data.
pub(super) fn udp_ip_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload_len: usize,
    ident: Option<u16>,
) -> Header {
    Header {
        source: source.ip(),
        destination: destination.ip(),
        protocol: UDP,
        traffic_class: 0,
        ident,
        payload_len: payload_len.saturating_add(UDP_HEADER_LEN),
    }
}

/// A UDP header with its whole checksum.
pub(super) fn full_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Result<[u8; UDP_HEADER_LEN], CannotBuild> {
    let mut header = plain_header(source, destination, payload.len())?;
    // RFC 768: zero means that there is no checksum; a computed zero is sent as all ones.
    let checksum = match transport_checksum(source.ip(), destination.ip(), UDP, &header, payload) {
        0 => 0xffff,
        checksum => checksum,
    };
    header[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ok(header)
}

fn partial_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload_len: usize,
) -> Result<[u8; UDP_HEADER_LEN], CannotBuild> {
    let mut header = plain_header(source, destination, payload_len)?;
    let length = u32::from(be16(header[4], header[5]));
    let sum = pseudo_header_sum(source.ip(), destination.ip(), UDP, length);
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok(header)
}

/// A UDP header whose checksum is zero.
pub(super) fn plain_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload_len: usize,
) -> Result<[u8; UDP_HEADER_LEN], CannotBuild> {
    let length = u16::try_from(payload_len.saturating_add(UDP_HEADER_LEN))
        .map_err(|_| CannotBuild::TooLong)?;
    let mut header = [0; UDP_HEADER_LEN];
    header[0..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&destination.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests;
