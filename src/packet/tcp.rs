//! TCP segments, and the reset for a segment that no connection wants.

use std::ops::BitOr;

use super::checksum::transport_checksum;
use super::header::Header;
use super::ip::{IpPacket, Malformed, be16};
use super::protocol::TCP;
use super::reply::{NoReply, check_addresses};

/// Bytes of a TCP header without options (RFC 9293 3.1).
const HEADER_LEN: usize = 20;
/// RFC 9293 3.2: option kinds.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// The control bits of a segment (RFC 9293 3.1), CWR and ECE of RFC 3168 included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// FIN is set.
    #[inline]
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// SYN is set.
    #[inline]
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// RST is set.
    #[inline]
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// PSH is set.
    #[inline]
    pub const fn psh(self) -> bool {
        self.contains(Self::PSH)
    }

    /// ACK is set.
    #[inline]
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// Opens a connection: SYN alone, with neither ACK, RST nor FIN.
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A TCP segment whose header is checked. Its checksum is not looked at; see
/// [`transport_checksum_ok`](super::transport_checksum_ok).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: u32,
    /// Acknowledgment number; it counts where `flags` has ACK.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Window as written, not scaled.
    pub window: u16,
    /// Bytes of header and options.
    pub header_len: usize,
    /// The options, padding included, not checked.
    pub options: &'a [u8],
    /// The data; of a super-packet, the data of all its segments.
    pub payload: &'a [u8],
}

impl<'a> TcpSegment<'a> {
    /// Checks the TCP header of a whole packet.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the packet is a fragment, carries another protocol or has a header
    /// that does not fit.
    #[inline]
    pub fn parse(packet: &IpPacket<'a>) -> Result<Self, Malformed> {
        let segment = packet.transport(TCP)?;
        let header = segment
            .first_chunk::<HEADER_LEN>()
            .ok_or(Malformed::TransportTruncated)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        let options = segment
            .get(HEADER_LEN..header_len)
            .ok_or(Malformed::DataOffset)?;
        Ok(Self {
            source_port: be16(header[0], header[1]),
            destination_port: be16(header[2], header[3]),
            seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            flags: TcpFlags(header[13]),
            window: be16(header[14], header[15]),
            header_len,
            options,
            payload: &segment[header_len..],
        })
    }

    /// What the segment takes of the sequence space: its data, SYN and FIN (RFC 9293 3.4).
    #[inline]
    pub fn segment_len(&self) -> u32 {
        // An IP packet holds less than 2^16 bytes.
        self.payload.len() as u32 + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }

    /// The maximum segment size option (RFC 9293 3.7.1), in bytes of data.
    pub fn max_segment_size(&self) -> Option<u16> {
        let mut options = self.options;
        loop {
            match *options {
                [] | [OPTION_END, ..] => return None,
                [OPTION_NOP, ref rest @ ..] => options = rest,
                [OPTION_MSS, 4, high, low, ..] => return Some(be16(high, low)),
                // A length below 2 would never get past this option.
                [_, length, ..] if length >= 2 => options = options.get(usize::from(length)..)?,
                [_, ..] => return None,
            }
        }
    }
}

/// Writes to `out` the reset with which a host without such a connection answers the TCP
/// segment in `packet` (RFC 9293 3.10.7.1).
///
/// `packet`'s checksum must have been verified, by the kernel or by
/// [`transport_checksum_ok`](super::transport_checksum_ok).
///
/// # Errors
///
/// [`NoReply`] for a reset, for addresses that cannot be answered, and for what is no segment.
pub fn tcp_reset(packet: &IpPacket<'_>, out: &mut Vec<u8>) -> Result<(), NoReply> {
    let segment = TcpSegment::parse(packet)?;
    if segment.flags.rst() {
        return Err(NoReply::Reset);
    }
    check_addresses(packet)?;
    let (seq, ack, flags) = if segment.flags.ack() {
        (segment.ack, 0, TcpFlags::RST)
    } else {
        (
            0,
            segment.seq.wrapping_add(segment.segment_len()),
            TcpFlags::RST | TcpFlags::ACK,
        )
    };
    bare(packet, &segment, (seq, ack, flags), out)
}

/// Writes to `out` a bare ACK in answer to the segment in `packet`: what a connection in
/// TIME_WAIT repeats when the peer's FIN comes again (RFC 9293 3.10.7.4).
///
/// # Errors
///
/// As [`tcp_reset`].
pub fn tcp_ack(
    packet: &IpPacket<'_>,
    seq: u32,
    ack: u32,
    out: &mut Vec<u8>,
) -> Result<(), NoReply> {
    let segment = TcpSegment::parse(packet)?;
    if segment.flags.rst() {
        return Err(NoReply::Reset);
    }
    check_addresses(packet)?;
    bare(packet, &segment, (seq, ack, TcpFlags::ACK), out)
}

/// A segment of a header alone, back to where `segment` came from.
fn bare(
    packet: &IpPacket<'_>,
    segment: &TcpSegment<'_>,
    (seq, ack, flags): (u32, u32, TcpFlags),
    out: &mut Vec<u8>,
) -> Result<(), NoReply> {
    let header = Header::answer(packet, HEADER_LEN);
    header.start(out)?;
    let mut tcp = [0; HEADER_LEN];
    tcp[0..2].copy_from_slice(&segment.destination_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.source_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    // The data offset counts words of 4 bytes in the upper half of its byte.
    tcp[12] = (HEADER_LEN as u8 / 4) << 4;
    tcp[13] = flags.0;
    let checksum = transport_checksum(header.source, header.destination, TCP, &tcp, &[]);
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(&tcp);
    Ok(())
}

#[cfg(test)]
mod tests;
