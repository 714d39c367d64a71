//! What the API server says, taken apart: list pages, watch lines, objects'
//! heads, statuses.
//!
//! An object stays the text that it came as until somebody wants its fields, so
//! that one that does not parse spoils nothing but itself.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// On the bookmark that says that a stream has told everything there was
/// (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What a list answers.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMeta,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMeta {
    /// The version of the whole list.
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What a line of a watch tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The object is now so: ADDED and MODIFIED.
    Applied,
    /// The object is gone, or out of what was selected.
    Deleted,
    /// Nothing happened up to this version.
    Bookmark,
    /// The watch has failed.
    Error,
}

impl Line<'_> {
    /// `None` for a type that the API does not have.
    pub(super) fn told(&self) -> Option<Told> {
        match &*self.kind {
            "ADDED" | "MODIFIED" => Some(Told::Applied),
            "DELETED" => Some(Told::Deleted),
            "BOOKMARK" => Some(Told::Bookmark),
            "ERROR" => Some(Told::Error),
            _ => None,
        }
    }
}

/// What of an object is needed to name it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeadMeta {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl HeadMeta {
    /// With this bookmark everything there was has been told.
    pub(super) fn ends_initial_events(&self) -> bool {
        let mark = self.annotations.as_ref();
        mark.and_then(|all| all.get(INITIAL_EVENTS_END))
            .is_some_and(|value| value == "true")
    }
}

/// Why a request, or a watch, failed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Details {
    pub(super) retry_after_seconds: Option<u64>,
}

/// The object of a text, or what of it does not parse, with its field.
pub(super) fn object<T: DeserializeOwned>(text: &RawValue) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if path == "." {
            error.to_string()
        } else {
            format!("{path}: {error}")
        }
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_page_keeps_its_items_as_text() {
        let page: Page<'_> = serde_json::from_str(
            r#"{"kind":"ServiceList","metadata":{"resourceVersion":"7","continue":"more"},
                "items":[{"metadata":{"name":"a"}},{"spec":[]}]}"#,
        )
        .unwrap();
        assert_eq!(page.metadata.resource_version, "7");
        assert_eq!(page.metadata.next.as_deref(), Some("more"));
        let items: Vec<_> = page.items.unwrap().iter().map(|i| i.get()).collect();
        assert_eq!(items, [r#"{"metadata":{"name":"a"}}"#, r#"{"spec":[]}"#]);

        let none: Page<'_> = serde_json::from_str(r#"{"metadata":{},"items":null}"#).unwrap();
        assert!(none.items.is_none());
        assert_eq!(none.metadata.next, None);
    }

    #[test]
    fn only_the_marked_bookmark_ends_the_beginning() {
        let head = |text| serde_json::from_str::<Head>(text).unwrap().metadata;
        assert!(
            head(r#"{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}"#)
                .ends_initial_events()
        );
        for text in [
            r#"{"metadata":{"resourceVersion":"3"}}"#,
            r#"{"metadata":{"annotations":{"k8s.io/initial-events-end":"false"}}}"#,
            r#"{"metadata":{"annotations":null}}"#,
            "{}",
        ] {
            assert!(!head(text).ends_initial_events(), "{text}");
        }
    }

    #[test]
    fn list_items_need_not_say_what_they_are_and_may_have_nulls() {
        let slice: EndpointSlice = object(&raw(
            r#"{"metadata":{"name":"s"},"addressType":"IPv4","endpoints":null,"ports":null}"#,
        ))
        .unwrap();
        assert_eq!(slice.endpoints, None);
    }

    #[test]
    fn what_does_not_parse_is_named_by_its_field() {
        let error = object::<Service>(&raw(r#"{"spec":{"ports":[{"port":"http"}]}}"#)).unwrap_err();
        assert!(
            error.starts_with("spec.ports[0].port: invalid type"),
            "{error}"
        );
    }
}
