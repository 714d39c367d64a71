//! What inotify told and no look has followed up yet: which files, and whether
//! their writers have finished.

use std::collections::BTreeMap;
use std::mem::take;
use std::path::{Path, PathBuf, absolute};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind};
use tokio::sync::Notify;

use super::scan::is_manifest;
use super::store::Name;

/// Files that are remembered by name; with more, all are looked at.
const MAX_FILES: usize = 1024;

/// Filled by inotify's thread, emptied by the source's task.
#[derive(Debug)]
pub(super) struct Told {
    path: PathBuf,
    /// The same as inotify names it.
    absolute: PathBuf,
    tidings: Mutex<Tidings>,
    /// Some file was told by name.
    pub(super) files: Notify,
    /// Everything is to be looked at.
    pub(super) all: Notify,
}

/// What was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tidings {
    /// Files that changed, and whether the latest that happened to each ended a
    /// write: it was closed by a writer, or moved into place.
    pub(super) files: BTreeMap<Name, bool>,
    /// Something else may have changed.
    pub(super) all: bool,
}

/// What an event says of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saying {
    Finished,
    Written,
    /// It came; a file is about to be written, a link is all there will be.
    Created,
    /// It went, or leads elsewhere.
    Moved,
    Nothing,
}

impl Told {
    /// Nothing yet, about manifests at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            // Fails without a working directory; then an absolute path is needed
            // anyway.
            absolute: absolute(path).unwrap_or_else(|_| path.to_owned()),
            tidings: Mutex::default(),
            files: Notify::new(),
            all: Notify::new(),
        }
    }

    /// Takes an event, or the loss of some.
    pub(super) fn hear(&self, event: &notify::Result<Event>) {
        let mut tidings = self.lock();
        let heard = match event {
            Ok(event) => self.understand(event),
            Err(_) => Tidings::all(),
        };
        let some = !heard.files.is_empty();
        let mut all = heard.all;
        for (file, finished) in heard.files {
            if tidings.files.len() < MAX_FILES || tidings.files.contains_key(&file) {
                tidings.files.insert(file, finished);
            } else {
                all = true;
            }
        }
        tidings.all |= all;
        drop(tidings);
        if some {
            self.files.notify_one();
        }
        if all {
            self.all.notify_one();
        }
    }

    /// What was told since the last time.
    pub(super) fn take(&self) -> Tidings {
        take(&mut *self.lock())
    }

    /// The same, unless everything is to be looked at, which stays told.
    pub(super) fn take_files(&self) -> Tidings {
        let files = take(&mut self.lock().files);
        Tidings { files, all: false }
    }

    /// Whether [`take_files`](Self::take_files) has something to give.
    pub(super) fn has_files(&self) -> bool {
        !self.lock().files.is_empty()
    }

    /// Whether everything is to be looked at.
    pub(super) fn wants_all(&self) -> bool {
        self.lock().all
    }

    fn understand(&self, event: &Event) -> Tidings {
        let saying = Saying::of(event.kind);
        let mut tidings = Tidings::default();
        if saying == Saying::Nothing {
            return tidings;
        }
        if event.paths.is_empty() {
            return Tidings::all();
        }
        for path in &event.paths {
            let name = path.file_name().map(Path::new);
            let inside = path.parent() == Some(&*self.absolute);
            let file: Option<Arc<Path>> = if *path == self.absolute {
                // Itself a file, or a directory that something happened to.
                tidings.all |=
                    matches!(saying, Saying::Created | Saying::Moved) || event.kind.is_modify();
                Some(self.path.as_path().into())
            } else if inside && is_manifest(path) {
                name.map(|name| self.path.join(name).into())
            } else {
                None
            };
            match (file, saying) {
                (Some(file), Saying::Finished) => {
                    tidings.files.insert(Name(file), true);
                }
                (Some(file), Saying::Written | Saying::Created) => {
                    tidings.files.insert(Name(file), false);
                }
                (Some(_), Saying::Moved) => tidings.all = true,
                (None, Saying::Created | Saying::Moved | Saying::Finished) if inside => {
                    // Of what counts for nothing by itself only `..data`, by which
                    // ConfigMap volumes are re-pointed, is worth a look at once.
                    let bytes = name.map_or(&b""[..], |n| n.as_os_str().as_encoded_bytes());
                    tidings.all |= bytes.starts_with(b"..");
                }
                // Beside the path, or where it leads: names decide, not contents.
                (None, Saying::Created | Saying::Moved) => tidings.all = true,
                (None, Saying::Finished) => tidings.all |= event.kind.is_modify(),
                (None, Saying::Written) | (_, Saying::Nothing) => {}
            }
        }
        tidings
    }

    fn lock(&self) -> MutexGuard<'_, Tidings> {
        self.tidings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tidings {
    fn all() -> Self {
        Self {
            files: BTreeMap::new(),
            all: true,
        }
    }
}

