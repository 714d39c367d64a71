//! What each file holds, and from that what is in force: of objects that stand
//! twice the first by file name, and in one file the first by position.
//!
//! A change of a file costs what that file holds, however much there is beside it.

use std::cmp::Ordering;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::take;
use std::path::Path;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::parse::Loaded;
use super::report::Report;
use crate::service::object::{Event, NamespacedName, ObjectKey, ObjectKind, Origin};

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
    /// Where each object stands.
    places: HashMap<ObjectKey, Places, RandomState>,
    /// What was in force at the last [`publish`](Self::publish), of objects that
    /// may have changed since.
    before: BTreeMap<ObjectKey, Option<Loaded>>,
    /// Objects that stand twice, with file in force and file that is not: reported
    /// and still so.
    duplicates: BTreeMap<ObjectKey, BTreeSet<(Name, Name)>>,
}

/// The files that an object stands in.
#[derive(Debug)]
enum Places {
    One(Name),
    Several(BTreeSet<Name>),
}

#[derive(Debug, Default)]
struct Content {
    /// The first of each name, in the order of keys.
    objects: Vec<Loaded>,
    /// Where objects stand again in the same file, in the order of the file.
    again: Vec<(ObjectKey, Origin)>,
    /// All of the file was understood.
    good: bool,
}

impl Store {
    /// Takes a file that was understood as a whole.
    pub(super) fn set(&mut self, file: Name, objects: Vec<Loaded>) {
        self.replace(file, Some(Content::new(objects, true)));
    }

    /// Takes what could be understood of a file, unless it has been good. The
    /// answer is whether it has been.
    pub(super) fn set_partial(&mut self, file: Name, objects: Vec<Loaded>) -> bool {
        let good = self.files.get(&file).is_some_and(|content| content.good);
        if !good {
            self.replace(file, Some(Content::new(objects, good)));
        }
        good
    }

    /// Whether a file holds an object that is not among these.
    pub(super) fn holds_more(&self, file: &Name, objects: &[Loaded]) -> bool {
        let Some(content) = self.files.get(file) else {
            return false;
        };
        let keys: BTreeSet<_> = objects
            .iter()
            .map(|loaded| loaded.object.kind_and_name())
            .collect();
        let mut held = content.objects.iter();
        held.any(|loaded| !keys.contains(&loaded.object.kind_and_name()))
    }

    /// Forgets a file.
    pub(super) fn remove(&mut self, file: &Name) {
        self.replace(file.clone(), None);
    }

    /// What changed since the last time: objects that are gone first, then those
    /// that came or changed in the order of files.
    pub(super) fn publish(&mut self) -> (Vec<Event>, Vec<Report>) {
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        let mut reports = Vec::new();
        for (key, before) in take(&mut self.before) {
            self.find_duplicates(&key, &mut reports);
            match self.in_force(&key) {
                None if before.is_some() => gone.push(Event::Delete(key)),
                Some(now) if before.as_ref() != Some(now) => changed.push(now.clone()),
                None | Some(_) => {}
            }
        }
        changed.sort_by(|a, b| place(&a.origin).cmp(&place(&b.origin)));
        reports.sort_by(|(a, _), (b, _)| place(a).cmp(&place(b)));
        let mut events = gone;
        events.extend(changed.into_iter().map(|loaded| Event::Apply {
            object: loaded.object,
            origin: Some(loaded.origin),
        }));
        let reports = reports.into_iter().map(|(_, report)| report);
        (events, reports.collect())
    }

    fn replace(&mut self, file: Name, content: Option<Content>) {
        let old = self.files.remove(&file).unwrap_or_default();
        let new = content.as_ref();
        let found = |content: Option<&Content>, loaded: &Loaded| {
            content.and_then(|content| content.get(loaded.object.kind_and_name()).cloned())
        };
        let mut touched: Vec<ObjectKey> = (old.objects.iter())
            .filter(|loaded| found(new, loaded).as_ref() != Some(*loaded))
            .map(|loaded| loaded.object.key())
            .collect();
        let added = new.into_iter().flat_map(|content| &content.objects);
        let added = added.filter(|loaded| found(Some(&old), loaded).is_none());
        touched.extend(added.map(|loaded| loaded.object.key()));
        let again = new.into_iter().flat_map(|content| &content.again);
        let again = old.again.iter().chain(again);
        touched.extend(again.map(|(key, _)| key.clone()));
        self.files.insert(file.clone(), old);
        for key in touched {
            if !self.before.contains_key(&key) {
                let before = self.in_force(&key).cloned();
                self.before.insert(key.clone(), before);
            }
            if new.is_some_and(|content| content.get((key.kind, &key.name)).is_some()) {
                self.stands_in(key, &file);
            } else {
                self.stands_not_in(&key, &file);
            }
        }
        match content {
            Some(content) => self.files.insert(file, content),
            None => self.files.remove(&file),
        };
    }

