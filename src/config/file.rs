//! The file of `--config`: YAML documents of two kinds, each at most once.
//!
//! `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`) is read as
//! kube-proxy reads it; `TunProxyConfiguration` (`kube-tun-proxy/v1alpha1`) has a
//! field for each flag of `run`, under the flag's name in camel case, and wins
//! over it. A value becomes the flag's words and is read by the flag's own
//! parser, so that a file can say no more and no less than a command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Command;
use serde_json::{Map, Value};

use super::{ConfigError, FileError};
use schema::{Field, Meaning, Schema, Unfit};

mod kube_proxy;
mod schema;
mod tun_proxy;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use tun_proxy::NOT_IN_FILE;
pub(super) use tun_proxy::{API_VERSION, KIND, field_of};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct File {
    /// By the name of the flag that says the same.
    pub(super) settings: BTreeMap<String, Setting>,
    /// Fields of kube-proxy that are set to something, and mean nothing here.
    pub(super) ignored: Vec<String>,
}

/// One setting of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Number of the document, from 1; those without content do not count.
    pub(super) document: usize,
    /// Path of the field.
    pub(super) field: String,
    /// What the flag would be given, once for each.
    pub(super) values: Vec<String>,
}

impl File {
    /// Reads a file for the flags of `command`.
    pub(super) fn read(path: &Path, command: &Command) -> Result<Self, ConfigError> {
        let failed = |error| ConfigError::file(path, error);
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Source {
            flag: "--config",
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, command).map_err(failed)
    }

    /// Reads the text of a file.
    pub(super) fn parse(text: &str, command: &Command) -> Result<Self, FileError> {
        let options = serde_saphyr::options! { with_snippet: false };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
            .map_err(|error| FileError::Syntax(error.to_string()))?;
        let schemas = [kube_proxy::schema(), tun_proxy::schema(command)];
        let mut read: [Option<Document>; 2] = [None, None];
        for (number, document) in (1..).zip(documents) {
            let (which, fields) = identify(number, document, &schemas)?;
            let before =
                read[which].replace(Document::read(number, &schemas[which], &fields, command)?);
            if before.is_some() {
                return Err(FileError::document(
                    number,
                    format!("there is a {} before it", schemas[which].kind),
                ));
            }
        }
        let [kube_proxy, tun_proxy] = read.map(Option::unwrap_or_default);
        let mut file = Self {
            settings: kube_proxy.settings,
            ignored: kube_proxy.ignored,
        };
        file.settings
            .retain(|flag, _| !tun_proxy.settings.keys().any(|won| replaces(won, flag)));
        file.settings.extend(tun_proxy.settings);
        Ok(file)
    }
}

/// Whether what is said under one flag makes what a weaker place says under
/// `weaker` void: the same flag does, and objects come from one place.
pub(super) fn replaces(flag: &str, weaker: &str) -> bool {
    let from_cluster = |flag| matches!(flag, "kubeconfig" | "master");
    flag == weaker
        || (flag == "manifests" && from_cluster(weaker))
        || (from_cluster(flag) && weaker == "manifests")
}

/// Which kind a document is of, and its fields without those that say so.
fn identify(
    number: usize,
    document: Value,
    schemas: &[Schema],
) -> Result<(usize, Map<String, Value>), FileError> {
    let failed = |message: String| FileError::document(number, message);
    let Value::Object(mut fields) = document else {
        return Err(failed(format!("is {}, no object", schema::name(&document))));
    };
    let mut take = |field: &str| match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) | None => Err(failed(format!("has no {field}"))),
    };
    let (api_version, kind) = (take("apiVersion")?, take("kind")?);
    let of = |schema: &Schema| schema.kind == kind && schema.api_version == api_version;
    match schemas.iter().position(of) {
        Some(which) => Ok((which, fields)),
        None if kind == "ConfigMap" => Err(failed(
            "is the ConfigMap itself; the file is what stands in it under data.config.conf"
                .to_owned(),
        )),
        None => {
            let known: Vec<_> = schemas
                .iter()
                .map(|schema| format!("{} ({})", schema.kind, schema.api_version))
                .collect();
            let known = known.join(" and ");
            Err(failed(format!(
                "is of the kind {kind} ({api_version}); known are {known}"
            )))
        }
    }
}

#[derive(Debug, Default)]
struct Document {
    settings: BTreeMap<String, Setting>,
    ignored: Vec<String>,
}

impl Document {
    fn read(
        number: usize,
        schema: &Schema,
        fields: &Map<String, Value>,
        command: &Command,
    ) -> Result<Self, FileError> {
        let failed = |Unfit { field, reason }| FileError::field(number, field, reason);
        let mut document = Self::default();
        for (field, value) in schema.walk(fields).map_err(failed)? {
            document
                .take(number, field, value, command)
                .map_err(|reason| FileError::field(number, field.path.clone(), reason))?;
        }
        Ok(document)
    }

    fn take(
        &mut self,
        number: usize,
        field: &Field,
        value: &Value,
        command: &Command,
    ) -> Result<(), String> {
        let values = field.shape.words(value)?;
        let (flag, values) = match &field.meaning {
            _ if value.is_null() => return Ok(()),
            Meaning::Ignored => {
                if schema::is_set(field, value) {
                    self.ignored.push(field.path.clone());
                }
                return Ok(());
            }
            Meaning::Default { .. } | Meaning::Verbosity if !schema::is_set(field, value) => {
                return Ok(());
            }
            Meaning::Flag(flag) | Meaning::Default { flag } => (flag.clone(), values),
            Meaning::Verbosity => match kube_proxy::log_level(value) {
                Some(level) => ("log-level".to_owned(), vec![level.to_owned()]),
                None => return Ok(()),
            },
        };
        if command
            .get_arguments()
            .all(|arg| arg.get_long() != Some(&flag))
        {
            self.ignored.push(field.path.clone());
            return Ok(());
        }
        for value in &values {
            check(command, &flag, value)?;
        }
        let field = field.path.clone();
        self.settings.insert(
            flag,
            Setting {
                document: number,
                field,
                values,
            },
        );
        Ok(())
    }
}

/// Has the flag's own parser look at a value.
fn check(command: &Command, flag: &str, value: &str) -> Result<(), String> {
    let words = ["run".to_owned(), format!("--{flag}={value}")];
    match command.clone().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("'{value}' {}", reason(&error))),
    }
}

/// What clap says of a value, without the flag.
fn reason(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue)
        && !valid.is_empty()
    {
        return format!("is none of {}", valid.join(", "));
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}
