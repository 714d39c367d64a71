//! One look at all files: which changed, which have settled, what that means.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use std::vec;

use foldhash::quality::RandomState;

use super::SETTLE;
use super::parse::parse;
use super::report::Report;
use super::store::{Name, Store};
use super::told::Tidings;
use crate::source::Batch;

/// A file that never comes to rest is read after this long all the same, but not
/// reported if it does not parse.
const PATIENCE: Duration = Duration::from_millis(500);

/// The files under a path and what was read of them.
#[derive(Debug)]
pub(super) struct Scanner {
    path: PathBuf,
    files: BTreeMap<Name, Tracked>,
    /// Those that have not settled.
    restless: BTreeSet<Name>,
    store: Store,
    hasher: RandomState,
    ignored: BTreeSet<String>,
    /// Why the path could not be read the last time.
    path_error: Option<String>,
    /// What is left to be looked at before all has been.
    rest: vec::IntoIter<Name>,
    /// Number of the look at everything that is under way, or was the last.
    round: u64,
    /// What is in force may have changed since it was published.
    changed: bool,
    /// The first batch is out.
    started: bool,
}

/// What came of a look.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// To be sent.
    pub(super) batch: Option<Batch>,
    /// To be told.
    pub(super) reports: Vec<Report>,
    /// Some file has not settled yet: look at the restless again soon.
    pub(super) unsettled: bool,
    /// Not everything has been looked at: go on at once.
    pub(super) more: bool,
    /// Some file is missing and may come back, or nothing could be published yet:
    /// look at everything again soon.
    pub(super) again: bool,
    /// Some file has not been read for that reason.
    unread: bool,
}

/// One file.
#[derive(Debug)]
struct Tracked {
    /// How it looked the last time; `None` if it was not there.
    seen: Option<Print>,
    /// Since when it looks so.
    since: Instant,
    /// Since when it has not been at rest.
    restless: Option<Instant>,
    /// How it looked when it was read.
    read: Option<Print>,
    /// Hash of what was read.
    hash: Option<u64>,
    /// Why it could not be read the last time.
    error: Option<String>,
    /// The look at everything that it was last seen in.
    round: u64,
}

/// Tells a changed file without reading it. The change time catches writers that
/// keep the modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// How long the file has been left alone by its own account.
    fn age(&self, clock: Clock) -> Duration {
        let (seconds, nanoseconds) = self.modified;
        let since_epoch = u64::try_from(seconds).ok().map(Duration::from_secs);
        let nanoseconds = Duration::from_nanos(nanoseconds.unsigned_abs());
        let modified =
            since_epoch.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(s + nanoseconds));
        let age = modified.and_then(|modified| clock.wall.duration_since(modified).ok());
        age.unwrap_or_default()
    }
}

/// The time of a look: one clock for what was seen, one for what files say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
}

