//! Writing IP headers.

use std::net::IpAddr;

use super::checksum::checksum;

/// Time to live and hop limit of every packet that we originate: the default that Linux and
/// IANA's "IP Time To Live" registry agree on.
pub const HOP_LIMIT: u8 = 64;

/// Bytes of an IPv4 header without options; we write none.
pub const IPV4_HEADER_LEN: usize = 20;

/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER_LEN: usize = 40;

/// What every IPv6 link carries (RFC 8200 5), in bytes with the IPv6 header.
pub const IPV6_MINIMUM_MTU: usize = 1280;

/// RFC 791 3.1: the don't-fragment flag.
const DONT_FRAGMENT: u16 = 0x4000;

/// Why a packet cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CannotBuild {
    /// One address is IPv4, the other IPv6.
    #[error("source and destination are of different address families")]
    Families,
    /// The payload does not fit the 16-bit length of the header.
    #[error("the payload is too long for one packet")]
    TooLong,
    /// The space given for the header is too small.
    #[error("the space for the header is too small")]
    Space,
    /// The payload that the checksum covers has another length than the one stated.
    #[error("the payload differs in length from what was stated")]
    PayloadLength,
    /// Only an IPv6 packet without extension headers can be cut into fragments.
    #[error("only a plain IPv6 packet can be cut into fragments")]
    NotPlainIpv6,
}

/// An IP header of ours: no options, no extension headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) traffic_class: u8,
    /// IPv4 only. A packet with an identification may be cut into fragments on its way; one
    /// without carries the don't-fragment flag and is atomic (RFC 6864 4).
    pub(super) ident: Option<u16>,
    /// Bytes behind the header.
    pub(super) payload_len: usize,
}

impl Header {
    /// The header of an answer to whoever sent `packet`. It keeps the DSCP; ECN is left
    /// to transports that use it (RFC 3168 6.1.4, 6.1.6).
    pub(super) fn answer(packet: &super::IpPacket<'_>, payload_len: usize) -> Self {
        Self {
            source: packet.destination,
            destination: packet.source,
            protocol: packet.protocol,
            traffic_class: packet.traffic_class & !0b11,
            ident: None,
            payload_len,
        }
    }

    /// Bytes of the header.
    #[inline]
    pub(super) fn len(&self) -> usize {
        if self.source.is_ipv4() {
            IPV4_HEADER_LEN
        } else {
            IPV6_HEADER_LEN
        }
    }

    /// Writes the header, its checksum included, to the start of `out`; returns its length.
    pub(super) fn write(&self, out: &mut [u8]) -> Result<usize, CannotBuild> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total_len = u16::try_from(self.payload_len.saturating_add(IPV4_HEADER_LEN))
                    .map_err(|_| CannotBuild::TooLong)?;
                let out = out
                    .first_chunk_mut::<IPV4_HEADER_LEN>()
                    .ok_or(CannotBuild::Space)?;
                out[0] = 0x45;
                out[1] = self.traffic_class;
                out[2..4].copy_from_slice(&total_len.to_be_bytes());
                let flags = if self.ident.is_some() {
                    0
                } else {
                    DONT_FRAGMENT
                };
                out[4..6].copy_from_slice(&self.ident.unwrap_or(0).to_be_bytes());
                out[6..8].copy_from_slice(&flags.to_be_bytes());
                out[8] = HOP_LIMIT;
                out[9] = self.protocol;
                out[10..12].fill(0);
                out[12..16].copy_from_slice(&source.octets());
                out[16..20].copy_from_slice(&destination.octets());
                let checksum = checksum(out);
                out[10..12].copy_from_slice(&checksum.to_be_bytes());
                Ok(IPV4_HEADER_LEN)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let payload_len =
                    u16::try_from(self.payload_len).map_err(|_| CannotBuild::TooLong)?;
                let out = out
                    .first_chunk_mut::<IPV6_HEADER_LEN>()
                    .ok_or(CannotBuild::Space)?;
                out[0] = 0x60 | self.traffic_class >> 4;
                out[1] = self.traffic_class << 4;
                out[2..4].fill(0);
                out[4..6].copy_from_slice(&payload_len.to_be_bytes());
                out[6] = self.protocol;
                out[7] = HOP_LIMIT;
                out[8..24].copy_from_slice(&source.octets());
                out[24..40].copy_from_slice(&destination.octets());
                Ok(IPV6_HEADER_LEN)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                Err(CannotBuild::Families)
            }
        }
    }

    /// Empties `out` and puts the header there.
    pub(super) fn start(&self, out: &mut Vec<u8>) -> Result<(), CannotBuild> {
        out.clear();
        out.resize(self.len(), 0);
        self.write(out)?;
        // The lengths are known to fit the header now.
        out.reserve(self.payload_len);
        Ok(())
    }
}
