//! Whatever was put where, what has been published is what a look at all files from
//! the beginning would find.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::service::object::{Node, Object};

/// One of a few files and of a few objects, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<(u8, u8)>),
    SetPartial(u8, Vec<(u8, u8)>),
    Remove(u8),
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    let objects = || vec((0..4_u8, 0..3_u8), 0..5);
    prop_oneof![
        4 => (0..3_u8, objects()).prop_map(|(file, objects)| Step::Set(file, objects)),
        2 => (0..3_u8, objects()).prop_map(|(file, objects)| Step::SetPartial(file, objects)),
        2 => (0..3_u8).prop_map(Step::Remove),
        3 => Just(Step::Publish),
    ]
}

fn name(file: u8) -> Name {
    Name(Path::new(&format!("{file}.yaml")).into())
}

/// Nodes, which differ in their zones.
fn objects(file: u8, objects: &[(u8, u8)]) -> Vec<Loaded> {
    let loaded = |(document, (node, zone)): (u32, &(u8, u8))| Loaded {
        object: Object::Node(Arc::new(Node {
            name: NamespacedName::new("", format!("n{node}")),
            zone: Some(format!("z{zone}").into()),
            network: crate::service::NodeNetwork::default(),
        })),
        origin: Origin {
            file: name(file).0,
            document,
            item: None,
        },
    };
    (1..).zip(objects).map(loaded).collect()
}

/// All files, with whether they have been good.
type Files = BTreeMap<u8, (Vec<Loaded>, bool)>;

/// What is in force.
type InForce = BTreeMap<ObjectKey, Loaded>;

/// Which object stands again in which file.
type Again = BTreeSet<(ObjectKey, Arc<Path>)>;

fn find(files: &Files) -> (InForce, Again) {
    let (mut in_force, mut again) = (InForce::new(), Again::new());
    for loaded in files.values().flat_map(|(objects, _)| objects) {
        let key = loaded.object.key();
        match in_force.entry(key) {
            Entry::Occupied(entry) => {
                again.insert((entry.key().clone(), loaded.origin.file.clone()));
            }
            Entry::Vacant(entry) => {
                entry.insert(loaded.clone());
            }
        }
    }
    (in_force, again)
}

proptest! {
    #[test]
    fn what_is_published_is_what_there_is(steps in vec(step(), 0..40)) {
        let mut store = Store::default();
        let mut files = Files::new();
        let mut published: BTreeMap<ObjectKey, Loaded> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Publish]) {
            match step {
                Step::Set(file, content) => {
                    let content = objects(file, &content);
                    store.set(name(file), content.clone());
                    files.insert(file, (content, true));
                }
                Step::SetPartial(file, content) => {
                    let content = objects(file, &content);
                    let good = files.get(&file).is_some_and(|(_, good)| *good);
                    prop_assert_eq!(store.set_partial(name(file), content.clone()), good);
                    if !good {
                        files.insert(file, (content, false));
                    }
                }
                Step::Remove(file) => {
                    store.remove(&name(file));
                    files.remove(&file);
                }
                Step::Publish => {
                    let (events, _) = store.publish();
                    for event in events {
                        match event {
                            Event::Delete(key) => prop_assert!(published.remove(&key).is_some()),
                            Event::Apply { object, origin } => {
                                let loaded = Loaded { object, origin: origin.unwrap() };
                                let before = published.insert(loaded.object.key(), loaded.clone());
                                prop_assert!(before != Some(loaded));
                            }
                        }
                    }
                    let (in_force, again) = find(&files);
                    prop_assert_eq!(&published, &in_force);
                    let told = store.duplicates.iter().flat_map(|(key, pairs)| {
                        pairs.iter().map(|(_, ignored)| (key.clone(), ignored.0.clone()))
                    });
                    prop_assert_eq!(told.collect::<BTreeSet<_>>(), again);
                    prop_assert!(store.before.is_empty());
                }
            }
        }
        for file in 0..3 {
            store.remove(&name(file));
        }
        store.publish();
        prop_assert!(store.files.is_empty() && store.places.is_empty() && store.duplicates.is_empty());
    }
}
