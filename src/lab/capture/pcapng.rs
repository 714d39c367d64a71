//! Reading a pcapng file (draft-ietf-opsawg-pcapng) of one little-endian section.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Frame, LinkType};

/// What stands in a file.
#[derive(Clone, Debug, Default)]
pub struct PcapngFile {
    /// Names of its interfaces, by number.
    pub interfaces: Vec<String>,
    /// Its packets, in order.
    pub packets: Vec<Commented>,
    /// Packets that the system dropped, as the statistics of each interface say that
    /// have some.
    pub dropped: Vec<u64>,
}

/// A packet and what is said of it.
#[derive(Clone, Debug)]
pub struct Commented {
    /// Number of its interface.
    pub interface: usize,
    /// How long it was, if longer than what is in the file.
    pub original_length: usize,
    /// The frame.
    pub frame: Frame,
    /// Its comment.
    pub comment: String,
}

/// Reads a file.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] with the place where it is no such file, or cut short.
pub fn read_pcapng(bytes: &[u8]) -> io::Result<PcapngFile> {
    let mut file = PcapngFile::default();
    let mut at = 0;
    while at < bytes.len() {
        let wrong = |what: &str| {
            let error = format!("block at byte {at}: {what}");
            io::Error::new(io::ErrorKind::InvalidData, error)
        };
        let block = &bytes[at..];
        let length = u32_at(block, 4).ok_or_else(|| wrong("cut short"))? as usize;
        let block = block.get(..length).ok_or_else(|| wrong("cut short"))?;
        if length < 12 || !length.is_multiple_of(4) || u32_at(block, length - 4) != u32_at(block, 4)
        {
            return Err(wrong("its two lengths do not fit"));
        }
        let body = &block[8..length - 4];
        read_block(&mut file, u32_at(block, 0), body).ok_or_else(|| wrong("cannot be read"))?;
        if at == 0 && u32_at(block, 0) != Some(0x0a0d_0d0a) {
            return Err(wrong("no section header"));
        }
        at += length;
    }
    Ok(file)
}

fn read_block(file: &mut PcapngFile, kind: Option<u32>, body: &[u8]) -> Option<()> {
    match kind? {
        0x0a0d_0d0a => {
            // Byte order, version 1.0, length unknown.
            let header = body.get(..16)?;
            let expected = [&[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0][..], &[0xff; 8]].concat();
            (header == expected).then_some(())?;
            options(body.get(16..)?)?;
        }
        1 => {
            // LINKTYPE_RAW
            (body.get(..4)? == [101, 0, 0, 0]).then_some(())?;
            let options = options(body.get(8..)?)?;
            // Nanoseconds.
            (find(&options, 9)? == [9]).then_some(())?;
            file.interfaces.push(text(find(&options, 2)?)?);
        }
        5 => {
            let options = options(body.get(12..)?)?;
            let dropped = find(&options, 7)?.try_into().ok()?;
            file.dropped.push(u64::from_le_bytes(dropped));
        }
        6 => {
            let word = |number: usize| u32_at(body, number * 4);
            let time = u64::from(word(1)?) << 32 | u64::from(word(2)?);
            let length = word(3)? as usize;
            let options = options(body.get(20 + length.next_multiple_of(4)..)?)?;
            let at: SystemTime = UNIX_EPOCH + Duration::from_nanos(time);
            file.packets.push(Commented {
                interface: word(0)? as usize,
                original_length: word(4)? as usize,
                frame: Frame {
                    at,
                    outgoing: find(&options, 2)? == [2, 0, 0, 0],
                    link_type: LinkType::Raw,
                    bytes: body.get(20..20 + length)?.to_vec(),
                },
                comment: text(find(&options, 1)?)?,
            });
        }
        _ => {}
    }
    Some(())
}

/// Codes and values; None if they do not end as they must.
fn options(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    loop {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let code = u16::from_le_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if code == 0 {
            return (length == 0 && rest.is_empty()).then_some(found);
        }
        found.push((code, rest.get(..length)?));
        bytes = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn find<'a>(options: &[(u16, &'a [u8])], code: u16) -> Option<&'a [u8]> {
    let found = options.iter().find(|(other, _)| *other == code)?;
    Some(found.1)
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(word))
}
