//! Pipes through which splice(2) moves bytes from one socket to the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// Bytes that a pipe should hold: four super-packets, so that one wake-up of either
/// side moves more than one. The kernel's default is 64 KiB, which is what remains
/// where its limits for users (pipe(7), pipe-user-pages-soft) allow no more.
pub(super) const PIPE_BYTES: usize = 256 << 10;

/// Empty pipes that are kept for the next flow. A flow holds one only while bytes
/// are in it, so this bounds what idle descriptors a burst leaves behind.
const KEPT: usize = 256;

/// Bytes copied at a time where there is no pipe.
const COPY_BYTES: usize = 64 << 10;

/// Bytes on their way, in the kernel.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it.
    held: usize,
}

/// Empty pipes, and what helps out while no more are to be had.
#[derive(Debug)]
pub(super) struct Pipes {
    free: Vec<Pipe>,
    make: fn() -> io::Result<Pipe>,
    buffer: Vec<u8>,
}

impl Default for Pipes {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            make: Pipe::new,
            buffer: Vec::new(),
        }
    }
}

impl Pipes {
    /// None to be had, ever.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self {
            make: || Err(io::Error::from_raw_os_error(libc::EMFILE)),
            ..Self::default()
        }
    }

    /// An empty pipe.
    ///
    /// # Errors
    /// As pipe2(2): EMFILE, ENFILE.
    pub(super) fn take(&mut self) -> io::Result<Pipe> {
        self.free.pop().map_or_else(self.make, Ok)
    }

    /// Room to copy through where there is no pipe. What it holds means nothing.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        self.buffer.resize(COPY_BYTES, 0);
        &mut self.buffer
    }

    /// Takes a pipe back; one with bytes in it is closed, and they are lost.
    pub(super) fn give(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.free.len() < KEPT {
            self.free.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused to a user who has many: it works with less as well.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        Ok(Self {
            read,
            write,
            held: 0,
        })
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `limit` bytes from a socket in here; 0 at its end.
    ///
    /// # Errors
    /// As splice(2). `WouldBlock` says that the socket has nothing only if the pipe is
    /// empty: its slots can be used up before its bytes are.
    pub(super) fn fill(&mut self, from: impl AsFd, limit: usize) -> io::Result<usize> {
        let moved = splice(from, None, &self.write, None, limit, flags())?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves as much as `to` takes out of here.
    ///
    /// # Errors
    /// As splice(2); `WouldBlock` when the socket takes nothing now.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.read, None, to, None, self.held, flags())?;
        self.held -= moved;
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_pass_and_an_empty_pipe_is_used_again() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        let (to, mut receiver) = UnixStream::pair().unwrap();
        for socket in [&from, &to] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        assert_eq!(
            pipe.fill(&from, 100).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        sender.write_all(b"abc").unwrap();
        assert_eq!((pipe.fill(&from, 2).unwrap(), pipe.held()), (2, 2));
        assert_eq!((pipe.fill(&from, 2).unwrap(), pipe.held()), (1, 3));
        assert_eq!((pipe.drain(&to).unwrap(), pipe.held()), (3, 0));
        let mut room = [0; 3];
        receiver.read_exact(&mut room).unwrap();
        assert_eq!(&room, b"abc");
        drop(sender);
        assert_eq!(pipe.fill(&from, 2).unwrap(), 0);
        pipes.give(pipe);
        assert_eq!(pipes.free.len(), 1);
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_not_kept() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        sender.write_all(b"abc").unwrap();
        let mut pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        pipe.fill(&from, 3).unwrap();
        pipes.give(pipe);
        assert!(pipes.free.is_empty());
    }
}
