//! Descriptors that travel between processes (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that one message carries at most: SCM_MAX_FD (include/net/scm.h).
pub const MAX_RIGHTS: usize = 253;

/// Sends bytes on a unix socket, at least one, and with the first of them descriptors,
/// at most [`MAX_RIGHTS`]. Returns how many bytes were taken.
///
/// # Errors
/// As sendmsg(2).
pub fn send_rights(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    rights: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<RawFd> = rights.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &control };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let parts = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(
        socket.as_raw_fd(),
        &parts,
        control,
        flags,
        None,
    )?)
}

/// Receives bytes from a unix socket, and the descriptors that came with them.
///
/// # Errors
/// As recvmsg(2); `InvalidData` when there was no room for descriptors.
pub fn receive_rights(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    rights: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = cmsg_space!([RawFd; MAX_RIGHTS]);
    let mut parts = [IoSliceMut::new(room)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just installed these descriptors in this process,
            // and nobody else knows of them.
            rights.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors were lost: the limit on open files may be reached",
        ));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        assert_eq!(
            send_rights(here.as_fd(), b"take", &[sent.as_fd()]).unwrap(),
            4
        );
        drop(sent);
        let mut room = [0; 10];
        let mut rights = Vec::new();
        assert_eq!(
            receive_rights(there.as_fd(), &mut room, &mut rights).unwrap(),
            4
        );
        assert_eq!(&room[..4], b"take");
        let mut arrived = UnixStream::from(rights.pop().unwrap());
        assert!(rights.is_empty());
        arrived.write_all(b"hi").unwrap();
        drop(arrived);
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
        drop(here);
        assert_eq!(
            receive_rights(there.as_fd(), &mut room, &mut rights).unwrap(),
            0
        );
    }
}
