//! How a worker waits for events: it looks for them for a while before it sleeps.
//!
//! To wake a thread on a CPU that has gone idle takes the kernel tens of microseconds,
//! more in a virtual machine, and costs whoever wakes it. A worker that has done its work
//! and will be needed again within that time does better to look on. So it does where
//! both hold, and sleeps at once otherwise:
//!
//! - most of its last waits were short, so that what is spent in vain stays a small part
//!   of what a worker does that is as busy as that;
//! - nobody else wants the CPU: it had hardly to wait for one itself.
//!
//! No CPU is used where nothing happens. With one CPU there is never a gain: whoever has
//! something to say needs it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

/// Waits that are remembered, and how many of them must have been short.
const REMEMBERED: u32 = u8::BITS;
const MOSTLY: u32 = REMEMBERED * 3 / 4;

/// The wait of a worker that slept counts as short up to this many windows: it has the
/// time in it that waking took.
const SLEPT: u32 = 4;

/// Between two looks at how long the worker had to wait for a CPU. A look is a read of
/// some 30 bytes from procfs, about 2 µs.
const LOOK: Duration = Duration::from_millis(5);

/// The CPU is wanted by others from this part of the time on: one in sixteen.
const WANTED: u32 = 16;

/// Looks that find the CPU free before it counts as free again.
const CALM_LOOKS: u32 = 4;

/// The waiting of one worker; made on its thread.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// The last waits, the latest in the lowest bit: 1 was short.
    short: u8,
    /// `None` where there is one CPU, or no way to know who wants it.
    contention: Option<Contention>,
}

impl BusyPoll {
    /// For the worker on the calling thread.
    pub(crate) fn new() -> Self {
        let several = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Self {
            short: 0,
            contention: several.then(|| Contention::open().ok()).flatten(),
        }
    }

    /// Waits for events, for `timeout` at most (`None`: for ever). `window` is how long it
    /// may look for them before it sleeps; zero: it sleeps at once.
    ///
    /// # Errors
    /// As `epoll_wait`.
    pub(crate) fn wait(
        &mut self,
        poll: &mut Poll,
        events: &mut Events,
        timeout: Option<Duration>,
        window: Duration,
    ) -> io::Result<()> {
        if window.is_zero() || timeout.is_some_and(|timeout| timeout.is_zero()) {
            return poll.poll(events, timeout);
        }
        let from = Instant::now();
        if !self.pays(from) {
            poll.poll(events, timeout)?;
            self.remember(from.elapsed() <= window * SLEPT);
            return Ok(());
        }
        let window = timeout.map_or(window, |timeout| timeout.min(window));
        loop {
            poll.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                self.remember(true);
                return Ok(());
            }
            if from.elapsed() >= window {
                break;
            }
            std::hint::spin_loop();
        }
        self.remember(false);
        poll.poll(
            events,
            timeout.map(|timeout| timeout.saturating_sub(window)),
        )
    }

    fn pays(&mut self, now: Instant) -> bool {
        self.short.count_ones() >= MOSTLY
            && self
                .contention
                .as_mut()
                .is_some_and(|contention| !contention.is_felt(now))
    }

    fn remember(&mut self, short: bool) {
        self.short = self.short << 1 | u8::from(short);
    }
}

/// How long this thread had to wait for a CPU: the second number of
/// /proc/thread-self/schedstat (Documentation/scheduler/sched-stats.rst), nanoseconds.
#[derive(Debug)]
struct Contention {
    file: File,
    looked: Instant,
    waited: Duration,
    /// Looks that must find the CPU free.
    wary: u32,
}

impl Contention {
    fn open() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/schedstat")?;
        let waited = waited(&file)?;
        Ok(Self {
            file,
            looked: Instant::now(),
            waited,
            wary: 0,
        })
    }

    /// Whether others want the CPU, as far as the last look knows.
    fn is_felt(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked);
        if since >= LOOK {
            let before = self.waited;
            self.looked = now;
            self.waited = waited(&self.file).unwrap_or(before);
            self.wary = if self.waited.saturating_sub(before) * WANTED > since {
                CALM_LOOKS
            } else {
                self.wary.saturating_sub(1)
            };
        }
        self.wary > 0
    }
}

fn waited(file: &File) -> io::Result<Duration> {
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0)?;
    std::str::from_utf8(&text[..len])
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse().ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests;
