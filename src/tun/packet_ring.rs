//! Packets that pass the interfaces of a network namespace, in memory shared with the
//! kernel (packet(7), PACKET_RX_RING; Documentation/networking/packet_mmap.rst).
//!
//! It has nothing to do with the TUN but that both are ways to the kernel's packets for
//! which no crate has a safe interface.
//!
//! # Why slots of one size (TPACKET_V2)
//!
//! The kernel copies each packet into a slot, and what does not fit into one is cut off.
//! So a small slot keeps the headers of very many packets, without a socket filter, which
//! some kernels refuse without CAP_NET_ADMIN. The ring of TPACKET_V3 has no slots, and
//! cuts nothing. Without a ring, what waits is counted by the memory that holds the whole
//! packet, up to `net.core.rmem_max` without CAP_NET_ADMIN: three super-packets of 64 KiB
//! with the default of 212,992 bytes.

use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socket2::{SockFilter, SockRef};

use super::packet_statistics::packet_statistics;

/// A block is what the kernel allocates at a time, and a slot lies within one.
const BLOCK: usize = 1 << 20;

/// Where a packet begins in its slot for a socket without link headers: tpacket_rcv()
/// (net/packet/af_packet.c) has the header and the address aligned, and 16 bytes more.
const PACKET_AT: usize = align(libc::TPACKET2_HDRLEN) + 16;

/// The least that a ring is made of when memory is short.
const FEWEST_BLOCKS: usize = 4;

/// The ring, its socket, and the place in it.
#[derive(Debug)]
pub struct PacketRing {
    socket: OwnedFd,
    memory: NonNull<libc::c_void>,
    blocks: usize,
    slot: usize,
    /// Number of the slot that is filled next.
    next: usize,
    received: u64,
    dropped: u64,
}

/// A packet in its slot.
#[derive(Clone, Copy, Debug)]
pub struct RingPacket<'a> {
    /// From the IP header on, as much of it as the slot holds.
    pub bytes: &'a [u8],
    /// How many bytes there were.
    pub length: usize,
    /// When it passed.
    pub at: SystemTime,
    /// Index of the interface.
    pub interface: u32,
    /// Hardware type of the interface (ARPHRD_*, linux/if_arp.h).
    pub hardware: u16,
    /// Whom it was for (PACKET_HOST, PACKET_OUTGOING and so on, packet(7)).
    pub kind: u8,
}

impl PacketRing {
    /// Makes a ring of about `memory` bytes, or less if the kernel has no more, for
    /// packets of up to `snapshot` bytes: what is longer is cut. It is filled from
    /// [`start`](Self::start) on, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_RAW; ENOMEM.
    pub fn open(snapshot: usize, memory: usize) -> io::Result<Self> {
        // Without a protocol it receives nothing yet.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set(&socket, libc::PACKET_VERSION, &version)?;
        let slot = align(PACKET_AT + snapshot);
        if slot > BLOCK {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut blocks = (memory / BLOCK).max(FEWEST_BLOCKS);
        loop {
            let number = |count: usize| libc::c_uint::try_from(count).unwrap_or(libc::c_uint::MAX);
            let request = libc::tpacket_req {
                tp_block_size: number(BLOCK),
                tp_block_nr: number(blocks),
                tp_frame_size: number(slot),
                tp_frame_nr: number(blocks * (BLOCK / slot)),
            };
            match set(&socket, libc::PACKET_RX_RING, &request) {
                Ok(()) => break,
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOMEM) && blocks > FEWEST_BLOCKS =>
                {
                    blocks = (blocks / 2).max(FEWEST_BLOCKS);
                }
                Err(error) => return Err(error),
            }
        }
        let length = NonZeroUsize::new(blocks * BLOCK).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is unmapped when
        // this is dropped, and nothing outlives that.
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &socket, 0) }?;
        Ok(Self {
            socket,
            memory,
            blocks,
            slot,
            next: 0,
            received: 0,
            dropped: 0,
        })
    }

    /// Packets that the filter takes, and no others, from now on.
    ///
    /// # Errors
    ///
    /// As setsockopt(2): EPERM where the kernel wants CAP_NET_ADMIN for it, ENOMEM where
    /// `net.core.optmem_max` is too small for it.
    pub fn filter(&self, program: &[SockFilter]) -> io::Result<()> {
        SockRef::from(&self.socket).attach_filter(program)
    }

    /// Takes in packets of all interfaces, also of those that come later.
    ///
    /// # Errors
    ///
    /// bind(2)'s.
    pub fn start(&self) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads one sockaddr_ll, borrowed for the call.
        let result =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }

    /// Shows the next packet to `look`, and gives its slot back; none when there is none.
    pub fn take<R>(&mut self, look: impl FnOnce(RingPacket<'_>) -> R) -> Option<R> {
        let slots = BLOCK / self.slot;
        let at = (self.next / slots) * BLOCK + (self.next % slots) * self.slot;
        // SAFETY: `next` is less than the number of slots, so the slot lies in the mapping.
        let slot = unsafe { self.memory.cast::<u8>().add(at) };
        // SAFETY: a slot begins with its status, aligned to 16 bytes; only the kernel and
        // this write it, both atomically.
        let status = unsafe { AtomicU32::from_ptr(slot.as_ptr().cast()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: while the status says that the slot is ours, the kernel does not write
        // to it. It has put a header there, and an address behind it.
        let header: libc::tpacket2_hdr = unsafe { slot.cast().read() };
        // SAFETY: as above; TPACKET_ALIGN(sizeof(struct tpacket2_hdr)) is where the address
        // is (packet_mmap.rst).
        let from: libc::sockaddr_ll = unsafe {
            slot.add(align(size_of::<libc::tpacket2_hdr>()))
                .cast()
                .read_unaligned()
        };
        let start = usize::from(header.tp_net).min(self.slot);
        let held = (header.tp_snaplen as usize).min(self.slot - start);
        // SAFETY: within the slot, which is ours until the status says otherwise; that is
        // below, when nobody has these bytes any more.
        let bytes = unsafe { std::slice::from_raw_parts(slot.add(start).as_ptr(), held) };
        let since = Duration::new(header.tp_sec.into(), header.tp_nsec);
        let seen = look(RingPacket {
            bytes,
            length: header.tp_len as usize,
            at: UNIX_EPOCH + since,
            interface: from.sll_ifindex.cast_unsigned(),
            hardware: from.sll_hatype,
            kind: from.sll_pkttype,
        });
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % (self.blocks * slots);
        Some(seen)
    }

    /// How many packets the filter has taken up to now, and how many of them the kernel
    /// has dropped for want of a slot.
    ///
    /// # Errors
    ///
    /// getsockopt(2)'s.
    pub fn statistics(&mut self) -> io::Result<(u64, u64)> {
        let since = packet_statistics(self.socket.as_fd())?;
        self.received += u64::from(since.received);
        self.dropped += u64::from(since.dropped);
        Ok((self.received, self.dropped))
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `open`; slices of it live no longer than the
        // call that lends them.
        let unmapped = unsafe { munmap(self.memory, self.blocks * BLOCK) };
        debug_assert!(unmapped.is_ok());
    }
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketRing {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// TPACKET_ALIGN (linux/if_packet.h).
const fn align(length: usize) -> usize {
    length.next_multiple_of(libc::TPACKET_ALIGNMENT)
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, borrowed for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            length,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
