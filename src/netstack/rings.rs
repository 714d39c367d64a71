//! Memory of the rings: taken from the kernel in large pieces, given back page by page.
//!
//! A connection's rings are large, so that bulk is fast, and there are many
//! connections, most of them idle. A ring is therefore address space first: a page
//! costs memory once it was written to, and [`Ring::trim`] gives the pages back. What
//! was touched is counted, which is what the memory ceiling is about.
//!
//! smoltcp cannot give buffers back, and cannot lend an empty ring, so rings are
//! handed to it as slices without a lifetime. That is what `unsafe` is for here; the
//! rule that makes it sound is that a [`Ring`] outlives the socket that has its slice,
//! and [`RingedSocket`] is the only place where the two meet.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::rc::Rc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

/// Capacity of a flow's two rings in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    /// From the client: the largest receive window it is told.
    pub receive: usize,
    /// To the client: what is sent and not yet acknowledged.
    pub send: usize,
}

impl RingSize {
    /// The usual rings. In the prototype 1 MiB was faster than 256 KiB in every
    /// bulk direction, and 4 MiB stalled.
    pub const FULL: Self = Self {
        receive: 1 << 20,
        send: 1 << 20,
    };

    /// The rings of flows that start while memory is short: room for two
    /// super-packets each way, less than which Linux halves its segments.
    pub const SMALL: Self = Self {
        receive: 128 << 10,
        send: 128 << 10,
    };

    /// Both rings together.
    pub fn total(self) -> usize {
        self.receive + self.send
    }
}

/// Rings are cut from mappings of this size: 32 large ones.
const CHUNK: usize = 32 << 20;

/// Rings begin on a page, so that their memory can be given back alone.
const PAGE: usize = 4096;

/// Free rings of one worker. Those used last, whose pages are in the cache, go first.
#[derive(Clone, Debug, Default)]
pub struct RingPool {
    shelves: Rc<RefCell<Shelves>>,
}

#[derive(Debug, Default)]
struct Shelves {
    free: Vec<Region>,
    /// Whole mappings; they live as long as the pool and its rings.
    chunks: Vec<Chunk>,
    /// Bytes touched in free rings.
    touched: usize,
    /// Free rings may hold this many touched bytes; above, they are trimmed.
    keep: usize,
}

#[derive(Debug)]
struct Chunk(NonNull<u8>);

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `Shelves::grow`, and dropped with the
        // last owner of the shelves: every ring holds one.
        let unmapped = unsafe { munmap(self.0.cast(), CHUNK) };
        debug_assert!(unmapped.is_ok());
    }
}

#[derive(Clone, Copy, Debug)]
struct Region {
    start: NonNull<u8>,
    len: usize,
    touched: usize,
}

impl RingPool {
    /// A pool whose free rings keep at most `keep` bytes of memory.
    pub fn new(keep: usize) -> Self {
        let pool = Self::default();
        pool.shelves.borrow_mut().keep = keep;
        pool
    }

    /// A ring of `len` bytes.
    ///
    /// # Errors
    /// ENOMEM when the kernel gives no address space.
    fn take(&self, len: usize) -> io::Result<Ring> {
        let mut shelves = self.shelves.borrow_mut();
        let at = match shelves.free.iter().rposition(|region| region.len == len) {
            Some(at) => at,
            None => {
                shelves.grow(len)?;
                shelves.free.len() - 1
            }
        };
        let region = shelves.free.remove(at);
        shelves.touched -= region.touched;
        Ok(Ring {
            region,
            home: Rc::clone(&self.shelves),
        })
    }

    /// Gives the memory of all free rings back.
    pub fn trim(&self) {
        let mut shelves = self.shelves.borrow_mut();
        shelves.free.iter_mut().for_each(Region::discard);
        shelves.touched = shelves.free.iter().map(|region| region.touched).sum();
    }

    /// Bytes of memory that free rings hold.
    pub fn touched(&self) -> usize {
        self.shelves.borrow().touched
    }
}

