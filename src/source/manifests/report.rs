//! What is said of manifests, each thing once.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::service::object::{ObjectKey, Origin};

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The path cannot be read; what was read before stays in force.
    PathUnreadable {
        /// The path.
        path: Arc<Path>,
        /// Why.
        error: String,
    },
    /// A file cannot be read; its last good content stays in force.
    FileUnreadable {
        /// The file.
        file: Arc<Path>,
        /// Why.
        error: String,
    },
    /// A file, or an object in it, does not parse.
    Parse {
        /// What and where.
        error: ParseError,
        /// Its last good content stays in force; if false it never had one and
        /// what does parse of it is used.
        last_good: bool,
    },
    /// An object stands twice; the first file by name wins.
    Duplicate {
        /// The object.
        object: ObjectKey,
        /// The one in force.
        used: Origin,
        /// The one that is not.
        ignored: Origin,
    },
    /// A kind of object that is not ours.
    IgnoredKind {
        /// apiVersion and kind.
        kind: String,
        /// A file with such an object.
        file: Arc<Path>,
    },
}

impl Report {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::PathUnreadable { path, error } => tracing::warn!(
                path = %path.display(), %error,
                "manifests cannot be read; what was read before stays in force"
            ),
            Self::FileUnreadable { file, error } => tracing::warn!(
                file = %file.display(), %error,
                "a manifest cannot be read; its last good content stays in force"
            ),
            Self::Parse { error, last_good } => {
                let file = error.file.display();
                let document = error.document;
                let object = error.object.as_deref();
                let field = error.field.as_deref();
                let line = error.line;
                let error = &error.message;
                if *last_good {
                    tracing::warn!(
                        %file, document, object, field, line, %error,
                        "a manifest does not parse; its last good content stays in force"
                    );
                } else {
                    tracing::warn!(
                        %file, document, object, field, line, %error,
                        "a manifest does not parse; what does parse of it is used"
                    );
                }
            }
            Self::Duplicate {
                object,
                used,
                ignored,
            } => tracing::warn!(
                %object, %used, %ignored,
                "an object stands twice; the first file by name wins"
            ),
            Self::IgnoredKind { kind, file } => {
                tracing::debug!(%kind, file = %file.display(), "objects of this kind are ignored");
            }
        }
    }
}

/// Why a document, or an object in it, was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The file.
    pub file: Arc<Path>,
    /// Number of the document in the file, from 1.
    pub document: u32,
    /// Kind, namespace and name of the object, as far as they are known.
    pub object: Option<String>,
    /// Path of the field in the document, as `items[3].spec.ports[0].port`.
    pub field: Option<String>,
    /// Line in the file, from 1.
    pub line: Option<u64>,
    /// What is wrong.
    pub message: String,
}

impl std::error::Error for ParseError {}

/// `web.yaml, document 2, line 14: Service default/web: spec.ports[0].port: …`.
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file.display(), self.document)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}
