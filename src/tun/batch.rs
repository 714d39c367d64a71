//! Frames on their way into a queue, several in one system call.
//!
//! A write into a TUN runs the receive path of the client inside the call and wakes it.
//! On a busy machine the client then takes the CPU from us as soon as the call returns,
//! for one answer, and leaves it again: with 50 kept connections and a call for each
//! packet the machine changed threads 32,000 times a second, with io_submit(2), which
//! writes them all before it returns, 20,000 times. It is used and not io_uring, since the
//! seccomp profiles of container runtimes forbid that. Nothing is asynchronous about it:
//! a TUN takes a frame at once, so that all are written when io_submit returns.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use super::offload::MAX_FRAME_LEN;
use super::queue::Queue;

/// Frames that are written together at most.
pub const BATCH_FRAMES: usize = 32;

/// Bytes after which they are written: three super-packets. The client reads these on its
/// CPU while the next are made.
const BATCH_BYTES: usize = 192 << 10;

/// Frames begin on one of their own.
const CACHE_LINE: usize = 64;

/// `struct iocb` (include/uapi/linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    /// The kernel's, and RWF flags, of which there are none.
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_descriptor: u32,
}

/// `struct io_event` (include/uapi/linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    block: u64,
    /// Bytes written, or an errno below 0.
    result: i64,
    result2: i64,
}

/// IOCB_CMD_PWRITE (include/uapi/linux/aio_abi.h).
const WRITE: u16 = 1;

/// Frames that the device did not take; they are lost.
#[derive(Debug)]
pub struct Refused {
    /// How many.
    pub frames: u64,
    /// Why, for the last of them.
    pub error: io::Error,
}

/// Writes frames into a queue in the order in which they are sent: together, at
/// [`FrameWriter::flush`] or when there is no more room.
pub struct FrameWriter {
    queue: Arc<Queue>,
    /// `None` where the kernel gives none: each frame is then written by itself.
    context: Option<Context>,
    /// The frames that wait, one behind the other, and room for one more.
    frames: Box<[u8]>,
    /// Where in `frames` each begins and ends.
    waiting: Vec<Range<usize>>,
    /// Where the next one begins.
    end: usize,
}

impl FrameWriter {
    /// For frames into `queue`.
    pub fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            context: Context::new(),
            frames: vec![0; BATCH_BYTES + MAX_FRAME_LEN].into_boxed_slice(),
            waiting: Vec::with_capacity(BATCH_FRAMES),
            end: 0,
        }
    }

    /// One that never writes frames together, as where the kernel has no AIO.
    pub fn one_by_one(queue: Arc<Queue>) -> Self {
        Self {
            context: None,
            ..Self::new(queue)
        }
    }

    /// Room for a frame of up to `len` bytes, [`MAX_FRAME_LEN`] at most.
    #[inline]
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        &mut self.frames[self.end..][..len]
    }

    /// Sends the first `len` bytes of the room that was given last.
    ///
    /// # Errors
    /// What was refused, as with [`Queue::write`], of this frame and those before it.
    #[inline]
    pub fn send(&mut self, len: usize) -> Result<(), Refused> {
        self.waiting.push(self.end..self.end + len);
        self.end = (self.end + len).next_multiple_of(CACHE_LINE);
        if self.waiting.len() == BATCH_FRAMES || self.end >= BATCH_BYTES || self.context.is_none() {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// What was refused, as with [`Queue::write`].
    #[inline]
    pub fn flush(&mut self) -> Result<(), Refused> {
        let mut outcome = Ok(());
        let mut together = 0;
        if self.waiting.len() > 1
            && let Some(context) = &mut self.context
        {
            together = context.write(&self.queue, &self.frames, &self.waiting, |error| {
                outcome = add(std::mem::replace(&mut outcome, Ok(())), Err(error));
            });
        }
        // One alone, or what the kernel did not take together.
        for place in &self.waiting[together..] {
            outcome = add(outcome, self.queue.write(&self.frames[place.clone()]));
        }
        self.waiting.clear();
        self.end = 0;
        outcome
    }
}

impl fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameWriter")
            .field("queue", &self.queue)
            .field("waiting", &self.waiting.len())
            .field("together", &self.context.is_some())
            .finish_non_exhaustive()
    }
}

