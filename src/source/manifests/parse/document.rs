//! A document to objects in one pass, whatever the format.
//!
//! `kind` decides the type of everything beside it and need not come first. As
//! soon as `apiVersion` and `kind` are known the rest goes straight into the
//! API's type; what stood before them is kept as values and goes in first.
//! `items` before `kind`, as `kubectl get -o json` writes a List, is taken to be
//! a list's.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::vec;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::Value;

use super::{Loaded, Parsed};
use crate::service::endpoint::EndpointSlice;
use crate::service::namespace::Namespace;
use crate::service::object::{Node, Object, Origin};
use crate::service::service_port::Service;
use crate::source::manifests::report::ParseError;

/// apiVersion of EndpointSlice.
const DISCOVERY: &str = "discovery.k8s.io/v1";

/// Said of an object that does not say what it is.
pub(super) const NO_KIND: &str = "apiVersion and kind are missing";

/// Said of an object without a name.
pub(super) const NO_NAME: &str = "metadata.name is missing";

/// Kinds of object that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Service,
    EndpointSlice,
    Node,
    Namespace,
}

/// What apiVersion and kind say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// An object.
    One(Element),
    /// A list, of objects that need not say what they are if it says so.
    List(Option<Element>),
    /// Something else.
    Other,
}

impl Type {
    /// By apiVersion and kind.
    pub(super) fn of(api_version: &str, kind: &str) -> Self {
        match (api_version, kind) {
            ("v1", "Service") => Self::One(Element::Service),
            ("v1", "Node") => Self::One(Element::Node),
            ("v1", "Namespace") => Self::One(Element::Namespace),
            (DISCOVERY, "EndpointSlice") => Self::One(Element::EndpointSlice),
            ("v1", "List") => Self::List(None),
            ("v1", "ServiceList") => Self::List(Some(Element::Service)),
            ("v1", "NamespaceList") => Self::List(Some(Element::Namespace)),
            ("v1", "NodeList") => Self::List(Some(Element::Node)),
            (DISCOVERY, "EndpointSliceList") => Self::List(Some(Element::EndpointSlice)),
            _ => Self::Other,
        }
    }
}

/// Takes objects as they are read.
#[derive(Debug)]
pub(super) struct Sink {
    file: Arc<Path>,
    document: u32,
    item: u32,
    depth: u32,
    parsed: Parsed,
}

impl Sink {
    pub(super) fn new(file: Arc<Path>) -> Self {
        Self {
            file,
            document: 0,
            item: 0,
            depth: 0,
            parsed: Parsed::default(),
        }
    }

    pub(super) fn start_document(&mut self, number: u32) {
        self.document = number;
        self.item = 0;
        self.depth = 0;
    }

    /// Number of the current document.
    pub(super) fn document(&self) -> u32 {
        self.document
    }

    pub(super) fn finish(self) -> Parsed {
        self.parsed
    }

    /// A point to go back to.
    pub(super) fn mark(&self) -> usize {
        self.parsed.objects.len()
    }

    /// Forgets the objects of the current document since the mark.
    pub(super) fn reset(&mut self, mark: usize) {
        self.parsed.objects.truncate(mark);
        self.item = 0;
        self.depth = 0;
    }

    pub(super) fn enter_list(&mut self) {
        self.depth += 1;
    }

    pub(super) fn leave_list(&mut self) {
        self.depth -= 1;
    }

    /// Reports something of the current document.
    pub(super) fn error(
        &mut self,
        object: Option<String>,
        field: Option<String>,
        line: Option<u64>,
        message: String,
    ) {
        self.parsed.errors.push(ParseError {
            file: self.file.clone(),
            document: self.document,
            object,
            field,
            line,
            message,
        });
    }

    /// The errors so far.
    pub(super) fn errors(&mut self) -> &mut Vec<ParseError> {
        &mut self.parsed.errors
    }

    /// Counts an object of the current document.
    pub(super) fn count(&mut self) {
        self.item += 1;
    }

    /// Notes an object that is not ours.
    pub(super) fn ignore(&mut self, api_version: &str, kind: &str) {
        self.count();
        let name = format!("{api_version} {kind}");
        self.parsed.ignored.insert(name);
    }

    /// Reads an object of a known kind and takes it.
    pub(super) fn read<'de, D>(&mut self, element: Element, object: D) -> Result<(), D::Error>
    where
        D: Deserializer<'de>,
    {
        self.count();
        let object = match element {
            Element::Service => {
                let service = v1::Service::deserialize(object)?;
                Service::from_api(&service).map(|s| Object::Service(Arc::new(s)))
            }
            Element::EndpointSlice => {
                let mut slice = discovery::EndpointSlice::deserialize(object)?;
                // As the API server would; without a name the port is nobody's.
                for port in slice.ports.iter_mut().flatten() {
                    port.name.get_or_insert_default();
                }
                EndpointSlice::from_api(&slice).map(|s| Object::EndpointSlice(Arc::new(s)))
            }
            Element::Node => {
                let node = v1::Node::deserialize(object)?;
                Node::from_api(&node).map(|n| Object::Node(Arc::new(n)))
            }
            Element::Namespace => {
                let namespace = v1::Namespace::deserialize(object)?;
                Namespace::from_api(&namespace).map(|n| Object::Namespace(Arc::new(n)))
            }
        };
        let origin = Origin {
            file: self.file.clone(),
            document: self.document,
            item: (self.depth > 0).then_some(self.item),
        };
        let object = object.ok_or_else(|| D::Error::custom(NO_NAME))?;
        self.parsed.objects.push(Loaded { object, origin });
        Ok(())
    }
}

