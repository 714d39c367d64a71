//! Packets as checked views and as bytes to send: bytes in, bytes out, no clock, no socket.
//!
//! Reading: [`IpPacket::parse`] checks a packet once; [`TcpSegment`], [`UdpDatagram`] and
//! [`Echo`] read on from there, without allocating and without panicking whatever the bytes.
//! Writing: every answer that the proxy gives without a TCP endpoint of its own
//! ([`echo_reply`], [`unreachable()`], [`tcp_reset`]) and the headers of its UDP datagrams
//! ([`udp_header`], [`udp_fragments_v6`]); and the PROXY protocol's header
//! ([`proxy_header_v1`], [`proxy_header_v2`]).
//! Two small pieces of state, each owned by one worker and given the time as an argument:
//! [`FragmentStore`] puts IP fragments together, [`ErrorLimiter`] bounds the errors that we
//! originate.
//!
//! There is no task and no thread here; nothing has to be stopped.

mod checksum;
mod cut;
mod extension;
mod fragment;
mod header;
mod icmp;
mod ip;
mod limiter;
mod proxy_header;
mod reply;
mod tcp;
mod udp;

#[cfg(test)]
mod samples;

#[cfg(test)]
mod proptests;

pub use checksum::{ipv4_header_checksum_ok, pseudo_header_sum, transport_checksum_ok};
pub use cut::{fragment_v6, udp_fragments_v6};
pub use fragment::{FragmentDrop, FragmentLimits, FragmentOutcome, FragmentStore};
pub use header::{CannotBuild, HOP_LIMIT, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IPV6_MINIMUM_MTU};
pub use icmp::{Echo, Unreachable, echo_reply, port_unreachable, udp_unreachable, unreachable};
pub use ip::{FragmentInfo, IpPacket, Malformed};
pub use limiter::{ErrorLimiter, ErrorLimits, OriginatedError, Rate};
pub use proxy_header::{PROXY_HEADER_MAX, proxy_header_v1, proxy_header_v2};
pub use reply::NoReply;
pub use tcp::{TcpFlags, TcpSegment, tcp_ack, tcp_reset};
pub use udp::{ChecksumMode, UDP_CHECKSUM_OFFSET, UDP_HEADER_LEN, UdpDatagram, udp_header};

/// Protocol numbers as IPv4's protocol field and IPv6's next header field carry them
/// (IANA, "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP: told apart so that its packets can be counted, not carried.
    pub const SCTP: u8 = 132;
}
