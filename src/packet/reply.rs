//! Which packets may be answered at all.

use std::net::IpAddr;

use super::header::CannotBuild;
use super::ip::{IpPacket, Malformed};
use super::protocol::{ICMP, ICMPV6};

/// Why a packet gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoReply {
    /// The source does not name one other host: unspecified, loopback, multicast, broadcast,
    /// reserved, or the destination itself (RFC 1122 3.2.2, RFC 4443 2.4 e).
    #[error("the source address does not name one other host")]
    Source,
    /// The destination is multicast or broadcast (RFC 1122 3.2.2, RFC 4443 2.4 e).
    #[error("the destination address is multicast or broadcast")]
    Destination,
    /// No error about an error (RFC 1122 3.2.2, RFC 4443 2.4 e).
    #[error("the packet is an ICMP error or redirect itself")]
    IcmpError,
    /// No error about a fragment other than the first (RFC 1122 3.2.2).
    #[error("the packet is a fragment other than the first")]
    LaterFragment,
    /// No reset for a reset (RFC 9293 3.10.7.1).
    #[error("the segment is a reset itself")]
    Reset,
    /// The packet is not what the answer would be for.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The answer cannot be written.
    #[error(transparent)]
    Build(#[from] CannotBuild),
}

impl NoReply {
    /// A label for counters: lower case, words joined by underscores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "unanswerable_source",
            Self::Destination => "group_destination",
            Self::IcmpError => "icmp_error",
            Self::LaterFragment => "later_fragment",
            Self::Reset => "reset",
            Self::Malformed(malformed) => malformed.as_str(),
            Self::Build(_) => "cannot_build",
        }
    }
}

/// Whether an answer from `packet`'s destination to its source makes sense.
pub(super) fn check_addresses(packet: &IpPacket<'_>) -> Result<(), NoReply> {
    if packet.source == packet.destination || !names_one_host(packet.source) {
        return Err(NoReply::Source);
    }
    let group = match packet.destination {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    if group {
        return Err(NoReply::Destination);
    }
    Ok(())
}

/// Whether an ICMP error about `packet` may be sent.
pub(super) fn check_error(packet: &IpPacket<'_>) -> Result<(), NoReply> {
    check_addresses(packet)?;
    if packet.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Err(NoReply::LaterFragment);
    }
    let kind = packet.payload().first();
    let query = match (packet.protocol, packet.is_ipv4()) {
        // RFC 792 and RFC 950: echo, timestamp, information, address mask, and the
        // answers to them; RFC 1256: router discovery. The rest are errors or unknown.
        (ICMP, true) => matches!(kind, Some(0 | 8..=10 | 13..=18)),
        // RFC 4443 2.1: below 128 are errors; RFC 4443 2.4 e: nor about a redirect.
        (ICMPV6, false) => matches!(kind, Some(128..=136 | 138..)),
        _ => true,
    };
    if query {
        Ok(())
    } else {
        Err(NoReply::IcmpError)
    }
}

fn names_one_host(address: IpAddr) -> bool {
    match address {
        // 0/8 is "this network", 240/4 reserved with the broadcast address at its end
        // (RFC 6890 2.2.2).
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first < 240 && !address.is_loopback() && !address.is_multicast()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
        }
    }
}