/// The outcome of frames before and of one more.
fn add(before: Result<(), Refused>, one: io::Result<()>) -> Result<(), Refused> {
    match one {
        Ok(()) => before,
        Err(error) => Err(Refused {
            frames: 1 + before.map_or_else(|refused| refused.frames, |()| 0),
            error,
        }),
    }
}

/// An AIO context of the kernel.
struct Context {
    id: libc::c_ulong,
    blocks: [ControlBlock; BATCH_FRAMES],
    completions: [Completion; BATCH_FRAMES],
}

impl Context {
    /// `None`: the kernel has no AIO, or all of fs.aio-max-nr is in use, or seccomp
    /// forbids one of its calls.
    fn new() -> Option<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word, to `id`, which must be 0 before.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, BATCH_FRAMES, &raw mut id) };
        if made != 0 {
            return None;
        }
        let mut context = Self {
            id,
            blocks: [ControlBlock::default(); BATCH_FRAMES],
            completions: [Completion::default(); BATCH_FRAMES],
        };
        // What fails with nothing to do would fail with frames under way.
        // SAFETY: nothing is submitted.
        let submits = unsafe { context.submit(&mut []) } == Some(0);
        let completes = context.complete(0) == Some(0);
        (submits && completes).then_some(context)
    }

    /// Writes the frames that lie in `places` of `frames`, and returns how many were
    /// taken, refused ones included.
    fn write(
        &mut self,
        queue: &Queue,
        frames: &[u8],
        places: &[Range<usize>],
        mut refused: impl FnMut(io::Error),
    ) -> usize {
        let mut pointers = [ptr::null_mut::<ControlBlock>(); BATCH_FRAMES];
        let mut count: usize = 0;
        for ((block, pointer), place) in self.blocks.iter_mut().zip(&mut pointers).zip(places) {
            let frame = &frames[place.clone()];
            *block = ControlBlock {
                opcode: WRITE,
                descriptor: queue.as_raw_fd() as u32,
                buffer: frame.as_ptr() as u64,
                len: frame.len() as u64,
                ..ControlBlock::default()
            };
            *pointer = block;
            count += 1;
        }
        // SAFETY: each control block names a borrowed frame and an open descriptor. All of
        // it outlives the writes: the loop below ends when all that were submitted are done.
        let submitted = unsafe { self.submit(&mut pointers[..count]) }.unwrap_or(0);
        let mut done = 0;
        while done < submitted {
            // That it is permitted is known: what it fails with is EINTR, with nothing taken.
            let taken = self.complete(submitted - done).unwrap_or(0);
            for completion in &self.completions[..taken] {
                if completion.result < 0 {
                    refused(io::Error::from_raw_os_error(-completion.result as i32));
                }
            }
            done += taken;
        }
        submitted
    }

    /// Submits what `blocks` point to; how many were taken, none on an error.
    ///
    /// # Safety
    /// The control blocks, and what they name, must live until they are complete.
    unsafe fn submit(&self, blocks: &mut [*mut ControlBlock]) -> Option<usize> {
        // SAFETY: there are as many pointers as it is told; the caller answers for the rest.
        let submitted = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.id,
                blocks.len() as libc::c_long,
                blocks.as_mut_ptr(),
            )
        };
        usize::try_from(submitted).ok()
    }

    /// Waits for `count` of them, [`BATCH_FRAMES`] at most, to be complete; how many are, at
    /// the front of `completions`, none on an error.
    fn complete(&mut self, count: usize) -> Option<usize> {
        let room = &mut self.completions[..count];
        let count = count as libc::c_long;
        // SAFETY: there is room for `count` of them, and no limit of time.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                count,
                count,
                room.as_mut_ptr(),
                ptr::null_mut::<libc::timespec>(),
            )
        };
        usize::try_from(taken).ok()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was made in `new`, and nothing is left to be written.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}
