//! The text of one file to objects.
//!
//! The text is deserialized straight into the API's types, one object at a
//! time, and each is reduced to its compact form at once: nothing holds a whole
//! file as values. Only a document that fails is read again, slowly, to say
//! what of it is wrong and to find what of it is not.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeSeed;

use super::report::ParseError;
use crate::service::object::{Object, Origin};
use document::{ObjectSeed, Sink};

mod document;
mod slow;
mod yaml;

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The object.
    pub object: Object,
    /// Where it stands.
    pub origin: Origin,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The objects, in their order.
    pub objects: Vec<Loaded>,
    /// What does not parse.
    pub errors: Vec<ParseError>,
    /// apiVersion and kind of objects that are not ours.
    pub ignored: BTreeSet<String>,
}

/// The two ways to write a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// Reads the text of a file. Its name decides between YAML and JSON; one that
/// ends in neither is JSON if it starts with a brace.
pub fn parse(file: &Arc<Path>, text: &[u8]) -> Parsed {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    match format(file, text) {
        Format::Json => parse_json(file, text),
        Format::Yaml => parse_yaml(file, text),
    }
}

fn format(file: &Path, text: &[u8]) -> Format {
    match file.extension().and_then(|e| e.to_str()) {
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        _ if text.trim_ascii_start().first() == Some(&b'{') => Format::Json,
        _ => Format::Yaml,
    }
}

fn parse_json(file: &Arc<Path>, text: &[u8]) -> Parsed {
    let mut sink = Sink::new(file.clone());
    let mut json = serde_json::Deserializer::from_slice(text);
    // `end` fails while there is more than white space to read.
    while json.end().is_err() {
        sink.start_document(sink.document() + 1);
        if let Err(error) = ObjectSeed::document(&mut sink).deserialize(&mut json) {
            return slow::parse_json(file, text, &error);
        }
    }
    sink.finish()
}

fn parse_yaml(file: &Arc<Path>, text: &[u8]) -> Parsed {
    let text = match str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            return Parsed {
                errors: vec![ParseError {
                    file: file.clone(),
                    document: 1,
                    object: None,
                    field: None,
                    line: None,
                    message: format!("not UTF-8: {error}"),
                }],
                ..Parsed::default()
            };
        }
    };
    let mut sink = Sink::new(file.clone());
    for document in yaml::documents(text) {
        sink.start_document(document.number);
        let mark = sink.mark();
        if let Err(error) = yaml::read(document.text, ObjectSeed::document(&mut sink)) {
            sink.reset(mark);
            slow::parse_yaml(&document, &error, &mut sink);
        }
    }
    sink.finish()
}

#[cfg(test)]
mod tests;
