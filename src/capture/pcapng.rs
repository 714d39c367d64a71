//! The pcapng file format (draft-ietf-opsawg-pcapng), as much of it as a capture needs.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Section header block, with the magic that says in which byte order the file is.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Interface description block.
const INTERFACE: u32 = 1;
/// Interface statistics block.
const STATISTICS: u32 = 5;
/// Enhanced packet block.
const PACKET: u32 = 6;

/// Options of every block.
const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
/// Option of a section header: the program that wrote it (shb_userappl).
const APPLICATION: u16 = 4;
/// Options of an interface description: if_name, if_tsresol.
const NAME: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
/// Option of a packet: epb_flags, whose lowest two bits are the direction.
const FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Options of statistics: isb_ifrecv, isb_osdrop.
const RECEIVED: u16 = 4;
const DROPPED: u16 = 7;

/// LINKTYPE_RAW: packets begin with the IP header.
const LINK_TYPE_RAW: u16 = 101;

/// Longest packet in a file, as tcpdump has it.
const SNAP_LENGTH: u32 = 262_144;

/// if_tsresol: times are in nanoseconds (10^-9).
const NANOSECONDS: u8 = 9;

/// One packet to write.
#[derive(Clone, Copy, Debug)]
pub struct PcapngPacket<'a> {
    /// What [`PcapngWriter::interface`] returned.
    pub interface: u32,
    /// When it passed the interface.
    pub at: SystemTime,
    /// Whether this host sent it.
    pub outgoing: bool,
    /// Its bytes from the IP header on.
    pub bytes: &'a [u8],
    /// How many there were, if some are left out.
    pub original_length: usize,
    /// What to say of it.
    pub comment: &'a str,
}

/// Writes one section, little endian, of packets that begin with the IP header.
///
/// What is written up to any block's end is a file that can be read.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    interfaces: u32,
    /// The block that is being put together.
    block: Vec<u8>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a section that names the program which writes it.
    ///
    /// # Errors
    ///
    /// When it cannot be written, as of every method here.
    pub fn new(out: W, application: &str) -> io::Result<Self> {
        let mut writer = Self {
            out,
            interfaces: 0,
            block: Vec::new(),
        };
        writer.begin(SECTION_HEADER);
        writer.u32(BYTE_ORDER_MAGIC);
        writer.u16(1); // version 1.0
        writer.u16(0);
        // Section length: not known beforehand.
        writer.block.extend(u64::MAX.to_le_bytes());
        writer.option(APPLICATION, application.as_bytes());
        writer.end()?;
        Ok(writer)
    }

    /// Describes an interface; its number is what packets refer to.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn interface(&mut self, name: &str) -> io::Result<u32> {
        self.begin(INTERFACE);
        self.u16(LINK_TYPE_RAW);
        self.u16(0);
        self.u32(SNAP_LENGTH);
        self.option(NAME, name.as_bytes());
        self.option(TIME_RESOLUTION, &[NANOSECONDS]);
        self.end()?;
        let number = self.interfaces;
        self.interfaces += 1;
        Ok(number)
    }

    /// Writes a packet.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn packet(&mut self, packet: &PcapngPacket<'_>) -> io::Result<()> {
        self.begin(PACKET);
        self.u32(packet.interface);
        self.time(packet.at);
        self.length(packet.bytes.len());
        self.length(packet.original_length);
        self.padded(packet.bytes);
        let direction = if packet.outgoing { OUTBOUND } else { INBOUND };
        self.option(COMMENT, packet.comment.as_bytes());
        self.option(FLAGS, &direction.to_le_bytes());
        self.end()
    }

    /// Says of an interface how many packets came in and how many of them the system
    /// dropped.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn statistics(
        &mut self,
        interface: u32,
        at: SystemTime,
        received: u64,
        dropped: u64,
        comment: &str,
    ) -> io::Result<()> {
        self.begin(STATISTICS);
        self.u32(interface);
        self.time(at);
        self.option(COMMENT, comment.as_bytes());
        self.option(RECEIVED, &received.to_le_bytes());
        self.option(DROPPED, &dropped.to_le_bytes());
        self.end()
    }

    /// Hands on what the writer below still holds.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The writer below.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.u32(kind);
        self.u32(0); // the length, once it is known
    }

    /// Every block here has options, which want an end; its length stands at both ends.
    fn end(&mut self) -> io::Result<()> {
        self.u16(END_OF_OPTIONS);
        self.u16(0);
        let length = self.block.len() + 4;
        self.length(length);
        let at_the_end = self.block.len() - 4;
        self.block.copy_within(at_the_end.., 4);
        self.out.write_all(&self.block)
    }

    /// What does not fit into the option's length is left out, at a character's start if
    /// it is text.
    fn option(&mut self, code: u16, value: &[u8]) {
        let mut length = value.len().min(usize::from(u16::MAX));
        while length < value.len() && value[length] & 0xc0 == 0x80 {
            length -= 1;
        }
        self.u16(code);
        self.u16(length as u16);
        self.padded(&value[..length]);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// Two halves, the upper one first.
    fn time(&mut self, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // 64 bits of nanoseconds last until the year 2554.
        let nanoseconds = since.as_nanos() as u64;
        self.u32((nanoseconds >> 32) as u32);
        self.u32(nanoseconds as u32);
    }

    fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn u16(&mut self, value: u16) {
        self.block.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.block.extend(value.to_le_bytes());
    }
}
