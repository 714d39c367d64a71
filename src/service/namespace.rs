//! Namespaces, reduced to what a proxy needs: what they say for the Services in
//! them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;

use super::object::{NamespacedName, ObjectError, Reason};

/// Whether finished flows of a Service, or of all Services of a Namespace, have
/// their event in the log: `true` or `false`. A Service's wins over its
/// Namespace's, and that over the setting.
pub const ANNOTATION_ACCESS_LOG: &str = "kube-tun-proxy.io/access-log";

/// A Namespace in compact form.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Its name; the namespace is empty.
    pub name: NamespacedName,
    /// What [`ANNOTATION_ACCESS_LOG`] says.
    pub access_log: Option<bool>,
    /// What was left out.
    pub errors: Vec<ObjectError>,
}

impl Namespace {
    /// Takes what is needed from the API's object. `None` if it has no name.
    pub fn from_api(namespace: &api::Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        let name = meta.name.as_deref().filter(|n| !n.is_empty())?;
        let (access_log, error) = match access_log(meta.annotations.as_ref()) {
            Ok(access_log) => (access_log, None),
            Err(error) => (None, Some(error)),
        };
        Some(Self {
            name: NamespacedName::new("", name),
            access_log,
            errors: error.into_iter().collect(),
        })
    }
}

/// What [`ANNOTATION_ACCESS_LOG`] says.
pub(super) fn access_log(
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Option<bool>, ObjectError> {
    let Some(text) = annotations.and_then(|all| all.get(ANNOTATION_ACCESS_LOG)) else {
        return Ok(None);
    };
    match text.trim() {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        other => {
            let field = format!("metadata.annotations[{ANNOTATION_ACCESS_LOG}]");
            let value = other.to_owned();
            let expected = "true, false; it is taken as absent";
            Err(ObjectError::new(field, Reason::Unknown { value, expected }))
        }
    }
}