impl Clock {
    pub(super) fn read() -> Self {
        Self {
            now: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

impl Scanner {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            restless: BTreeSet::new(),
            store: Store::default(),
            hasher: RandomState::default(),
            ignored: BTreeSet::new(),
            path_error: None,
            rest: Vec::new().into_iter(),
            round: 0,
            changed: false,
            started: false,
        }
    }

    /// Looks at every file, and reads those that changed and have settled.
    #[cfg(test)]
    pub(super) fn look(&mut self, clock: Clock) -> Look {
        self.look_at_all(clock, &Tidings::default(), usize::MAX)
    }

    /// Begins to look at every file, or goes on with it, and reads those that
    /// changed and have settled or are told to be finished. It stops after
    /// `portion` files, unless nothing has been read before.
    pub(super) fn look_at_all(&mut self, clock: Clock, told: &Tidings, portion: usize) -> Look {
        let mut look = Look::default();
        if self.rest.as_slice().is_empty() {
            match list(&self.path) {
                Ok(names) => self.rest = names.into_iter(),
                Err(error) => {
                    let error = error.to_string();
                    if self.path_error.as_ref() != Some(&error) {
                        look.reports.push(Report::PathUnreadable {
                            path: self.path.as_path().into(),
                            error: error.clone(),
                        });
                        self.path_error = Some(error);
                    }
                    return look;
                }
            }
            self.path_error = None;
            self.round += 1;
        }
        self.look_at_told(told, clock, &mut look);
        let portion = if self.started { portion } else { usize::MAX };
        for _ in 0..portion {
            let Some(name) = self.rest.next() else { break };
            if !told.files.contains_key(&name) {
                self.look_at(name, false, clock, &mut look);
            }
        }
        look.more = !self.rest.as_slice().is_empty();
        if !look.more {
            self.drop_missing(clock.now, &mut look);
        }
        // Changes seen in one look are one batch; what is told meanwhile does not
        // wait for the others.
        if look.more && told.files.is_empty() {
            return look;
        }
        self.publish(&mut look);
        look
    }

    /// Looks at the files that were told and at those that have not settled.
    pub(super) fn look_at_some(&mut self, clock: Clock, told: &Tidings) -> Look {
        let mut look = Look::default();
        self.look_at_told(told, clock, &mut look);
        for name in self.restless.clone() {
            if !told.files.contains_key(&name) {
                self.look_at(name, false, clock, &mut look);
            }
        }
        if self.started {
            self.publish(&mut look);
        }
        look
    }

    /// How long until some file that was left alone has settled.
    pub(super) fn settles_in(&self, clock: Clock) -> Duration {
        let left = |name: &Name| {
            let tracked = self.files.get(name)?;
            let seen = clock.now.saturating_duration_since(tracked.since);
            let age = tracked.seen.map_or(Duration::ZERO, |seen| seen.age(clock));
            Some(SETTLE.saturating_sub(seen.max(age)))
        };
        self.restless
            .iter()
            .filter_map(left)
            .min()
            .unwrap_or(SETTLE)
    }

    fn look_at_told(&mut self, told: &Tidings, clock: Clock, look: &mut Look) {
        for (name, finished) in &told.files {
            let name = name.clone();
            if let Some(tracked) = self.files.get_mut(&name) {
                // Two writes within a tick of the kernel's clock look the same.
                tracked.read = None;
            }
            self.look_at(name, *finished, clock, look);
        }
    }

    fn publish(&mut self, look: &mut Look) {
        if !self.started && look.unread {
            look.again = true;
            return;
        }
        if self.changed || !self.started {
            let (events, duplicates) = self.store.publish();
            look.reports.extend(duplicates);
            if !events.is_empty() || !self.started {
                look.batch = Some(Batch {
                    events,
                    initial_complete: true,
                    ..Batch::default()
                });
            }
        }
        self.changed = false;
        self.started = true;
    }

    /// Forgets files that have been away for [`SETTLE`]: some editors move a file
    /// away before they write it anew.
    fn drop_missing(&mut self, now: Instant, look: &mut Look) {
        let mut gone = Vec::new();
        for (file, tracked) in &mut self.files {
            if tracked.round == self.round {
                continue;
            }
            if tracked.seen.take().is_some() || tracked.error.take().is_some() {
                tracked.since = now;
            }
            if now.duration_since(tracked.since) >= SETTLE {
                gone.push(file.clone());
            } else {
                look.unsettled = true;
                look.again = true;
            }
        }
        for file in &gone {
            self.files.remove(file);
            self.restless.remove(file);
            self.store.remove(file);
            self.changed = true;
        }
    }

    /// Looks at one file, and notes whether it has settled and whether what is in
    /// force may change. `finished`: its writer is told to be.
    fn look_at(&mut self, name: Name, finished: bool, clock: Clock, look: &mut Look) {
        let meta = match fs::metadata(&name.0) {
            Ok(meta) if !meta.is_file() => return,
            // Removed since, or a link to nothing: missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.restless.remove(&name);
                return;
            }
            meta => meta,
        };
        let mut this = Look::default();
        self.changed |= self.follow(name.clone(), meta, finished, clock, &mut this);
        if this.unsettled {
            self.restless.insert(name);
        } else {
            self.restless.remove(&name);
        }
        look.reports.append(&mut this.reports);
        look.unsettled |= this.unsettled;
        look.unread |= this.unread;
    }

