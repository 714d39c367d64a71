//! ICMP and ICMPv6: echo requests and their answers, and the errors that we originate.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{checksum, transport_checksum};
use super::header::{CannotBuild, Header, IPV6_MINIMUM_MTU};
use super::ip::{IpPacket, Malformed, be16};
use super::protocol::{ICMP, ICMPV6};
use super::reply::{NoReply, check_addresses, check_error};
use super::udp::{plain_header, udp_ip_header};

/// Type, code, checksum and four bytes whose use depends on the type (RFC 792, RFC 4443 2.1).
const HEADER_LEN: usize = 8;

/// RFC 1812 4.3.2.3: an ICMP error quotes as much as fits a packet of 576 bytes.
const IPV4_ERROR_LEN: usize = 576;

/// RFC 1812 4.3.2.5: errors go out with precedence 6, internetwork control; Linux does the
/// same (net/ipv4/icmp.c, `__icmp_send`).
const INTERNETWORK_CONTROL: u8 = 0xc0;

const ECHO_REPLY_V4: u8 = 0;
const UNREACHABLE_V4: u8 = 3;
const ECHO_REQUEST_V4: u8 = 8;
const UNREACHABLE_V6: u8 = 1;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// An echo request (ping), IPv4 or IPv6. Its checksum is not looked at; see
/// [`transport_checksum_ok`](super::transport_checksum_ok).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Identifier, by which a client tells its own requests.
    pub ident: u16,
    /// Sequence number.
    pub seq: u16,
    /// What the answer brings back.
    pub payload: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads an echo request from a whole packet.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the packet is a fragment, another protocol or another message.
    pub fn parse(packet: &IpPacket<'a>) -> Result<Self, Malformed> {
        let (protocol, request) = if packet.is_ipv4() {
            (ICMP, ECHO_REQUEST_V4)
        } else {
            (ICMPV6, ECHO_REQUEST_V6)
        };
        match *packet.transport(protocol)? {
            [kind, 0, _, _, i0, i1, s0, s1, ref payload @ ..] if kind == request => Ok(Self {
                ident: be16(i0, i1),
                seq: be16(s0, s1),
                payload,
            }),
            [_, _, _, _, _, _, _, _, ..] => Err(Malformed::NotEchoRequest),
            _ => Err(Malformed::TransportTruncated),
        }
    }
}

/// Writes the answer to an echo request to `out`: addresses swapped, hop limit 64, DSCP kept,
/// IPv4 options and IPv6 extension headers left out.
///
/// IPv4: the answer takes the request's identification and may be cut by the kernel. IPv6: an
/// answer above [`IPV6_MINIMUM_MTU`] has to go through [`fragment_v6`](super::fragment_v6).
/// `request`'s checksum must have been verified.
///
/// # Errors
///
/// [`NoReply`] for addresses that cannot be answered and for what is no echo request.
pub fn echo_reply(request: &IpPacket<'_>, out: &mut Vec<u8>) -> Result<(), NoReply> {
    let echo = Echo::parse(request)?;
    check_addresses(request)?;
    let mut header = Header::answer(request, HEADER_LEN + echo.payload.len());
    let kind = if request.is_ipv4() {
        header.ident = Some(be16(request.bytes[4], request.bytes[5]));
        ECHO_REPLY_V4
    } else {
        ECHO_REPLY_V6
    };
    let [i0, i1] = echo.ident.to_be_bytes();
    let [s0, s1] = echo.seq.to_be_bytes();
    Ok(message(
        header,
        [kind, 0, 0, 0, i0, i1, s0, s1],
        echo.payload,
        out,
    )?)
}

/// What cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// Nobody serves the port: IPv4 code 3, IPv6 code 4. A client's `connect` or `recv` reports
    /// ECONNREFUSED.
    Port,
    /// No answer from the host: IPv4 code 1, IPv6 code 3 (address). EHOSTUNREACH.
    Host,
    /// No route: IPv4 code 0, IPv6 code 0. ENETUNREACH.
    Network,
    /// Forbidden: IPv4 code 13 (RFC 1812 5.2.7.1), IPv6 code 1. EHOSTUNREACH or EACCES.
    Prohibited,
}