impl Saying {
    fn of(kind: EventKind) -> Self {
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Self::Finished,
            // Opened and read, as every look does; and a rename told twice.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
                Self::Nothing
            }
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => Self::Written,
            EventKind::Create(_) => Self::Created,
            EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Any | ModifyKind::Other)
            | EventKind::Any
            | EventKind::Other => Self::Moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind};

    use super::*;

    const WRITE: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const MOVED_TO: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const MOVED_FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::File);

    fn hear(told: &Told, kind: EventKind, path: &str) {
        told.hear(&Ok(Event::new(kind).add_path(path.into())));
    }

    /// What is told of a directory `/m` after one event.
    fn after(kind: EventKind, path: &str) -> (Vec<(String, bool)>, bool) {
        let told = Told::new(Path::new("/m"));
        hear(&told, kind, path);
        let tidings = told.take();
        assert_eq!(told.take(), Tidings::default());
        let files = tidings.files.into_iter();
        let files = files.map(|(name, finished)| (name.0.display().to_string(), finished));
        (files.collect(), tidings.all)
    }

    #[test]
    fn what_ends_a_write_and_what_does_not() {
        let file = |finished| (vec![("/m/a.json".to_owned(), finished)], false);
        assert_eq!(after(CLOSE, "/m/a.json"), file(true));
        assert_eq!(after(MOVED_TO, "/m/a.json"), file(true));
        assert_eq!(after(WRITE, "/m/a.json"), file(false));
        assert_eq!(after(CREATED, "/m/a.json"), file(false));
        let metadata = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        assert_eq!(after(metadata, "/m/a.json"), file(false));
        // The latest counts.
        let told = Told::new(Path::new("/m"));
        for kind in [WRITE, CLOSE, WRITE] {
            hear(&told, kind, "/m/a.json");
        }
        assert_eq!(told.take_files().files.into_values().next(), Some(false));
    }

    #[test]
    fn what_may_change_more_than_one_file() {
        let (all, nothing) = ((vec![], true), (vec![], false));
        assert_eq!(after(REMOVED, "/m/a.json"), all);
        assert_eq!(after(MOVED_FROM, "/m/a.json"), all);
        // A ConfigMap volume is re-pointed.
        assert_eq!(after(MOVED_TO, "/m/..data"), all);
        // Where careful writers prepare a file.
        for kind in [CREATED, WRITE, CLOSE, MOVED_FROM] {
            assert_eq!(after(kind, "/m/.a.json.new"), nothing);
        }
        // The directory itself, and its neighbours.
        assert_eq!(after(REMOVED, "/m"), all);
        assert!(after(MOVED_TO, "/m").1);
        assert_eq!(after(MOVED_TO, "/other"), all);
        assert_eq!(after(WRITE, "/other"), nothing);
        assert_eq!(after(CLOSE, "/other"), nothing);
        let told = Told::new(Path::new("/m"));
        told.hear(&Err(notify::Error::generic("lost")));
        assert!(told.take_files().files.is_empty() && told.take().all);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let told = Told::new(Path::new("/m"));
        for file in 0..=MAX_FILES {
            assert!(!told.lock().all);
            hear(&told, CLOSE, &format!("/m/{file}.yaml"));
        }
        let tidings = told.take();
        assert_eq!((tidings.files.len(), tidings.all), (MAX_FILES, true));
    }
}