impl Shelves {
    /// Maps another chunk and cuts it into rings of `len` bytes.
    fn grow(&mut self, len: usize) -> io::Result<()> {
        if len == 0 || len > CHUNK {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = NonZeroUsize::new(CHUNK).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // replaces nothing.
        let start = unsafe { mmap_anonymous(None, length, access, flags) }?.cast::<u8>();
        // A huge page would back two mebibytes for the first byte. A kernel without
        // huge pages refuses, and needs no advice.
        // SAFETY: the mapping is ours and has this length.
        let _ = unsafe { madvise(start.cast(), CHUNK, MmapAdvise::MADV_NOHUGEPAGE) };
        self.chunks.push(Chunk(start));
        let stride = len.next_multiple_of(PAGE);
        for offset in (0..CHUNK / stride).map(|at| at * stride) {
            // SAFETY: `offset` is within the mapping.
            let start = unsafe { start.add(offset) };
            self.free.push(Region {
                start,
                len,
                touched: 0,
            });
        }
        Ok(())
    }

    fn put(&mut self, mut region: Region) {
        if self.touched + region.touched > self.keep {
            region.discard();
        }
        self.touched += region.touched;
        self.free.push(region);
    }
}

impl Region {
    /// Gives the pages back; they read as zeros afterwards.
    fn discard(&mut self) {
        let len = self.touched.min(self.len);
        if len == 0 {
            return;
        }
        // SAFETY: the region is mapped, page-aligned (a chunk's start and every ring
        // size are multiples of the page), and nobody looks at its bytes: they are of
        // a ring that is empty.
        let advised = unsafe { madvise(self.start.cast(), self.len, MmapAdvise::MADV_DONTNEED) };
        if advised.is_ok() {
            self.touched = 0;
        }
    }
}

/// A closed TCP socket, alone in its set, with its two rings.
pub(super) struct RingedSocket {
    // Before the rings: fields are dropped in order, and the socket uses them.
    sockets: SocketSet<'static>,
    pub(super) receive: Ring,
    pub(super) send: Ring,
    handle: SocketHandle,
}

impl RingedSocket {
    /// `send_len` of the send ring's bytes are used.
    pub(super) fn new(pool: &RingPool, size: RingSize, send_len: usize) -> io::Result<Self> {
        let mut receive = pool.take(size.receive)?;
        let mut send = pool.take(size.send)?;
        // SAFETY: the only slices of these rings; the set that has them is dropped
        // before the rings, and nothing takes a socket out of it.
        let slices = unsafe { (receive.slice(), send.slice()) };
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(tcp::Socket::new(
            tcp::SocketBuffer::new(slices.0),
            tcp::SocketBuffer::new(&mut slices.1[..send_len]),
        ));
        Ok(Self {
            sockets,
            receive,
            send,
            handle,
        })
    }

    /// The set, to be polled; its socket must stay in it.
    #[inline]
    pub(super) fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    #[inline]
    pub(super) fn set(&self) -> &SocketSet<'static> {
        &self.sockets
    }

    #[inline]
    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    #[inline]
    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// The memory of one ring. Goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Ring {
    region: Region,
    home: Rc<RefCell<Shelves>>,
}

impl Ring {
    /// The ring as smoltcp wants it.
    ///
    /// # Safety
    /// The slice must be gone before the ring is dropped, and there must be one at a
    /// time.
    unsafe fn slice(&mut self) -> &'static mut [u8] {
        // SAFETY: the region is mapped and belongs to this ring alone; the caller
        // sees to the lifetime.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.as_ptr(), self.region.len) }
    }

    /// Bytes that are backed by memory, at most, as far as was told.
    pub(super) fn touched(&self) -> usize {
        self.region.touched
    }

    /// Tells that this many bytes from the start of the ring may have been written
    /// to, or all of them if it is more than there are.
    pub(super) fn touch(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).map_or(self.region.len, |b| b.min(self.region.len));
        self.region.touched = self.region.touched.max(bytes);
    }

    /// Gives the memory back. The ring must be empty.
    pub(super) fn trim(&mut self) {
        self.region.discard();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.home.borrow_mut().put(self.region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_do_not_overlap_and_come_back() {
        let pool = RingPool::new(usize::MAX);
        let mut rings: Vec<Ring> = (0..70).map(|_| pool.take(1 << 20).unwrap()).collect();
        for (at, ring) in rings.iter_mut().enumerate() {
            // SAFETY: the slice ends with this block.
            unsafe { ring.slice() }.fill(at as u8 + 1);
            ring.touch(1 << 20);
        }
        for (at, ring) in rings.iter_mut().enumerate() {
            // SAFETY: as above.
            let bytes = unsafe { ring.slice() };
            assert!(bytes.iter().all(|byte| *byte == at as u8 + 1));
        }
        assert_eq!(pool.touched(), 0);
        drop(rings);
        assert_eq!(pool.touched(), 70 << 20);
        let ring = pool.take(1 << 20).unwrap();
        assert_eq!(ring.touched(), 1 << 20);
        assert_eq!(pool.touched(), 69 << 20);
    }

    #[test]
    fn a_trimmed_ring_holds_nothing() {
        let pool = RingPool::new(usize::MAX);
        let mut ring = pool.take(128 << 10).unwrap();
        // SAFETY: the slice ends with this block.
        unsafe { ring.slice() }.fill(7);
        ring.touch(u64::MAX);
        assert_eq!(ring.touched(), 128 << 10);
        ring.trim();
        assert_eq!(ring.touched(), 0);
        // SAFETY: as above.
        assert!(unsafe { ring.slice() }.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn free_rings_keep_no_more_than_allowed() {
        let pool = RingPool::new(256 << 10);
        let mut rings: Vec<Ring> = (0..4).map(|_| pool.take(128 << 10).unwrap()).collect();
        for ring in &mut rings {
            ring.touch(u64::MAX);
        }
        drop(rings);
        assert_eq!(pool.touched(), 256 << 10);
        pool.trim();
        assert_eq!(pool.touched(), 0);
    }
}
