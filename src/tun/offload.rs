//! The virtio-net header that stands before every packet of a queue.
//!
//! With IFF_VNET_HDR each read and write carries `struct virtio_net_hdr`
//! (include/uapi/linux/virtio_net.h) and then the IP packet:
//!
//! ```text
//!  0      1         2        4          6            8             10
//!  +------+---------+--------+----------+------------+-------------+
//!  |flags |gso_type |hdr_len |gso_size  |csum_start  |csum_offset  | IP packet …
//!  +------+---------+--------+----------+------------+-------------+
//! ```
//!
//! Offsets in it count from the first byte of the IP packet. Numbers are
//! little-endian on every host, since the queues ask for that (TUNSETVNETLE).
//!
//! A packet to be segmented later is one *super-packet*: a single IP and TCP
//! header, up to 64 KiB of payload, `gso_size` bytes of it per segment.

use smoltcp::wire::IpVersion;
use thiserror::Error;

/// Bytes of `struct virtio_net_hdr`, without the later `num_buffers`.
pub const VNET_HEADER_LEN: usize = 10;

/// Bytes of the largest frame a queue reads or takes: the header and an IP
/// packet of 65,535 bytes (RFC 791, Total Length; the TUN's largest MTU). A
/// read into less cuts the packet without saying so.
pub const MAX_FRAME_LEN: usize = VNET_HEADER_LEN + 65_535;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field holds the pseudo-header sum
/// only; `csum_start` and `csum_offset` say what is left to do.
const FLAG_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: somebody below has verified the checksum.
const FLAG_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN, or-ed to a TCP type: the first segment carries CWR.
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a TCP header (RFC 9293 section 3.1).
const TCP_CHECKSUM_OFFSET: u16 = 16;
/// Offset of the checksum in a UDP header (RFC 768).
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gso {
    /// An ordinary packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// One UDP datagram to be cut into IP fragments (UFO). Not asked for by
    /// [`Queue`](super::Queue), so that none arrives.
    UdpFragments,
    /// Several UDP datagrams of `gso_size` bytes each, the last may be shorter
    /// (USO, VIRTIO_NET_HDR_GSO_UDP_L4).
    UdpDatagrams,
}

/// How far the transport checksum of a received packet can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumState {
    /// The sender, a socket of this machine, left the checksum to the device:
    /// the field holds the pseudo-header sum. Nothing has damaged the packet
    /// and nothing is there to verify. Passed on outside the TUN the checksum
    /// has to be made first.
    Partial {
        /// First byte to sum, counted from the start of the IP packet.
        start: u16,
        /// Where the checksum goes, counted from `start`.
        offset: u16,
    },
    /// Verified below; nothing to do.
    Valid,
    /// Nobody has looked: verify it.
    MustVerify,
}

/// A header that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VnetHeaderError {
    /// `gso_type` is none that we asked the kernel for.
    #[error("virtio-net header: unknown gso_type {0:#04x}")]
    UnknownGso(u8),
    /// A super-packet without a segment size.
    #[error("virtio-net header: gso_type {0:#04x} with gso_size 0")]
    NoGsoSize(u8),
    /// The checksum field lies beyond the end of the packet.
    #[error(
        "virtio-net header: checksum at {start}+{offset} lies outside the packet of {packet_len} \
         bytes"
    )]
    ChecksumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the IP packet behind the header.
        packet_len: usize,
    },
}

