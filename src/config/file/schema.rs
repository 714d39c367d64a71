//! Which fields a kind has, and what may stand in them.

use serde_json::{Map, Value};

use crate::config::duration;

/// A kind of document.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) fields: Vec<Field>,
}

/// A field, which holds no other fields.
#[derive(Debug)]
pub(super) struct Field {
    /// Names from the document down, joined by points.
    pub(super) path: String,
    pub(super) shape: Shape,
    pub(super) meaning: Meaning,
}

/// What a field may hold. Null is allowed everywhere: the field is not given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Text,
    /// Text, or a whole number that stands for it.
    TextOrNumber,
    Bool,
    /// A whole number within these bounds.
    Integer(i64, i64),
    /// Any number.
    Number,
    /// Text in Go's notation.
    Duration,
    /// The same, or a number of nanoseconds.
    DurationOrNumber,
    /// One of these texts, or an empty one.
    Choice(&'static [&'static str]),
    /// Texts.
    List,
    /// Texts, or one of them.
    ListOrText,
    /// Names of switches, with whether they are on.
    Switches,
    /// Objects of file patterns with a verbosity each.
    Patterns,
}

/// What a field is for.
#[derive(Debug)]
pub(super) enum Meaning {
    /// It says what this flag says.
    Flag(String),
    /// It says what this flag says; empty and zero are not given.
    Default {
        /// The flag.
        flag: String,
    },
    /// How much kube-proxy logs.
    Verbosity,
    /// It concerns nothing that is here.
    Ignored,
}

/// A field that is not as it should be.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) field: String,
    pub(super) reason: String,
}

impl Schema {
    /// The fields of a document with their values, in its order.
    pub(super) fn walk<'a>(
        &'a self,
        fields: &'a Map<String, Value>,
    ) -> Result<Vec<(&'a Field, &'a Value)>, Unfit> {
        let mut found = Vec::new();
        self.descend("", fields, &mut found)?;
        Ok(found)
    }

    fn descend<'a>(
        &'a self,
        prefix: &str,
        fields: &'a Map<String, Value>,
        found: &mut Vec<(&'a Field, &'a Value)>,
    ) -> Result<(), Unfit> {
        for (key, value) in fields {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            if let Some(field) = self.fields.iter().find(|field| field.path == path) {
                found.push((field, value));
                continue;
            }
            let below = format!("{path}.");
            if !self
                .fields
                .iter()
                .any(|field| field.path.starts_with(&below))
            {
                let reason = self.unknown(&path);
                return Err(Unfit {
                    field: path,
                    reason,
                });
            }
            match value {
                Value::Null => {}
                Value::Object(fields) => self.descend(&path, fields, found)?,
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    let reason = format!("is {}, must be an object", name(value));
                    return Err(Unfit {
                        field: path,
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    /// What is said of a field that is not known: another case is the commonest slip.
    fn unknown(&self, path: &str) -> String {
        let mut fields = self.fields.iter();
        match fields.find(|field| field.path.eq_ignore_ascii_case(path)) {
            Some(field) => format!("is unknown; there is {}", field.path),
            None => format!("is unknown to {}", self.kind),
        }
    }
}

impl Shape {
    /// The value as words for a flag; none for null.
    ///
    /// # Errors
    /// A sentence without subject if it may not stand here.
    pub(super) fn words(self, value: &Value) -> Result<Vec<String>, String> {
        let unfit = |must: &str| Err(format!("is {}, must be {must}", name(value)));
        let one = |text: &str| Ok(vec![text.to_owned()]);
        match (self, value) {
            (_, Value::Null) => Ok(Vec::new()),
            (Self::Duration | Self::DurationOrNumber, Value::String(text)) => {
                match duration::parse(text) {
                    Ok(_) => one(text),
                    Err(error) => Err(format!("'{text}' {error}")),
                }
            }
            (Self::Choice(names), Value::String(text)) => {
                if text.is_empty() || names.contains(&text.as_str()) {
                    one(text)
                } else {
                    Err(format!("'{text}' is none of {}", names.join(", ")))
                }
            }
            (Self::Text | Self::TextOrNumber | Self::ListOrText, Value::String(text)) => one(text),
            (Self::TextOrNumber | Self::DurationOrNumber, Value::Number(number))
                if number.is_i64() || number.is_u64() =>
            {
                one(&number.to_string())
            }
            (Self::Bool, Value::Bool(on)) => one(&on.to_string()),
            (Self::Number, Value::Number(number)) => one(&number.to_string()),
            (Self::Integer(least, most), Value::Number(number)) => match number.as_i64() {
                Some(whole) if (least..=most).contains(&whole) => one(&number.to_string()),
                Some(_) => Err(format!("'{number}' is not between {least} and {most}")),
                None => Err(format!("'{number}' is no whole number that fits")),
            },
            (Self::List | Self::ListOrText, Value::Array(items)) => {
                let text = |item: &Value| {
                    let unfit = || format!("has {}, must have texts only", name(item));
                    item.as_str().map(str::to_owned).ok_or_else(unfit)
                };
                items.iter().map(text).collect()
            }
            (Self::Switches, Value::Object(switches)) => {
                match switches.iter().find(|(_, on)| !on.is_boolean()) {
                    Some((switch, on)) => Err(format!(
                        "has {} under {switch}, must have true or false",
                        name(on)
                    )),
                    None => Ok(Vec::new()),
                }
            }
            (Self::Patterns, Value::Array(items)) => {
                items.iter().try_for_each(pattern)?;
                Ok(Vec::new())
            }
            (Self::Text | Self::Choice(_), _) => unfit("text"),
            (Self::TextOrNumber, _) => unfit("text or a whole number"),
            (Self::Bool, _) => unfit("true or false"),
            (Self::Integer(..) | Self::Number, _) => unfit("a number"),
            (Self::Duration, _) => unfit("text such as 30s"),
            (Self::DurationOrNumber, _) => unfit("text such as 30s or a number"),
            (Self::List | Self::Patterns, _) => unfit("a list"),
            (Self::ListOrText, _) => unfit("a list or text"),
            (Self::Switches, _) => unfit("an object"),
        }
    }
}

/// An item of `logging.vmodule`.
fn pattern(item: &Value) -> Result<(), String> {
    let Value::Object(fields) = item else {
        return Err(format!("has {}, must have objects only", name(item)));
    };
    for (field, value) in fields {
        match (field.as_str(), value) {
            ("filePattern", Value::String(_)) | ("verbosity", Value::Number(_)) => {}
            ("filePattern" | "verbosity", _) => {
                return Err(format!("has {} under {field}", name(value)));
            }
            _ => return Err(format!("has an item with the unknown field {field}")),
        }
    }
    Ok(())
}

/// Whether a value says something, as Go sees it, where its zero value is a
/// default.
pub(super) fn is_set(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            let zero = match field.shape {
                Shape::Duration | Shape::DurationOrNumber => {
                    duration::parse(text).is_ok_and(|duration| duration.is_zero())
                }
                Shape::TextOrNumber => text == "0",
                // Means no address in particular.
                Shape::Text => field.path == "bindAddress" && matches!(&**text, "0.0.0.0" | "::"),
                Shape::Bool
                | Shape::Integer(..)
                | Shape::Number
                | Shape::Choice(_)
                | Shape::List
                | Shape::ListOrText
                | Shape::Switches
                | Shape::Patterns => false,
            };
            !text.is_empty() && !zero
        }
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// What a value is, for a sentence.
pub(super) fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
