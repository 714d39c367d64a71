//! A TUN that is made once with privilege and used without: it stays when nobody is
//! attached, and its owner may attach queues (drivers/net/tun.c, tun_not_capable).

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::error::TunError;
use super::queue::{Queues, adopt, open_queue, queue_error, set_up_device};

impl Queues {
    /// Gives the device to a user and lets it stay when its queues are closed.
    ///
    /// # Errors
    ///
    /// A user that this user namespace does not have (EINVAL).
    pub fn keep_for(&self, owner: u32) -> Result<(), TunError> {
        let Some(queue) = self.queues.first() else {
            return Ok(());
        };
        let set = |request, value: libc::c_ulong, what| {
            // SAFETY: both requests take their argument by value.
            let result = unsafe { libc::ioctl(queue.as_raw_fd(), request, value) };
            Errno::result(result)
                .map(drop)
                .map_err(|errno| queue_error(&self.name, 0, what, errno))
        };
        let owner = libc::c_ulong::from(owner);
        set(libc::TUNSETOWNER, owner, "ioctl TUNSETOWNER")?;
        set(libc::TUNSETPERSIST, 1, "ioctl TUNSETPERSIST")
    }
}

/// Attaches `count` queues to the device `name`, which is there and belongs to this
/// user. Nothing but its header and offloads is set, for which no privilege is needed.
///
/// # Errors
///
/// As [`open_queues`](super::open_queues); with privilege and without such a device one
/// is made.
pub fn attach_queues(name: &str, count: usize) -> Result<Queues, TunError> {
    let (first, name) = open_queue(name, 0, 0)?;
    let offloads = set_up_device(&first, &name)?;
    let index = if_nametoindex(name.as_str())
        .map_err(|errno| queue_error(&name, 0, "if_nametoindex", errno))?;
    let mut queues = vec![adopt(first, &name, 0)?];
    for number in 1..count {
        let (fd, _) = open_queue(&name, number, 0)?;
        queues.push(adopt(fd, &name, number)?);
    }
    Ok(Queues {
        name,
        index,
        queues,
        offloads,
    })
}
