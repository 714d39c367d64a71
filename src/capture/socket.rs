//! The packet socket.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::SystemTime;

use super::filter::{self, Instruction};
use super::scope::Scope;
use crate::tun::PacketRing;

/// Longest packet taken in whole, in bytes: the longest of IP without jumbograms.
pub const MAX_CAPTURED: usize = 65_536;

/// Memory of the ring, in bytes: 1,920 packets at full length, which is 50 ms of a bulk
/// transfer at 10 Gbit/s in super-packets of 64 KiB, on both sides; 645,000 with 128 bytes
/// of each.
const RING: usize = 128 << 20;

/// Takes in packets of all interfaces of the network namespace, also of those that come
/// later. Link headers are left out.
#[derive(Debug)]
pub struct PacketSocket {
    ring: PacketRing,
    snapshot: usize,
    filter: Filter,
}

/// What the kernel filters by.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    /// Nothing yet.
    None,
    Program(Vec<Instruction>),
    /// It takes no filter from this process.
    Refused,
}

/// What came with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Index of the interface.
    pub interface: u32,
    /// Whether this host sent it.
    pub outgoing: bool,
    /// Hardware type of the interface (ARPHRD_*, linux/if_arp.h).
    pub hardware: u16,
    /// When it passed the interface.
    pub at: SystemTime,
    /// Bytes that it had.
    pub length: usize,
}

impl PacketSocket {
    /// Opens it in the network namespace of the calling thread, for up to `snapshot` bytes
    /// of each packet. Nothing is taken in before [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_RAW.
    pub fn open(snapshot: usize) -> io::Result<Self> {
        let snapshot = snapshot.min(MAX_CAPTURED);
        Ok(Self {
            ring: PacketRing::open(snapshot, RING)?,
            snapshot,
            filter: Filter::None,
        })
    }

    /// Lets the kernel pass over what can be of no wanted flow. Once it has refused a
    /// filter it is not asked again, and every packet is taken in.
    ///
    /// # Errors
    ///
    /// As setsockopt(2): EPERM where it wants CAP_NET_ADMIN for a filter.
    pub fn look_for(&mut self, scope: &Scope) -> io::Result<()> {
        if self.filter == Filter::Refused {
            return Ok(());
        }
        let program = Filter::Program(filter::program(scope, self.snapshot));
        if program == self.filter {
            return Ok(());
        }
        let attach = |program: &[Instruction]| {
            let program: Vec<_> = program.iter().map(Instruction::kernel).collect();
            self.ring.filter(&program)
        };
        let Filter::Program(instructions) = &program else {
            return Ok(());
        };
        let attached = match attach(instructions) {
            // It is too long for `net.core.optmem_max`.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                attach(&filter::any_address(self.snapshot))
            }
            attached => attached,
        };
        self.filter = match &attached {
            Ok(()) => program,
            Err(_) => Filter::Refused,
        };
        attached
    }

    /// Takes in packets from now on.
    ///
    /// # Errors
    ///
    /// bind(2)'s.
    pub fn start(&self) -> io::Result<()> {
        self.ring.start()
    }

    /// Shows a packet to `look`; false when there is none. What another host sent to
    /// another, and the first of the two times that a packet passes the loopback
    /// interface, is passed over.
    pub fn receive(&mut self, look: impl FnOnce(Received, &[u8])) -> bool {
        let mut look = Some(look);
        loop {
            let taken = self.ring.take(|packet| {
                let outgoing = packet.kind == libc::PACKET_OUTGOING;
                let on_loopback = packet.hardware == libc::ARPHRD_LOOPBACK;
                if packet.kind == libc::PACKET_OTHERHOST || (outgoing && on_loopback) {
                    return;
                }
                let received = Received {
                    interface: packet.interface,
                    outgoing,
                    hardware: packet.hardware,
                    at: packet.at,
                    length: packet.length,
                };
                if let Some(look) = look.take() {
                    look(received, packet.bytes);
                }
            });
            match (taken, &look) {
                (None, _) => return false,
                (Some(()), None) => return true,
                (Some(()), Some(_)) => {}
            }
        }
    }

    /// How many packets the kernel has filtered in, and how many of them it has dropped
    /// for want of room.
    ///
    /// # Errors
    ///
    /// getsockopt(2)'s.
    pub fn statistics(&mut self) -> io::Result<(u64, u64)> {
        self.ring.statistics()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
