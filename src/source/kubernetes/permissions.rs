//! What the API server lets us see, asked without following anything.

use std::time::Duration;

use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::answer::whole;
use super::connection::{Connection, chain};
use super::resource::Resource;

/// Time for one answer, with connecting: a person waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The verbs that following a resource takes.
const VERBS: [&str; 2] = ["list", "watch"];

/// What may be done with one resource that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The resource's name: `services`.
    pub resource: &'static str,
    /// Its API group; empty for the core.
    pub group: &'static str,
    /// The verbs that are denied.
    pub denied: Vec<&'static str>,
    /// What is given up without it; `None` if nothing can be done without it.
    pub without: Option<&'static str>,
}

/// The version of the API server (`/version`, which everybody may read), with which it
/// is known to be reached.
///
/// # Errors
///
/// In words: who answered what.
pub async fn version(connection: &Connection) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        git_version: String,
    }
    let request = Request::get("/version").body(Vec::new());
    let (status, body) = exchange(connection, request).await?;
    if status != StatusCode::OK {
        return Err(format!("it answered {status} to /version"));
    }
    let version: Version = serde_json::from_slice(&body)
        .map_err(|error| format!("its answer to /version is not understood: {error}"))?;
    Ok(version.git_version)
}

/// Asks, by SelfSubjectAccessReviews, whether everything may be listed and watched that
/// is followed for the node of this name.
///
/// # Errors
///
/// In words, at the first review that gets no answer.
pub async fn permissions(
    connection: &Connection,
    node_name: &str,
) -> Result<Vec<Permission>, String> {
    let resources = [
        Resource::services(),
        Resource::endpoint_slices(),
        Resource::node(node_name),
        Resource::namespaces(),
        Resource::service_cidrs(),
        Resource::network_policies(),
    ];
    let mut found = Vec::new();
    for resource in resources {
        let mut denied = Vec::new();
        for verb in VERBS {
            if !allowed(connection, &resource, verb).await? {
                denied.push(verb);
            }
        }
        found.push(Permission {
            resource: resource.name,
            group: resource.group(),
            denied,
            without: resource.without,
        });
    }
    Ok(found)
}

async fn allowed(connection: &Connection, resource: &Resource, verb: &str) -> Result<bool, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Review {
        status: Status,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        allowed: bool,
    }
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "group": resource.group(),
            "resource": resource.name,
            "verb": verb,
        }},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes());
    let (status, body) = exchange(connection, request).await?;
    if !status.is_success() {
        return Err(format!("it answered {status} to a SelfSubjectAccessReview"));
    }
    let review: Review = serde_json::from_slice(&body).map_err(|error| {
        format!("its answer to a SelfSubjectAccessReview is not understood: {error}")
    })?;
    Ok(review.status.allowed)
}

async fn exchange(
    connection: &Connection,
    request: Result<Request<Vec<u8>>, hyper::http::Error>,
) -> Result<(StatusCode, Vec<u8>), String> {
    let request = request.map_err(|error| error.to_string())?;
    let answer = timeout(PATIENCE, connection.send(request))
        .await
        .map_err(|_| format!("it did not answer within {} s", PATIENCE.as_secs()))?
        .map_err(|error| chain(&error))?;
    let status = answer.status();
    let body = whole(answer.into_body(), PATIENCE)
        .await
        .map_err(|end| format!("its answer broke off ({end:?})"))?;
    Ok((status, body))
}
