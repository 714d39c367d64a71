//! Objects from files: one file, or the `*.yaml`, `*.yml` and `*.json` of a
//! directory.
//!
//! Changes are noticed through inotify and, where that does not reach, by a
//! look at every file's metadata each [`LOOK_PERIOD`]. A file whose writer has
//! finished, as inotify tells (closed after writing, or moved into place), is read
//! at once, and no other file is looked at for it. Any other is read once it has
//! been left alone for [`SETTLE`], so that one half written is not taken for the
//! whole; so is a finished one that does not parse or has fewer objects than
//! before, as its writer may go on in another step. A file is applied as a whole:
//! while it does not parse, its last good content stays in force. Of a file that
//! never was good, the objects that do parse are used. If the path itself cannot
//! be read, everything stays as it was.
//!
//! [`run`] is one task. Reading and parsing happen on tokio's blocking pool, one
//! look at a time, and inotify has a thread of its own; all end with the task,
//! which ends when told to or when nobody receives any more.

use std::future::Future;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::Batch;
use scan::{Clock, Scanner};
use told::Told;
use watch::Watch;

pub mod parse;
pub mod report;
mod scan;
mod store;
mod told;
mod watch;

/// How often files are looked at without being told that they changed. Half of
/// the second within which a change must be seen.
pub const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// How long a file must be left alone before it is read.
pub const SETTLE: Duration = Duration::from_millis(150);

/// Least time between two looks at everything, so that a storm of changes costs
/// little; and most that a look at single files is put off for the same reason.
pub const LOOK_GAP: Duration = Duration::from_millis(50);

/// Rest after a look in which nothing was new, in times of what it took: looking
/// at tens of thousands of files costs at most a tenth of a CPU. inotify still
/// wakes us at once.
const LOOK_SHARE: u32 = 9;

/// Files that are looked at before those that inotify told meanwhile have their
/// turn: about 2 ms.
const PORTION: usize = 1000;

/// Rounding of clocks: a file that is about to have settled has.
const LEAST_REST: Duration = Duration::from_millis(2);

/// Sends what stands under `path`, and what changes there, until `shutdown`
/// completes or the receiver is dropped.
///
/// The channel is bounded: while it is full this task waits and reads nothing,
/// and what changes meanwhile is in the next batch. Nothing is dropped. A path
/// that does not exist is reported and waited for; the first batch comes once
/// everything in it has been read, even if some of it could not be understood.
pub async fn run(
    path: PathBuf,
    sender: mpsc::Sender<Batch>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut shutdown = pin!(shutdown);
    let told = Arc::new(Told::new(&path));
    let mut watch = Watch::new(path.clone(), told.clone());
    let mut scanner = Scanner::new(path);
    let mut schedule = Schedule::new(Instant::now());
    loop {
        let all = schedule.wants_all(Instant::now());
        let tidings = if all { told.take() } else { told.take_files() };
        let look = spawn_blocking(move || {
            let start = Clock::read();
            let look = if all {
                scanner.look_at_all(start, &tidings, PORTION)
            } else {
                scanner.look_at_some(start, &tidings)
            };
            let settles_in = look.unsettled.then(|| scanner.settles_in(start));
            // After the look, whose reading would be told as well. What changed
            // in between another look finds.
            let again = look.again | (all && !look.more && watch.aim());
            (watch, scanner, look, settles_in, again)
        });
        let started = Instant::now();
        let (look, settles_in, again) = match look.await {
            Ok((returned_watch, returned_scanner, look, settles_in, again)) => {
                (watch, scanner) = (returned_watch, returned_scanner);
                (look, settles_in, again)
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is going down.
                Err(_) => return,
            },
        };
        for report in &look.reports {
            report.log();
        }
        schedule.looked(
            all,
            look.more,
            look.batch.is_some(),
            (started, Instant::now()),
        );
        if again {
            schedule.all_at = schedule.all_at.min(started + SETTLE);
        }
        schedule.restless_at = settles_in.map(|rest| started + rest.max(LEAST_REST));
        if let Some(batch) = look.batch {
            tokio::select! {
                () = &mut shutdown => return,
                sent = sender.send(batch) => if sent.is_err() { return },
            }
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = sender.closed() => return,
            () = schedule.wait(&told) => {}
        }
    }
}

/// When to look next.
#[derive(Debug)]
struct Schedule {
    /// At everything.
    all_at: Instant,
    /// At everything for a reason, but not before.
    all_from: Instant,
    /// At files that have not settled.
    restless_at: Option<Instant>,
    /// At files that are told, but not before.
    files_from: Instant,
    /// What the look at everything that is under way has taken so far.
    taken: Duration,
    /// It has found something.
    found: bool,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self {
            all_at: now,
            all_from: now,
            restless_at: None,
            files_from: now,
            taken: Duration::ZERO,
            found: false,
        }
    }

    /// Waits until there is something to look at.
    async fn wait(&mut self, told: &Told) {
        loop {
            if told.wants_all() {
                self.all_at = self.all_at.min(self.all_from);
            }
            let files = async {
                if !told.has_files() {
                    told.files.notified().await;
                }
                sleep_until(self.files_from).await;
            };
            let next = self.restless_at.unwrap_or(self.all_at).min(self.all_at);
            tokio::select! {
                () = files => return,
                () = sleep_until(next) => return,
                () = told.all.notified() => {}
            }
        }
    }

    fn wants_all(&self, now: Instant) -> bool {
        now >= self.all_at
    }

    fn looked(&mut self, all: bool, more: bool, found: bool, (from, to): (Instant, Instant)) {
        let took = to - from;
        if !all {
            self.files_from = to + took.min(LOOK_GAP);
            return;
        }
        self.taken += took;
        self.found |= found;
        if more {
            self.all_at = to;
            return;
        }
        let idle = if self.found { 0 } else { LOOK_SHARE };
        self.all_at = to + LOOK_PERIOD.max(self.taken * idle);
        self.all_from = to + LOOK_GAP;
        self.files_from = to;
        self.taken = Duration::ZERO;
        self.found = false;
    }
}

#[cfg(test)]
mod tests;
