//! Label and field selectors, as far as the proxy uses them.

use std::collections::HashMap;

use serde_json::Value;

/// Which objects a request is for.
#[derive(Default)]
pub(super) struct Selection {
    /// Labels that an object must not have.
    without: Vec<String>,
    /// Fields and what they must be.
    equal: Vec<(String, String)>,
    /// Fields and what they must not be.
    unequal: Vec<(String, String)>,
}

impl Selection {
    /// Reads the parameters of a request; panics where they hold a form that is not
    /// known, which nothing here may ask for unseen.
    pub(super) fn of(query: &HashMap<String, String>) -> Self {
        let terms = |name: &str| {
            let text = query.get(name).map_or("", String::as_str);
            let terms = text.split(',').filter(|term| !term.is_empty());
            terms.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut new = Self::default();
        for term in terms("labelSelector") {
            let Some(label) = term.strip_prefix('!') else {
                panic!("unknown label selector {term}");
            };
            new.without.push(label.to_owned());
        }
        for term in terms("fieldSelector") {
            let pair = |(field, value): (&str, &str)| (field.to_owned(), value.to_owned());
            if let Some(split) = term.split_once("!=") {
                new.unequal.push(pair(split));
            } else {
                new.equal.push(pair(term.split_once('=').unwrap()));
            }
        }
        new
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        let field = |path: &str| {
            let value = path.split('.').fold(object, |object, part| &object[part]);
            value.as_str().unwrap_or_default().to_owned()
        };
        let labels = &object["metadata"]["labels"];
        self.without.iter().all(|label| labels[label].is_null())
            && self.equal.iter().all(|(path, value)| field(path) == *value)
            && self
                .unequal
                .iter()
                .all(|(path, value)| field(path) != *value)
    }
}
