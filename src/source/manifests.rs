//! Objects from files: one file, or the `*.yaml`, `*.yml` and `*.json` of a
//! directory.
//!
//! Changes are noticed through inotify and, where that does not reach, by a
//! look at every file's metadata each [`LOOK_PERIOD`]. A file is read once it
//! has been left alone for [`SETTLE`], so that one half written is not taken for
//! the whole, and it is applied as a whole: while it does not parse, its last
//! good content stays in force. Of a file that never was good, the objects that
//! do parse are used. If the path itself cannot be read, everything stays as it
//! was.
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

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Batch;
use scan::{Clock, Scanner};
use watch::Watch;

pub mod parse;
pub mod report;
mod scan;
mod store;
mod watch;

/// How often files are looked at without being told that they changed. Half of
/// the second within which a change must be seen.
pub const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// How long a file must be left alone before it is read.
pub const SETTLE: Duration = Duration::from_millis(150);

/// Least time between two looks, so that a storm of changes costs little.
pub const LOOK_GAP: Duration = Duration::from_millis(50);

/// Rest after a look in which nothing was new, in times of what it took: looking
/// at tens of thousands of files costs at most a tenth of a CPU. inotify still
/// wakes us at once.
const LOOK_SHARE: u32 = 9;

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
    let wake = Arc::new(Notify::new());
    let mut watch = Watch::new(path.clone(), wake.clone());
    let mut scanner = Scanner::new(path);
    loop {
        let look = spawn_blocking(move || {
            let start = Clock::read();
            let look = scanner.look(start);
            let took = start.now.elapsed();
            // After the look, whose reading would be told as well. What changed
            // in between another look finds.
            let again = watch.aim();
            (watch, scanner, look, took, again)
        });
        let (look, took, again) = match look.await {
            Ok((returned_watch, returned_scanner, look, took, again)) => {
                (watch, scanner) = (returned_watch, returned_scanner);
                (look, took, again)
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
        let idle = look.batch.is_none();
        if let Some(batch) = look.batch {
            tokio::select! {
                () = &mut shutdown => return,
                sent = sender.send(batch) => if sent.is_err() { return },
            }
        }
        let rest = match (look.unsettled || again, idle) {
            (true, _) => SETTLE,
            (false, true) => LOOK_PERIOD.max(took * LOOK_SHARE),
            (false, false) => LOOK_PERIOD,
        };
        let pause = async {
            sleep(LOOK_GAP).await;
            tokio::select! {
                () = wake.notified() => {}
                () = sleep(rest.saturating_sub(LOOK_GAP)) => {}
            }
        };
        tokio::select! {
            () = &mut shutdown => return,
            () = sender.closed() => return,
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests;
