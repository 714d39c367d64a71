//! The pcap file format (draft-ietf-opsawg-pcap), microsecond flavour.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::Frame;

/// How the bytes of a frame begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet,
    /// The IP header itself, as on a TUN.
    Raw,
}

/// Ethernet: two addresses and the type of what follows.
const ETHERNET_HEADER: usize = 14;

impl LinkType {
    /// The number in a pcap file (LINKTYPE_ETHERNET, LINKTYPE_RAW).
    fn number(self) -> u32 {
        match self {
            Self::Ethernet => 1,
            Self::Raw => 101,
        }
    }

    /// The IP packet in a frame; None when it holds something else.
    pub fn network_layer(self, frame: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Raw => Some(frame),
            Self::Ethernet => match frame.get(12..ETHERNET_HEADER)? {
                // ETH_P_IP, ETH_P_IPV6
                [0x08, 0x00] | [0x86, 0xdd] => frame.get(ETHERNET_HEADER..),
                _ => None,
            },
        }
    }
}

/// Writes frames of one interface to a file that tcpdump and Wireshark read.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_pcap(path: &Path, frames: &[Frame]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let link_type = frames
        .first()
        .map_or(LinkType::Ethernet, |frame| frame.link_type);
    write_header(&mut file, link_type)?;
    frames
        .iter()
        .try_for_each(|frame| write_frame(&mut file, frame))?;
    file.flush()
}

pub(super) fn write_header(out: &mut impl Write, link_type: LinkType) -> io::Result<()> {
    /// Microseconds, in this machine's byte order.
    const MAGIC: u32 = 0xa1b2_c3d4;
    const SNAP_LENGTH: u32 = 262_144;
    out.write_all(&MAGIC.to_ne_bytes())?;
    out.write_all(&2_u16.to_ne_bytes())?; // version 2.4
    out.write_all(&4_u16.to_ne_bytes())?;
    out.write_all(&[0; 8])?; // time zone and accuracy, both unused
    out.write_all(&SNAP_LENGTH.to_ne_bytes())?;
    out.write_all(&link_type.number().to_ne_bytes())
}

pub(super) fn write_frame(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let at = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The format's seconds are 32 bits wide.
    let seconds = at.as_secs() as u32;
    let length = u32::try_from(frame.bytes.len()).map_err(io::Error::other)?;
    for word in [seconds, at.subsec_micros(), length, length] {
        out.write_all(&word.to_ne_bytes())?;
    }
    out.write_all(&frame.bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_has_a_header_and_a_record_for_each_frame() {
        let frame = Frame {
            at: UNIX_EPOCH + Duration::new(7, 5_000),
            outgoing: true,
            link_type: LinkType::Raw,
            bytes: vec![0x45, 1, 2],
        };
        let mut out = Vec::new();
        write_header(&mut out, LinkType::Raw).unwrap();
        write_frame(&mut out, &frame).unwrap();
        assert_eq!(out.len(), 24 + 16 + 3);
        assert_eq!(out[20..24], 101_u32.to_ne_bytes());
        assert_eq!(out[24..28], 7_u32.to_ne_bytes());
        assert_eq!(out[28..32], 5_u32.to_ne_bytes());
        assert_eq!(out[36..40], 3_u32.to_ne_bytes());
        assert_eq!(out[40..], [0x45, 1, 2]);
    }

    #[test]
    fn only_ip_is_a_packet() {
        let mut arp = [0; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(LinkType::Ethernet.network_layer(&arp), None);
        assert_eq!(LinkType::Ethernet.network_layer(&arp[..10]), None);
        arp[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(LinkType::Ethernet.network_layer(&arp).unwrap().len(), 46);
    }
}