    /// Follows one file. The answer is whether what is in force may change.
    fn follow(
        &mut self,
        name: Name,
        meta: io::Result<Metadata>,
        finished: bool,
        clock: Clock,
        look: &mut Look,
    ) -> bool {
        let now = clock.now;
        let file = name.0.clone();
        let tracked = self.files.entry(name.clone()).or_insert(Tracked {
            seen: None,
            since: now,
            restless: None,
            read: None,
            hash: None,
            error: None,
            round: 0,
        });
        tracked.round = self.round;
        let meta = match meta {
            Ok(meta) => meta,
            Err(error) => {
                tracked.cannot_be_read(&file, &error, look);
                return false;
            }
        };
        let print = Print::of(&meta);
        if tracked.read == Some(print) && tracked.error.is_none() {
            tracked.seen = Some(print);
            return false;
        }
        if tracked.seen != Some(print) {
            tracked.seen = Some(print);
            tracked.since = now;
            tracked.restless.get_or_insert(now);
        }
        let mut settled = print.age(clock) >= SETTLE || now.duration_since(tracked.since) >= SETTLE;
        let impatient = tracked
            .restless
            .is_some_and(|r| now.duration_since(r) >= PATIENCE);
        if !settled && !impatient && !finished {
            look.unsettled = true;
            look.unread = true;
            return false;
        }
        let (text, after) = match read(&file) {
            Ok(read) => read,
            Err(error) => {
                tracked.cannot_be_read(&file, &error, look);
                return false;
            }
        };
        tracked.error = None;
        if Print::of(&after) != print {
            settled = false;
            tracked.seen = Some(Print::of(&after));
            tracked.since = now;
            if !impatient {
                tracked.restless.get_or_insert(now);
                look.unsettled = true;
                look.unread = true;
                return false;
            }
        }
        look.unsettled |= !settled;
        let hash = self.hasher.hash_one(&text);
        if settled {
            tracked.read = Some(print);
            tracked.restless = None;
        }
        if tracked.hash == Some(hash) {
            return false;
        }
        if settled {
            tracked.hash = Some(hash);
        }
        let parsed = parse(&file, &text);
        drop(text);
        for kind in parsed.ignored {
            if self.ignored.insert(kind.clone()) {
                let file = file.clone();
                look.reports.push(Report::IgnoredKind { kind, file });
            }
        }
        if parsed.errors.is_empty() {
            // A writer that goes on in another step (`>`, then `>>`) has finished
            // one, and the rest is missing: what goes has time.
            let takes_away = || self.store.holds_more(&name, &parsed.objects);
            if !settled && !impatient && takes_away() {
                return false;
            }
            tracked.hash = Some(hash);
            self.store.set(name, parsed.objects);
            return true;
        }
        if !settled {
            return false;
        }
        let last_good = self.store.set_partial(name, parsed.objects);
        let report = |error| Report::Parse { error, last_good };
        look.reports.extend(parsed.errors.into_iter().map(report));
        true
    }
}

impl Tracked {
    fn cannot_be_read(&mut self, file: &Arc<Path>, error: &io::Error, look: &mut Look) {
        let error = error.to_string();
        if self.error.as_ref() != Some(&error) {
            look.reports.push(Report::FileUnreadable {
                file: file.clone(),
                error: error.clone(),
            });
            self.error = Some(error);
        }
    }
}

/// The names that count, in their order. Symbolic links are followed when they are
/// looked at: a ConfigMap volume is made of links through `..data`, which is itself
/// one and hidden.
fn list(path: &Path) -> io::Result<Vec<Name>> {
    let meta = fs::metadata(path)?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(io::Error::other("is neither a file nor a directory"));
    }
    if meta.is_file() {
        return Ok(vec![Name(path.into())]);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if is_manifest(&file) {
            names.push(Name(file.into()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a file counts by its name.
pub(super) fn is_manifest(file: &Path) -> bool {
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let extension = file.extension().and_then(|e| e.to_str());
    !file.file_name().is_none_or(hidden) && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read(file: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let mut opened = File::open(file)?;
    let size = usize::try_from(opened.metadata()?.len()).unwrap_or(0);
    let mut text = Vec::with_capacity(size.saturating_add(1));
    opened.read_to_end(&mut text)?;
    let after = opened.metadata()?;
    Ok((text, after))
}
