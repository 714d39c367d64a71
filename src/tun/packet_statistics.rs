//! What a packet socket has taken and lost (packet(7)).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Packets since the last answer, or since the socket was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketStatistics {
    /// Those that its filter has let in.
    pub received: u32,
    /// Those among them that the kernel has dropped for want of room.
    pub dropped: u32,
}

/// Asks a packet socket, whose counts begin anew with the answer.
///
/// # Errors
///
/// getsockopt(2)'s.
pub fn packet_statistics(socket: BorrowedFd<'_>) -> io::Result<PacketStatistics> {
    // SAFETY: tpacket_stats is plain numbers, for which zero is a value.
    let mut statistics: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `statistics`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(PacketStatistics {
        received: statistics.tp_packets,
        dropped: statistics.tp_drops,
    })
}
