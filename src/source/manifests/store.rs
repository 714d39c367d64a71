//! What each file holds, and from that what is in force: of objects that stand
//! twice the first by file name, and in one file the first by position.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::parse::Loaded;
use super::report::Report;
use crate::service::object::{Event, ObjectKey};

/// A file, in the order of names. A path's own order takes it apart at every
/// comparison, which is felt with tens of thousands of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(pub(super) Arc<Path>);

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_os_str().cmp(other.0.as_os_str())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Contents of all files.
#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<Name, Content>,
    published: HashMap<ObjectKey, Loaded>,
    /// Object, file in force, file that is not: reported and still so.
    duplicates: HashSet<(ObjectKey, Arc<Path>, Arc<Path>)>,
}

#[derive(Debug)]
struct Content {
    objects: Vec<Loaded>,
    /// All of the file was understood.
    good: bool,
}

impl Store {
    /// Takes a file that was understood as a whole.
    pub(super) fn set(&mut self, file: Name, objects: Vec<Loaded>) {
        let good = true;
        self.files.insert(file, Content { objects, good });
    }

    /// Takes what could be understood of a file, unless it has been good. The
    /// answer is whether it has been.
    pub(super) fn set_partial(&mut self, file: Name, objects: Vec<Loaded>) -> bool {
        let good = self.files.get(&file).is_some_and(|content| content.good);
        if !good {
            self.files.insert(file, Content { objects, good });
        }
        good
    }

    /// Forgets a file.
    pub(super) fn remove(&mut self, file: &Name) {
        self.files.remove(file);
    }

    /// What changed since the last time: objects that are gone first, then those
    /// that came or changed in the order of files.
    pub(super) fn publish(&mut self) -> (Vec<Event>, Vec<Report>) {
        let mut winners: HashMap<ObjectKey, &Loaded> = HashMap::new();
        let mut order = Vec::new();
        let mut duplicates = HashSet::new();
        let mut reports = Vec::new();
        for loaded in self.files.values().flat_map(|content| &content.objects) {
            let key = loaded.object.key();
            let Some(used) = winners.get(&key) else {
                winners.insert(key.clone(), loaded);
                order.push(key);
                continue;
            };
            let files = (used.origin.file.clone(), loaded.origin.file.clone());
            let duplicate = (key.clone(), files.0, files.1);
            if !self.duplicates.contains(&duplicate) && !duplicates.contains(&duplicate) {
                reports.push(Report::Duplicate {
                    object: key,
                    used: used.origin.clone(),
                    ignored: loaded.origin.clone(),
                });
            }
            duplicates.insert(duplicate);
        }
        let gone = self
            .published
            .keys()
            .filter(|key| !winners.contains_key(*key));
        let mut gone: Vec<ObjectKey> = gone.cloned().collect();
        gone.sort();
        let mut changed = Vec::new();
        for key in order {
            let loaded = winners[&key];
            if self.published.get(&key) != Some(loaded) {
                changed.push((key, loaded.clone()));
            }
        }
        let mut events = Vec::with_capacity(gone.len() + changed.len());
        for key in gone {
            self.published.remove(&key);
            events.push(Event::Delete(key));
        }
        for (key, loaded) in changed {
            events.push(Event::Apply {
                object: loaded.object.clone(),
                origin: Some(loaded.origin.clone()),
            });
            self.published.insert(key, loaded);
        }
        self.duplicates = duplicates;
        (events, reports)
    }
}