/// Reads an object, or a list of them, into a sink.
pub(super) struct ObjectSeed<'a> {
    sink: &'a mut Sink,
    default: Option<Element>,
    /// Items that do not say what they are, in a list that has not yet said so.
    pending: Option<&'a mut Vec<Value>>,
}

impl<'a> ObjectSeed<'a> {
    /// A whole document.
    pub(super) fn document(sink: &'a mut Sink) -> Self {
        Self {
            sink,
            default: None,
            pending: None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self {
            sink,
            default,
            pending,
        } = self;
        if let Some(element) = default {
            return sink.read(element, MapAccessDeserializer::new(map));
        }
        let (mut api_version, mut kind) = (None::<String>, None::<String>);
        let mut before = Vec::new();
        let mut early = None;
        while api_version.is_none() || kind.is_none() {
            let Some(key) = map.next_key::<String>()? else {
                break;
            };
            match key.as_str() {
                "apiVersion" => api_version = Some(map.next_value()?),
                "kind" => kind = Some(map.next_value()?),
                "endpoints" if api_version.as_deref() == Some(DISCOVERY) => {
                    // The bulk of a slice, which kubectl writes before its kind:
                    // nothing else of this version has such a field.
                    let slice = Chained {
                        before: before.into_iter(),
                        value: None,
                        key: Some(key),
                        map,
                    };
                    return sink.read(Element::EndpointSlice, MapAccessDeserializer::new(slice));
                }
                "items" => {
                    let mark = sink.mark();
                    let mut pending = Vec::new();
                    map.next_value_seed(ItemsSeed {
                        sink,
                        default: None,
                        pending: Some(&mut pending),
                    })?;
                    early = Some((mark, pending));
                }
                _ => before.push((key, map.next_value::<Value>()?)),
            }
        }
        let (Some(api_version), Some(kind)) = (&api_version, &kind) else {
            let (Some(pending), None, None) = (pending, &early, kind.or(api_version)) else {
                return Err(A::Error::custom(NO_KIND));
            };
            pending.push(Value::Object(before.into_iter().collect()));
            return Ok(());
        };
        let mut rest = Chained {
            before: before.into_iter(),
            value: None,
            key: None,
            map,
        };
        match Type::of(api_version, kind) {
            Type::One(element) => sink.read(element, MapAccessDeserializer::new(rest)),
            Type::List(default) => {
                for item in early.into_iter().flat_map(|(_, pending)| pending) {
                    let element = default.ok_or_else(|| A::Error::custom(NO_KIND))?;
                    sink.enter_list();
                    sink.read(element, item).map_err(A::Error::custom)?;
                    sink.leave_list();
                }
                while let Some(key) = rest.next_key::<String>()? {
                    if key == "items" {
                        rest.next_value_seed(ItemsSeed {
                            sink,
                            default,
                            pending: None,
                        })?;
                    } else {
                        rest.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(())
            }
            Type::Other => {
                if let Some((mark, _)) = early {
                    sink.reset(mark);
                }
                sink.ignore(api_version, kind);
                while rest.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(())
            }
        }
    }
}

/// Reads the items of a list.
struct ItemsSeed<'a> {
    sink: &'a mut Sink,
    default: Option<Element>,
    pending: Option<&'a mut Vec<Value>>,
}

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.sink.enter_list();
        loop {
            let item = ObjectSeed {
                sink: self.sink,
                default: self.default,
                pending: self.pending.as_deref_mut(),
            };
            if items.next_element_seed(item)?.is_none() {
                break;
            }
        }
        self.sink.leave_list();
        Ok(())
    }
}

/// A map whose first entries were read already.
struct Chained<A> {
    before: vec::IntoIter<(String, Value)>,
    value: Option<Value>,
    /// A key whose value is still to be read.
    key: Option<String>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Chained<A> {
    type Error = A::Error;

    fn next_key_seed<K>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error>
    where
        K: DeserializeSeed<'de>,
    {
        if let Some((key, value)) = self.before.next() {
            self.value = Some(value);
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        match self.key.take() {
            Some(key) => seed.deserialize(key.into_deserializer()).map(Some),
            None => self.map.next_key_seed(seed),
        }
    }

    fn next_value_seed<V>(&mut self, seed: V) -> Result<V::Value, A::Error>
    where
        V: DeserializeSeed<'de>,
    {
        match self.value.take() {
            Some(value) => seed.deserialize(value).map_err(A::Error::custom),
            None => self.map.next_value_seed(seed),
        }
    }
}