impl Unreachable {
    const fn code_v4(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Host => 1,
            Self::Port => 3,
            Self::Prohibited => 13,
        }
    }

    const fn code_v6(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Prohibited => 1,
            Self::Host => 3,
            Self::Port => 4,
        }
    }
}

/// [`unreachable()`] with [`Unreachable::Port`].
///
/// # Errors
///
/// As [`unreachable()`].
pub fn port_unreachable(original: &IpPacket<'_>, out: &mut Vec<u8>) -> Result<(), NoReply> {
    unreachable(original, Unreachable::Port, out)
}

/// Writes to `out` the error that tells the sender of `original` that `what` cannot be
/// reached. It comes from the address that `original` went to and quotes as much of it as
/// makes 576 bytes in all for IPv4 (RFC 1812 4.3.2.3), 1280 for IPv6 (RFC 4443 2.4 c).
///
/// # Errors
///
/// [`NoReply`] where RFC 1122 3.2.2 or RFC 4443 2.4 e forbids an error.
pub fn unreachable(
    original: &IpPacket<'_>,
    what: Unreachable,
    out: &mut Vec<u8>,
) -> Result<(), NoReply> {
    check_error(original)?;
    Ok(error(
        original.destination,
        original.source,
        what,
        original.bytes,
        out,
    )?)
}

/// Writes to `out` the error for a UDP datagram that was sent on and is no longer at hand: the
/// real server's own ICMP error came back on the flow's socket. The quoted headers are made
/// from the flow: `client` sent `payload_len` bytes to `virtual_server`. A client finds its
/// socket by the quoted addresses and ports (RFC 1122 3.2.2.1 asks for the header and 8 bytes).
///
/// # Errors
///
/// [`CannotBuild`] for addresses of two families and a payload that is too long.
pub fn udp_unreachable(
    client: SocketAddr,
    virtual_server: SocketAddr,
    payload_len: usize,
    what: Unreachable,
    out: &mut Vec<u8>,
) -> Result<(), CannotBuild> {
    // 40 bytes of IPv6 header and 8 of UDP.
    let mut quote = [0; 48];
    let ip_len = udp_ip_header(client, virtual_server, payload_len, None).write(&mut quote)?;
    let end = ip_len + HEADER_LEN;
    quote[ip_len..end].copy_from_slice(&plain_header(client, virtual_server, payload_len)?);
    error(virtual_server.ip(), client.ip(), what, &quote[..end], out)
}

fn error(
    source: IpAddr,
    destination: IpAddr,
    what: Unreachable,
    original: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CannotBuild> {
    let (protocol, kind, code, traffic_class, limit) = if source.is_ipv4() {
        (
            ICMP,
            UNREACHABLE_V4,
            what.code_v4(),
            INTERNETWORK_CONTROL,
            IPV4_ERROR_LEN,
        )
    } else {
        (ICMPV6, UNREACHABLE_V6, what.code_v6(), 0, IPV6_MINIMUM_MTU)
    };
    let mut header = Header {
        source,
        destination,
        protocol,
        traffic_class,
        ident: None,
        payload_len: 0,
    };
    let room = limit - header.len() - HEADER_LEN;
    let quote = &original[..original.len().min(room)];
    header.payload_len = HEADER_LEN + quote.len();
    message(header, [kind, code, 0, 0, 0, 0, 0, 0], quote, out)
}

/// Writes an ICMP message: `head`, whose checksum field is zero, and `body`.
fn message(
    header: Header,
    head: [u8; HEADER_LEN],
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CannotBuild> {
    header.start(out)?;
    out.extend_from_slice(&head);
    out.extend_from_slice(body);
    let message = &mut out[header.len()..];
    // ICMP for IPv4 sums its own bytes alone (RFC 792); ICMPv6 adds the pseudo-header
    // (RFC 4443 2.3).
    let checksum = if header.source.is_ipv4() {
        checksum(message)
    } else {
        transport_checksum(header.source, header.destination, ICMPV6, &[], message)
    };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
