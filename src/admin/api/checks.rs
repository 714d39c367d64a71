//! What `check` says, of the node on which the proxy runs.

use serde::{Deserialize, Serialize};

/// Path of [`Checks`].
pub const CHECK: &str = "/v1/check";

/// What the node has and lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checks {
    /// In a fixed order of names.
    pub checks: Vec<Check>,
    /// Seconds since this was looked at; an answer is kept for some.
    pub age_seconds: u64,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// `ok`, `warning` or `failure`.
    pub result: String,
    /// What was looked at: `tun-driver`.
    pub name: String,
    /// What was found.
    pub found: String,
    /// What mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}
