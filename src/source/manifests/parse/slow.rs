//! A document that failed, read again as values: which of its objects are
//! wrong, in which field, and which are not.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use serde_path_to_error::Track;

use super::Parsed;
use super::document::{Element, NO_KIND, NO_NAME, Sink, Type};
use super::yaml::{self, Document};

/// Reads a JSON file of which some document failed with `first`.
pub(super) fn parse_json(file: &Arc<Path>, text: &[u8], first: &serde_json::Error) -> Parsed {
    let mut sink = Sink::new(file.clone());
    let documents = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    for (number, document) in (1..).zip(documents) {
        sink.start_document(number);
        match document {
            Ok(value) => walk(value, &mut sink, "", None),
            Err(error) => {
                let line = u64::try_from(error.line()).ok();
                sink.error(None, None, line, error.to_string());
            }
        }
    }
    let line = u64::try_from(first.line()).ok();
    settle(&mut sink, 0, line, first.to_string());
    sink.finish()
}

/// Reads a YAML document that failed with `first`.
pub(super) fn parse_yaml(document: &Document<'_>, first: &serde_saphyr::Error, sink: &mut Sink) {
    let line = |error: &serde_saphyr::Error| {
        let line = error.location().map(|l| l.line()).filter(|&l| l > 0);
        line.map(|l| document.line + l - 1)
    };
    let reported = sink.errors().len();
    match serde_saphyr::from_str_with_options::<Value>(document.text, yaml::options()) {
        Ok(value) => walk(value, sink, "", None),
        Err(error) => sink.error(None, None, line(&error), message(&error)),
    }
    settle(sink, reported, line(first), message(first));
}

/// The first failure knows its line, what the walk found knows its field: they
/// are one and the same. If the walk found nothing the failure stands alone.
fn settle(sink: &mut Sink, reported: usize, line: Option<u64>, message: String) {
    match sink.errors().get_mut(reported) {
        Some(error) => error.line = error.line.or(line),
        None => sink.error(None, None, line, message),
    }
}

/// Without the position that the parser adds: it is relative to the document.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    match text.find(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn walk(value: Value, sink: &mut Sink, prefix: &str, default: Option<Element>) {
    if value.is_null() {
        return;
    }
    if !value.is_object() {
        sink.count();
        sink.error(None, field(prefix, ""), None, "is not an object".to_owned());
        return;
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let kind = match (text("apiVersion"), text("kind"), default) {
        (Some(api_version), Some(kind), _) => Type::of(api_version, kind),
        (_, _, Some(element)) => Type::One(element),
        _ => {
            sink.count();
            let object = describe(&value, None);
            sink.error(object, field(prefix, ""), None, NO_KIND.to_owned());
            return;
        }
    };
    match kind {
        Type::One(element) => read(element, value, sink, prefix),
        Type::List(default) => {
            let Value::Object(mut list) = value else {
                return;
            };
            match list.remove("items") {
                None | Some(Value::Null) => {}
                Some(Value::Array(items)) => {
                    sink.enter_list();
                    for (i, item) in items.into_iter().enumerate() {
                        walk(item, sink, &format!("{prefix}items[{i}]."), default);
                    }
                    sink.leave_list();
                }
                Some(_) => {
                    let wrong = "is not a list".to_owned();
                    sink.error(None, field(prefix, "items"), None, wrong);
                }
            }
        }
        Type::Other => sink.ignore(
            text("apiVersion").unwrap_or_default(),
            text("kind").unwrap_or_default(),
        ),
    }
}

fn read(element: Element, value: Value, sink: &mut Sink, prefix: &str) {
    let object = describe(&value, Some(element));
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    if let Err(error) = sink.read(element, tracked) {
        let message = error.to_string();
        if message == NO_NAME {
            let name = field(prefix, "metadata.name");
            sink.error(object, name, None, "is missing".to_owned());
        } else {
            let path = track.path().to_string();
            let path = if path == "." { "" } else { &path };
            sink.error(object, field(prefix, path), None, message);
        }
    }
}

fn field(prefix: &str, path: &str) -> Option<String> {
    let field = format!("{prefix}{path}");
    let field = field.trim_end_matches('.');
    (!field.is_empty()).then(|| field.to_owned())
}

/// `Service default/web`, as far as the object says so.
fn describe(value: &Value, element: Option<Element>) -> Option<String> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let kind = text(value.get("kind")).or_else(|| Some(format!("{:?}", element?)));
    let meta = value.get("metadata");
    let name = text(meta.and_then(|m| m.get("name")));
    let namespace = text(meta.and_then(|m| m.get("namespace")));
    let name = name.map(|name| match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None if matches!(element, Some(Element::Node | Element::Namespace)) => name,
        None => format!("default/{name}"),
    });
    match (kind, name) {
        (Some(kind), Some(name)) => Some(format!("{kind} {name}")),
        (kind, name) => kind.or(name),
    }
}
