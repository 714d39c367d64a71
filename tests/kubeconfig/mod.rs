//! What tests tell a client of their API server.

use serde_json::{Value, json};

/// A kubeconfig of one user of one cluster.
pub(crate) fn text(cluster: &Value, user: &Value) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
    });
    config.to_string()
}
