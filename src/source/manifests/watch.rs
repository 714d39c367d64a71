//! Watches through inotify. They only make a look come sooner: what is missed here
//! the periodic look finds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::told::Told;

/// inotify watches on the directories that matter for a path.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Directories that are watched, with device and inode.
    aimed: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watch {
    /// Watches for `path`, and passes on to `told` what inotify says.
    pub(super) fn new(path: PathBuf, told: Arc<Told>) -> Self {
        let watcher = notify::recommended_watcher(move |event| told.hear(&event));
        let watcher = watcher.map_err(|error| give_up(&error)).ok();
        Self {
            path,
            watcher,
            aimed: BTreeMap::new(),
        }
    }

    /// Makes the watches fit what is there now: a directory may have been
    /// replaced, or a symbolic link on the way re-pointed. The answer is whether
    /// something is watched that was not before.
    pub(super) fn aim(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut new = false;
        let wanted = directories(&self.path);
        self.aimed.retain(|path, id| {
            let keep = wanted.get(path) == Some(id);
            if !keep {
                // Fails if the directory is gone, and the watch with it.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        for (path, id) in wanted {
            if self.aimed.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.aimed.insert(path, id);
                    new = true;
                }
                Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => {
                    give_up(&error);
                    self.watcher = None;
                    return false;
                }
                // Gone again, or not permitted: the periodic look sees as much.
                Err(error) => tracing::debug!(path = %path.display(), %error, "not watched"),
            }
        }
        new
    }
}

fn give_up(error: &notify::Error) {
    tracing::warn!(
        %error, period_ms = super::LOOK_PERIOD.as_millis(),
        "manifests are not watched through inotify, only looked at periodically"
    );
}

/// The path itself if it is a directory, where its name stands, and where it
/// leads if that is elsewhere.
fn directories(path: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    let target = fs::canonicalize(path).ok();
    let mut candidates = vec![path.to_owned(), parent(path)];
    candidates.extend(target.as_deref().map(parent));
    let mut wanted = BTreeMap::new();
    for path in candidates {
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        // One watch for each directory, whatever it is called: taking one away
        // would take the other with it.
        let id = (meta.dev(), meta.ino());
        if meta.is_dir() && !wanted.values().any(|other| *other == id) {
            wanted.insert(path, id);
        }
    }
    wanted
}
