//! The queues of a device that another process made.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::error::TunError;
use super::queue::{Offloads, Queue, Queues, adopt, name_of, open_queue, queue_error};

/// Takes over queues of the device `name` that another process has opened, and attaches
/// more until there are `count`. Those that are too many stay: see [`Queue::detach`].
///
/// # Errors
///
/// A descriptor is no queue of that device; the device is not in this network namespace;
/// no capability to attach queues.
pub fn adopt_queues(
    name: &str,
    rights: Vec<OwnedFd>,
    count: usize,
    offloads: Offloads,
) -> Result<Queues, TunError> {
    let index =
        if_nametoindex(name).map_err(|errno| queue_error(name, 0, "if_nametoindex", errno))?;
    let mut queues = Vec::with_capacity(count.max(rights.len()));
    for (number, fd) in rights.into_iter().enumerate() {
        let its = name_of(&fd).map_err(|e| queue_error(name, number, "ioctl TUNGETIFF", e))?;
        if its != name {
            return Err(queue_error(name, number, "adopting", Errno::EINVAL));
        }
        queues.push(adopt(fd, name, number)?);
    }
    for number in queues.len()..count {
        let (fd, _) = open_queue(name, number, 0)?;
        queues.push(adopt(fd, name, number)?);
    }
    Ok(Queues {
        name: name.to_owned(),
        index,
        queues,
        offloads,
    })
}

impl Queue {
    /// Takes this queue off its device, in all processes that have it: packets come to
    /// the others from now on, and those that wait in it are lost. It can still be
    /// written to.
    ///
    /// # Errors
    ///
    /// As the ioctl TUNSETQUEUE.
    pub fn detach(&self) -> std::io::Result<()> {
        // SAFETY: `ifreq` is plain old data: an array and a union of such.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
        // SAFETY: TUNSETQUEUE reads one `ifreq`, which outlives the call.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) };
        Errno::result(result)?;
        Ok(())
    }
}