/// One virtio-net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VnetHeader {
    /// VIRTIO_NET_HDR_F_ bits; see [`checksum_state`](Self::checksum_state).
    pub flags: u8,
    /// Kind of super-packet.
    pub gso: Gso,
    /// The super-packet carries ECN's CWR, to be kept to its first segment.
    pub ecn: bool,
    /// Bytes of IP and transport header, as a hint (the kernel raises it to
    /// cover the checksum field).
    pub header_len: u16,
    /// Payload bytes per segment; 0 for an ordinary packet.
    pub gso_size: u16,
    /// Where summing starts: bytes of the IP header.
    pub csum_start: u16,
    /// Where the sum goes, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// An ordinary packet whose checksums are all made.
    #[inline]
    pub const fn none() -> Self {
        Self {
            flags: 0,
            gso: Gso::None,
            ecn: false,
            header_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
        }
    }

    /// An ordinary packet whose transport checksum the kernel completes: the
    /// field at `csum_start + csum_offset` holds the pseudo-header sum, not
    /// complemented.
    #[inline]
    pub const fn needs_checksum(csum_start: u16, csum_offset: u16) -> Self {
        Self {
            flags: FLAG_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Self::none()
        }
    }

    /// [`needs_checksum`](Self::needs_checksum) for a TCP segment behind an IP
    /// header of `csum_start` bytes.
    #[inline]
    pub const fn tcp_checksum(csum_start: u16) -> Self {
        Self::needs_checksum(csum_start, TCP_CHECKSUM_OFFSET)
    }

    /// [`needs_checksum`](Self::needs_checksum) for a UDP datagram behind an IP
    /// header of `csum_start` bytes.
    #[inline]
    pub const fn udp_checksum(csum_start: u16) -> Self {
        Self::needs_checksum(csum_start, UDP_CHECKSUM_OFFSET)
    }

    /// A TCP super-packet: `header_len` bytes of IP and TCP header, then payload
    /// that the kernel, or the last device that can, cuts into segments of
    /// `gso_size` bytes. The IP total length counts the whole super-packet, and
    /// the TCP checksum field holds the pseudo-header sum for that length.
    ///
    /// Not for a payload of `gso_size` bytes or less; such a packet takes
    /// [`tcp_checksum`](Self::tcp_checksum).
    #[inline]
    pub const fn tcp_segments(
        version: IpVersion,
        header_len: u16,
        gso_size: u16,
        csum_start: u16,
    ) -> Self {
        let gso = match version {
            IpVersion::Ipv4 => Gso::TcpV4,
            IpVersion::Ipv6 => Gso::TcpV6,
        };
        Self {
            gso,
            header_len,
            gso_size,
            ..Self::tcp_checksum(csum_start)
        }
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// A `gso_type` that we never asked for, or a super-packet whose `gso_size`
    /// is 0. Flags that we do not know are kept and mean nothing.
    #[inline]
    pub const fn parse(bytes: &[u8; VNET_HEADER_LEN]) -> Result<Self, VnetHeaderError> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP => Gso::UdpFragments,
            GSO_UDP_L4 => Gso::UdpDatagrams,
            _ => return Err(VnetHeaderError::UnknownGso(gso_type)),
        };
        let gso_size = u16::from_le_bytes([g0, g1]);
        if gso_size == 0 && !matches!(gso, Gso::None) {
            return Err(VnetHeaderError::NoGsoSize(gso_type));
        }
        Ok(Self {
            flags,
            gso,
            ecn: gso_type & GSO_ECN != 0,
            header_len: u16::from_le_bytes([h0, h1]),
            gso_size,
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// Writes the header.
    #[inline]
    pub const fn write(&self, bytes: &mut [u8; VNET_HEADER_LEN]) {
        let gso_type = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::UdpFragments => GSO_UDP,
            Gso::UdpDatagrams => GSO_UDP_L4,
        } | if self.ecn { GSO_ECN } else { 0 };
        let [h0, h1] = self.header_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        *bytes = [self.flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1];
    }

    /// What is to be done about the transport checksum of a received packet of
    /// `packet_len` bytes.
    ///
    /// # Errors
    ///
    /// The header points outside the packet.
    #[inline]
    pub const fn checksum_state(
        &self,
        packet_len: usize,
    ) -> Result<ChecksumState, VnetHeaderError> {
        if self.flags & FLAG_NEEDS_CSUM != 0 {
            let (start, offset) = (self.csum_start, self.csum_offset);
            // Two u16 and the two bytes of the sum cannot overflow a usize.
            if start as usize + offset as usize + 2 > packet_len {
                return Err(VnetHeaderError::ChecksumOutside {
                    start,
                    offset,
                    packet_len,
                });
            }
            Ok(ChecksumState::Partial { start, offset })
        } else if self.flags & FLAG_DATA_VALID != 0 {
            Ok(ChecksumState::Valid)
        } else {
            Ok(ChecksumState::MustVerify)
        }
    }
}

#[cfg(test)]
mod tests;
