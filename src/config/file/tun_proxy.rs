//! TunProxyConfiguration: a field for each flag of `run`, made from the flags
//! themselves.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};

use super::schema::{Field, Meaning, Schema, Shape};

/// `apiVersion` of the kind.
pub(crate) const API_VERSION: &str = "kube-tun-proxy/v1alpha1";

/// The kind.
pub(crate) const KIND: &str = "TunProxyConfiguration";

/// Flags that are none of the file's: they say where it is, and how one start
/// differs from the next.
pub(crate) const NOT_IN_FILE: &[&str] = &["config", "takeover", "generation"];

/// What a document may hold, by the flags of `command`.
pub(super) fn schema(command: &Command) -> Schema {
    let field = |arg: &Arg| {
        let flag = arg.get_long()?;
        let is_flag = !NOT_IN_FILE.contains(&flag) && !matches!(flag, "help" | "version");
        is_flag.then(|| Field {
            path: field_of(flag),
            shape: shape(arg),
            meaning: Meaning::Flag(flag.to_owned()),
        })
    };
    Schema {
        kind: KIND,
        api_version: API_VERSION,
        fields: command.get_arguments().filter_map(field).collect(),
    }
}

/// `ipvs-scheduler` → `ipvsScheduler`.
pub(crate) fn field_of(flag: &str) -> String {
    let mut field = String::with_capacity(flag.len());
    let mut capital = false;
    for letter in flag.chars() {
        if letter == '-' {
            capital = true;
        } else if capital {
            field.extend(letter.to_uppercase());
            capital = false;
        } else {
            field.push(letter);
        }
    }
    field
}

fn shape(arg: &Arg) -> Shape {
    let value = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|of| value == *of);
    if matches!(arg.get_action(), ArgAction::SetTrue) || is(&[TypeId::of::<bool>()]) {
        Shape::Bool
    } else if is(&[TypeId::of::<u32>(), TypeId::of::<u64>()]) {
        // The flag's parser knows the bounds.
        Shape::Integer(i64::MIN, i64::MAX)
    } else if matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some() {
        Shape::ListOrText
    } else {
        Shape::TextOrNumber
    }
}
