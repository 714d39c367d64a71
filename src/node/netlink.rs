//! One dump request over a netlink socket, of any protocol.
//!
//! The kernel answers a request within the call that sends it, so the socket never
//! waits: what is not there then does not come (netlink_dump, net/netlink/af_netlink.c).

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// `struct nlmsghdr`, linux/netlink.h.
const HEADER_LEN: usize = 16;

/// NLMSG_ERROR, NLMSG_DONE and what lies below the families' own types,
/// linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const MIN_TYPE: u16 = 16;

/// NLM_F_REQUEST | NLM_F_DUMP, linux/netlink.h.
const DUMP: u16 = 0x001 | 0x300;

/// Space for one read: the kernel writes at most 32 KiB of a dump at a time
/// (netlink_dump).
const READ: usize = 64 << 10;

/// Asks `protocol` for a dump; the answer is the payload of each message, behind the
/// netlink header.
///
/// # Errors
///
/// No such protocol in the kernel (EPROTONOSUPPORT), no permission (EPERM), or what the
/// family says.
pub(super) fn dump(protocol: isize, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    let mut request = Vec::with_capacity(HEADER_LEN + payload.len());
    let length = u32::try_from(HEADER_LEN + payload.len()).map_err(io::Error::other)?;
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence and port: there is one request on this socket.
    request.extend([0; 8]);
    request.extend(payload);
    socket.send(&request, 0)?;
    let mut found = Vec::new();
    loop {
        let mut buffer = Vec::with_capacity(READ);
        socket.recv(&mut buffer, 0)?;
        if take(&buffer, &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes the messages of one read; whether the dump is at its end.
fn take(mut bytes: &[u8], found: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some((length, kind)) = header(bytes) {
        let (Some(payload), rest) = (
            bytes.get(HEADER_LEN..length),
            bytes.get(aligned(length)..).unwrap_or_default(),
        ) else {
            return Err(io::Error::other("a netlink message is cut short"));
        };
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = payload
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                return Ok(true);
            }
            _ if kind >= MIN_TYPE => found.push(payload.to_vec()),
            _ => {}
        }
        bytes = rest;
    }
    Ok(false)
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    (length >= HEADER_LEN).then_some((length, kind))
}

/// The value of the first attribute of this type among `attributes`.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// NLA_TYPE_MASK and the size of `struct nlattr`, linux/netlink.h.
    const TYPE: u16 = 0x3fff;
    const HEADER: usize = 4;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(HEADER..length)?;
        if kind & TYPE == wanted {
            return Some(value);
        }
        attributes = attributes.get(aligned(length)..)?;
    }
}

/// Text up to its NUL.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// Messages and attributes begin at multiples of four bytes (NLMSG_ALIGN).
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER_LEN + payload.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_of_a_read_are_told_apart() {
        let mut bytes = message(16, b"one");
        bytes.extend(message(16, b"four"));
        let mut found = Vec::new();
        assert!(!take(&bytes, &mut found).unwrap());
        assert_eq!(found, [b"one".to_vec(), b"four".to_vec()]);
        assert!(take(&message(DONE, &[0; 4]), &mut found).unwrap());
        let refused = message(ERROR, &(-libc::EPERM).to_ne_bytes());
        let error = take(&refused, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(take(&message(16, b"cut short")[..20], &mut found).is_err());
    }

    #[test]
    fn an_attribute_is_found_by_its_type() {
        let attributes = [
            &[5, 0, 1, 0, b'x', 0, 0, 0][..],
            &[8, 0, 2, 0x80, b'a', b'b', b'c', 0],
        ]
        .concat();
        assert_eq!(attribute(&attributes, 2).map(text).unwrap(), "abc");
        assert_eq!(attribute(&attributes, 1), Some(&b"x"[..]));
        assert_eq!(attribute(&attributes, 3), None);
        assert_eq!(attribute(&[200, 0, 1, 0, 0], 1), None);
    }
}
