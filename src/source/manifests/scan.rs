//! One look at all files: which changed, which have settled, what that means.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foldhash::quality::RandomState;

use super::SETTLE;
use super::parse::parse;
use super::report::Report;
use super::store::{Name, Store};
use crate::source::Batch;

/// A file that never comes to rest is read after this long all the same, but not
/// reported if it does not parse.
const PATIENCE: Duration = Duration::from_millis(500);

/// The files under a path and what was read of them.
#[derive(Debug)]
pub(super) struct Scanner {
    path: PathBuf,
    files: BTreeMap<Name, Tracked>,
    store: Store,
    hasher: RandomState,
    ignored: BTreeSet<String>,
    /// Why the path could not be read the last time.
    path_error: Option<String>,
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
    /// Some file has not settled yet: look again soon.
    pub(super) unsettled: bool,
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

    /// Whether a file was left alone for [`SETTLE`] by its own account.
    fn is_old(&self, meta: &Metadata) -> bool {
        let age = meta.modified().map(|m| self.wall.duration_since(m));
        matches!(age, Ok(Ok(age)) if age >= SETTLE)
    }
}

impl Scanner {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            store: Store::default(),
            hasher: RandomState::default(),
            ignored: BTreeSet::new(),
            path_error: None,
            started: false,
        }
    }

    /// Looks at every file, and reads those that changed and have settled.
    pub(super) fn look(&mut self, clock: Clock) -> Look {
        let mut look = Look::default();
        let listing = match list(&self.path) {
            Ok(listing) => listing,
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
        };
        self.path_error = None;
        let mut changed = self.drop_missing(&listing, clock.now, &mut look);
        for (file, meta) in listing {
            changed |= self.look_at(file, meta, clock, &mut look);
        }
        if !self.started && look.unread {
            return look;
        }
        if changed || !self.started {
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
        self.started = true;
        look
    }

    /// Forgets files that have been away for [`SETTLE`]: some editors move a file
    /// away before they write it anew.
    fn drop_missing(&mut self, listing: &Listing, now: Instant, look: &mut Look) -> bool {
        let mut gone = Vec::new();
        for (file, tracked) in &mut self.files {
            if listing.contains_key(file) {
                continue;
            }
            if tracked.seen.take().is_some() || tracked.error.take().is_some() {
                tracked.since = now;
            }
            if now.duration_since(tracked.since) >= SETTLE {
                gone.push(file.clone());
            } else {
                look.unsettled = true;
            }
        }
        for file in &gone {
            self.files.remove(file);
            self.store.remove(file);
        }
        !gone.is_empty()
    }

    /// Looks at one file. The answer is whether what is in force may change.
    fn look_at(
        &mut self,
        name: Name,
        meta: io::Result<Metadata>,
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
        });
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
        let mut settled = clock.is_old(&meta) || now.duration_since(tracked.since) >= SETTLE;
        let impatient = tracked
            .restless
            .is_some_and(|r| now.duration_since(r) >= PATIENCE);
        if !settled && !impatient {
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
            if tracked.hash == Some(hash) {
                return false;
            }
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

type Listing = BTreeMap<Name, io::Result<Metadata>>;

/// The files that count, with symbolic links followed: a ConfigMap volume is made
/// of links through `..data`, which is itself one and hidden.
fn list(path: &Path) -> io::Result<Listing> {
    let meta = fs::metadata(path)?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(io::Error::other("is neither a file nor a directory"));
    }
    if meta.is_file() {
        return Ok(BTreeMap::from([(Name(path.into()), Ok(meta))]));
    }
    let mut listing = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if !is_manifest(&file) {
            continue;
        }
        match fs::metadata(&file) {
            Ok(meta) if !meta.is_file() => {}
            // Removed since, or a link to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            meta => {
                listing.insert(Name(file.into()), meta);
            }
        }
    }
    Ok(listing)
}

fn is_manifest(file: &Path) -> bool {
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
