//! Cutting IPv6 packets into fragments: no router does it on the way (RFC 8200 4.5).

use std::net::{IpAddr, SocketAddr};

use super::header::{CannotBuild, Header, IPV6_HEADER_LEN, IPV6_MINIMUM_MTU};
use super::ip::IpPacket;
use super::protocol::FRAGMENT;
use super::udp::{full_header, udp_ip_header};

/// Bytes of a fragment header (RFC 8200 4.5).
const FRAGMENT_HEADER_LEN: usize = 8;

/// Payload of a fragment that is not the last: the most that fits the minimum MTU, a multiple
/// of 8 as offsets need.
const FRAGMENT_PAYLOAD: usize = IPV6_MINIMUM_MTU - IPV6_HEADER_LEN - FRAGMENT_HEADER_LEN;
const _: () = assert!(FRAGMENT_PAYLOAD.is_multiple_of(8));

/// Hands the datagram from `source` to `destination` to `emit` as packets of at most
/// [`IPV6_MINIMUM_MTU`] bytes: whole where it fits, else as fragments under `ident`, in order.
/// Returns how many packets that made. `scratch` holds one packet at a time.
///
/// The minimum MTU is used because the proxy cannot learn a smaller path MTU than its own: a
/// Packet Too Big goes to the virtual address. `ident` must differ between datagrams that can
/// be under way to one client at a time (RFC 8200 4.5) and should not be easy to guess
/// (RFC 7739).
///
/// # Errors
///
/// [`CannotBuild`] for an address that is not IPv6 and a payload above 65,527 bytes.
pub fn udp_fragments_v6(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    ident: u32,
    scratch: &mut Vec<u8>,
    emit: impl FnMut(&[u8]),
) -> Result<usize, CannotBuild> {
    let header = udp_ip_header(source, destination, payload.len(), None);
    let udp = full_header(source, destination, payload)?;
    cut(header, [&udp, payload], ident, scratch, emit)
}

/// Does to a whole `packet` without extension headers, such as an echo reply, what
/// [`udp_fragments_v6`] does to a datagram.
///
/// # Errors
///
/// [`CannotBuild::NotPlainIpv6`] for any other packet.
pub fn fragment_v6(
    packet: &IpPacket<'_>,
    ident: u32,
    scratch: &mut Vec<u8>,
    emit: impl FnMut(&[u8]),
) -> Result<usize, CannotBuild> {
    if packet.is_ipv4() || packet.header_len != IPV6_HEADER_LEN {
        return Err(CannotBuild::NotPlainIpv6);
    }
    let header = Header {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        traffic_class: packet.traffic_class,
        ident: None,
        payload_len: packet.payload().len(),
    };
    cut(header, [packet.payload(), &[]], ident, scratch, emit)
}

/// Cuts what follows `header`, given in two parts one behind the other.
fn cut(
    header: Header,
    mut parts: [&[u8]; 2],
    ident: u32,
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<usize, CannotBuild> {
    let (IpAddr::V6(_), IpAddr::V6(_)) = (header.source, header.destination) else {
        return Err(CannotBuild::NotPlainIpv6);
    };
    let total = header.payload_len;
    if u16::try_from(total).is_err() {
        return Err(CannotBuild::TooLong);
    }
    if IPV6_HEADER_LEN + total <= IPV6_MINIMUM_MTU {
        header.start(scratch)?;
        take(&mut parts, total, scratch);
        emit(scratch);
        return Ok(1);
    }
    let mut count = 0;
    let mut offset = 0;
    while offset < total {
        let len = FRAGMENT_PAYLOAD.min(total - offset);
        let more = offset + len < total;
        Header {
            protocol: FRAGMENT,
            payload_len: FRAGMENT_HEADER_LEN + len,
            ..header
        }
        .start(scratch)?;
        // The offset is a multiple of 8 below 2^16: its three low bits are the header's flags.
        let place = u16::try_from(offset).map_err(|_| CannotBuild::TooLong)? | u16::from(more);
        scratch.extend_from_slice(&[header.protocol, 0]);
        scratch.extend_from_slice(&place.to_be_bytes());
        scratch.extend_from_slice(&ident.to_be_bytes());
        take(&mut parts, len, scratch);
        emit(scratch);
        count += 1;
        offset += len;
    }
    Ok(count)
}

/// Moves the next `len` bytes of `parts` to the end of `out`.
fn take(parts: &mut [&[u8]; 2], mut len: usize, out: &mut Vec<u8>) {
    for part in parts {
        let (now, later) = part.split_at(len.min(part.len()));
        out.extend_from_slice(now);
        len -= now.len();
        *part = later;
    }
}

#[cfg(test)]
mod tests;