    fn stands_in(&mut self, key: ObjectKey, file: &Name) {
        match self.places.get_mut(&key) {
            None => {
                self.places.insert(key, Places::One(file.clone()));
            }
            Some(Places::Several(files)) => {
                files.insert(file.clone());
            }
            Some(places @ Places::One(_)) => {
                if let Places::One(one) = &*places
                    && one != file
                {
                    *places = Places::Several([one.clone(), file.clone()].into());
                }
            }
        }
    }

    fn stands_not_in(&mut self, key: &ObjectKey, file: &Name) {
        let nowhere = match self.places.get_mut(key) {
            None => false,
            Some(Places::One(one)) => one == file,
            Some(Places::Several(files)) => {
                files.remove(file);
                files.is_empty()
            }
        };
        if nowhere {
            self.places.remove(key);
        }
    }

    /// The files that an object stands in, in the order of names.
    fn files_of(&self, key: &ObjectKey) -> impl Iterator<Item = &Name> {
        let (one, several) = match self.places.get(key) {
            Some(Places::One(file)) => (Some(file), None),
            Some(Places::Several(files)) => (None, Some(files)),
            None => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    fn in_force(&self, key: &ObjectKey) -> Option<&Loaded> {
        let first = self.files_of(key).next()?;
        self.files.get(first)?.get((key.kind, &key.name))
    }

    /// Says where an object stands again, if that was not said before.
    fn find_duplicates(&mut self, key: &ObjectKey, reports: &mut Vec<(Origin, Report)>) {
        let mut found = BTreeSet::new();
        let mut new = Vec::new();
        if let Some(used) = self.in_force(key) {
            let told = self.duplicates.get(key);
            for (nth, file) in self.files_of(key).enumerate() {
                let Some(content) = self.files.get(file) else {
                    continue;
                };
                let again = content.again.iter().filter(|(other, _)| other == key);
                let again = again.map(|(_, origin)| origin);
                let first = content.get((key.kind, &key.name)).filter(|_| nth > 0);
                for ignored in first.map(|loaded| &loaded.origin).into_iter().chain(again) {
                    let pair = (Name(used.origin.file.clone()), file.clone());
                    if told.is_none_or(|told| !told.contains(&pair)) && !found.contains(&pair) {
                        let report = Report::Duplicate {
                            object: key.clone(),
                            used: used.origin.clone(),
                            ignored: ignored.clone(),
                        };
                        new.push((ignored.clone(), report));
                    }
                    found.insert(pair);
                }
            }
        }
        reports.extend(new);
        match self.duplicates.entry(key.clone()) {
            Entry::Occupied(entry) if found.is_empty() => {
                entry.remove();
            }
            Entry::Occupied(mut entry) => {
                entry.insert(found);
            }
            Entry::Vacant(entry) if !found.is_empty() => {
                entry.insert(found);
            }
            Entry::Vacant(_) => {}
        }
    }
}

impl Content {
    fn new(mut objects: Vec<Loaded>, good: bool) -> Self {
        let mut again = Vec::new();
        // Stable: of one key the first stays first.
        objects.sort_by(|a, b| a.object.kind_and_name().cmp(&b.object.kind_and_name()));
        objects.dedup_by(|next, kept| {
            let same = next.object.kind_and_name() == kept.object.kind_and_name();
            if same {
                again.push((next.object.key(), next.origin.clone()));
            }
            same
        });
        objects.shrink_to_fit();
        Self {
            objects,
            again,
            good,
        }
    }

    fn get(&self, key: (ObjectKind, &NamespacedName)) -> Option<&Loaded> {
        let key_of = |loaded: &Loaded| loaded.object.kind_and_name().cmp(&key);
        let at = self.objects.binary_search_by(key_of).ok()?;
        self.objects.get(at)
    }
}

/// Orders origins as files and what is in them.
fn place(origin: &Origin) -> (&std::ffi::OsStr, u32, Option<u32>) {
    (origin.file.as_os_str(), origin.document, origin.item)
}

#[cfg(test)]
mod proptests;
