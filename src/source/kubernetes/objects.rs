//! Services, EndpointSlices, Nodes and Namespaces: the objects of the index.
//!
//! Each is reduced to its compact form as soon as it has come. The forms are
//! shared with the index, so that remembering them for the next list costs a
//! pointer. An object that does not parse is named once; its last good form
//! stays in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::value::RawValue;
use tracing::warn;

use super::collect::Update;
use super::collection::{Collection, Deleted};
use super::slim::{SlimService, SlimSlice};
use super::wire::{HeadMeta, object};
use crate::service::endpoint::EndpointSlice;
use crate::service::namespace::Namespace;
use crate::service::object::{Event, NamespacedName, Node, Object, ObjectKey, ObjectKind};
use crate::service::service_port::Service;

/// When the change that a slice tells of happened, says the controller that wrote
/// the slice.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Objects {
    kind: ObjectKind,
    /// Changes from before are not measured, as with kube-proxy.
    since: Timestamp,
    known: BTreeMap<NamespacedName, Object>,
    /// The list that is being told.
    listing: BTreeMap<NamespacedName, Listed>,
    /// What did not parse, and what was said of it.
    senseless: BTreeMap<NamespacedName, String>,
}

#[derive(Debug)]
struct Listed {
    /// `None`: it is there, but makes no sense, and never did.
    object: Option<Object>,
    trigger: Option<Timestamp>,
}

impl Objects {
    /// No objects yet. `since` is when the proxy started.
    pub(super) fn new(kind: ObjectKind, since: Timestamp) -> Self {
        Self {
            kind,
            since,
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            senseless: BTreeMap::new(),
        }
    }

    fn name(&self, head: &HeadMeta) -> NamespacedName {
        let namespace = match self.kind {
            ObjectKind::Node | ObjectKind::Namespace => "",
            ObjectKind::Service | ObjectKind::EndpointSlice => {
                let namespace = head.namespace.as_deref().filter(|n| !n.is_empty());
                namespace.unwrap_or("default")
            }
        };
        NamespacedName::new(namespace, head.name.as_str())
    }

    /// The object in compact form; `None`, and a warning, if it makes no sense.
    fn read(&mut self, name: &NamespacedName, text: &RawValue) -> Option<Listed> {
        match compact(self.kind, text) {
            Ok(read) => {
                self.senseless.remove(name);
                let known = self.known.get(name).filter(|known| **known == read.0);
                Some(Listed {
                    object: Some(known.cloned().unwrap_or(read.0)),
                    trigger: read.1.filter(|trigger| *trigger > self.since),
                })
            }
            Err(error) => {
                if self.senseless.get(name) != Some(&error) {
                    let object = self.key(name.clone());
                    warn!(%object, %error, "an object makes no sense and is skipped");
                    self.senseless.insert(name.clone(), error);
                }
                None
            }
        }
    }

    fn key(&self, name: NamespacedName) -> ObjectKey {
        let kind = self.kind;
        ObjectKey { kind, name }
    }
}

impl Collection for Objects {
    fn begin(&mut self) {
        self.listing.clear();
    }

    fn listed(&mut self, head: &HeadMeta, object: &RawValue) {
        let name = self.name(head);
        let listed = self.read(&name, object).unwrap_or_else(|| Listed {
            object: self.known.get(&name).cloned(),
            trigger: None,
        });
        self.listing.insert(name, listed);
    }

    fn unlisted(&mut self, head: &HeadMeta) {
        let name = self.name(head);
        self.listing.remove(&name);
    }

    fn complete(&mut self) -> Option<Update> {
        let listing = std::mem::take(&mut self.listing);
        let mut update = Update::default();
        let gone = self
            .known
            .keys()
            .filter(|name| !listing.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.known.remove(&name);
            update.events.push(Event::Delete(self.key(name)));
        }
        self.senseless.retain(|name, _| listing.contains_key(name));
        for (name, Listed { object, trigger }) in listing {
            let Some(object) = object else {
                continue;
            };
            if self
                .known
                .get(&name)
                .is_none_or(|known| !is_same(known, &object))
            {
                self.known.insert(name, object.clone());
                update.apply(object, trigger);
            }
        }
        update.some()
    }

    fn applied(&mut self, head: &HeadMeta, object: &RawValue) -> Option<Update> {
        let name = self.name(head);
        let Listed { object, trigger } = self.read(&name, object)?;
        let object = object?;
        if self
            .known
            .get(&name)
            .is_some_and(|known| is_same(known, &object))
        {
            return None;
        }
        self.known.insert(name, object.clone());
        let mut update = Update::default();
        update.apply(object, trigger);
        update.some()
    }

    fn deleted(&mut self, head: &HeadMeta) -> Deleted {
        let name = self.name(head);
        self.senseless.remove(&name);
        let known = self.known.remove(&name).is_some();
        Deleted::Update(known.then(|| Update {
            events: vec![Event::Delete(self.key(name))],
            ..Update::default()
        }))
    }
}

/// Whether it is the known object itself: `read` gives that for an equal one.
fn is_same(known: &Object, object: &Object) -> bool {
    match (known, object) {
        (Object::Service(a), Object::Service(b)) => Arc::ptr_eq(a, b),
        (Object::EndpointSlice(a), Object::EndpointSlice(b)) => Arc::ptr_eq(a, b),
        (Object::Node(a), Object::Node(b)) => Arc::ptr_eq(a, b),
        (Object::Namespace(a), Object::Namespace(b)) => Arc::ptr_eq(a, b),
        (
            Object::Service(_) | Object::EndpointSlice(_) | Object::Node(_) | Object::Namespace(_),
            _,
        ) => false,
    }
}

fn compact(kind: ObjectKind, text: &RawValue) -> Result<(Object, Option<Timestamp>), String> {
    let (object, trigger) = match kind {
        ObjectKind::Service => {
            let service: v1::Service = object::<SlimService>(text)?.into();
            let compact = Service::from_api(&service);
            (compact.map(|s| Object::Service(Arc::new(s))), None)
        }
        ObjectKind::EndpointSlice => {
            let slice: discovery::EndpointSlice = object::<SlimSlice>(text)?.into();
            let compact = EndpointSlice::from_api(&slice);
            let compact = compact.map(|s| Object::EndpointSlice(Arc::new(s)));
            (compact, trigger(&slice.metadata))
        }
        ObjectKind::Node => {
            let node: v1::Node = object(text)?;
            let compact = Node::from_api(&node);
            (compact.map(|n| Object::Node(Arc::new(n))), None)
        }
        ObjectKind::Namespace => {
            let namespace: v1::Namespace = object(text)?;
            let compact = Namespace::from_api(&namespace);
            (compact.map(|n| Object::Namespace(Arc::new(n))), None)
        }
    };
    let object = object.ok_or_else(|| "metadata.name is missing".to_owned())?;
    Ok((object, trigger))
}

fn trigger(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()
}
