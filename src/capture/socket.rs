//! The packet socket (packet(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

/// Longest packet taken in whole, in bytes: the longest of IP without jumbograms.
pub const MAX_CAPTURED: usize = 65_536;

/// Receive buffer asked for, in bytes: a tenth of a second at 2.5 Gbit/s. Beyond
/// `net.core.rmem_max` only with CAP_NET_ADMIN; else the kernel cuts it.
const RECEIVE_BUFFER: usize = 32 << 20;

/// A non-blocking packet socket on all interfaces of the network namespace, also on
/// those that come later. Link headers are left out.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    control: Vec<u8>,
    dropped: u32,
}

/// What came with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Index of the interface.
    pub interface: u32,
    /// Whether this host sent it.
    pub outgoing: bool,
    /// When it passed the interface.
    pub at: SystemTime,
    /// Bytes of it in the buffer, from the IP header on.
    pub captured: usize,
    /// Bytes that it had.
    pub length: usize,
}

impl PacketSocket {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        let control = nix::cmsg_space!(TimeSpec, u32);
        Ok(Self {
            socket,
            control,
            dropped: 0,
        })
    }

    /// Takes in a packet; none when there is none. What another host sent to another,
    /// and the first of the two times that a packet passes the loopback interface, is
    /// passed over.
    ///
    /// # Errors
    ///
    /// recvmsg(2)'s.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        loop {
            match self.receive_one(buffer) {
                Ok(Some(received)) => return Ok(Some(received)),
                // ENETDOWN: an interface went down; the others go on.
                Ok(None) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive_one(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, Errno> {
        let room = buffer.len();
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut self.control),
            MsgFlags::MSG_TRUNC,
        )?;
        let Some(from) = message.address else {
            return Ok(None);
        };
        let outgoing = from.pkttype() == libc::PACKET_OUTGOING;
        let on_loopback = from.hatype() == libc::ARPHRD_LOOPBACK;
        if from.pkttype() == libc::PACKET_OTHERHOST || (outgoing && on_loopback) {
            return Ok(None);
        }
        let mut stamp = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(at) = control {
                stamp = Some(UNIX_EPOCH + Duration::from(at));
            } else if let ControlMessageOwned::RxqOvfl(dropped) = control {
                self.dropped = dropped;
            }
        }
        Ok(Some(Received {
            interface: from.ifindex() as u32,
            outgoing,
            at: stamp.unwrap_or_else(SystemTime::now),
            captured: message.bytes.min(room),
            length: message.bytes,
        }))
    }

    /// How many packets the kernel has dropped for want of room, up to the last one that
    /// was taken in (SO_RXQ_OVFL, socket(7)).
    pub fn dropped(&self) -> u32 {
        self.dropped
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
