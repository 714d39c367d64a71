//! The metrics address: `/metrics`, `/proxyMode` and `/configz` as kube-proxy has them,
//! the JSON documents of the admin socket that change nothing, under `/api`, and at `/`
//! a page that shows them.
//!
//! [`serve`] owns one task; it ends when its future is dropped.

use std::collections::hash_map::RandomState;
use std::future::{Ready, ready};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use super::metrics;
use super::socket::{View, documents};
use guard::Guard;

mod guard;

/// What `/proxyMode` says, where kube-proxy says `ipvs` or `nftables`.
const PROXY_MODE: &str = "tun";

/// Where the page finds what `check` says, below its own address.
const CHECK: &str = "api/v1/check";

/// The page. The marks `@NONCE@` and `@CHECK@` are replaced in each answer.
const PAGE: &str = include_str!("web/page.html");

/// Serves until the future is dropped. `name` is this node's, by which browsers may ask
/// beside addresses and `localhost`.
///
/// # Errors
///
/// None that a listener gives while it runs; it waits and accepts again.
pub async fn serve(listener: TcpListener, view: Arc<impl View>, name: &str) -> io::Result<()> {
    let local = listener.local_addr()?;
    let guard = Guard::new(name, local.ip().is_loopback());
    axum::serve(listener, router(view, guard)).await
}

fn router<V: View>(view: Arc<V>, guard: Guard) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics::<V>))
        .route("/proxyMode", get(|| ready(PROXY_MODE)))
        // Whether the server answers, as kube-proxy's says; /healthz of health is another.
        .route("/healthz", get(|| ready("ok")))
        .route("/configz", get(configz::<V>))
        .with_state(Arc::clone(&view))
        .nest("/api", documents(view))
        .layer(from_fn_with_state(Arc::new(guard), protect))
}

/// Refuses what a foreign page could make a browser ask, and says what browsers may do
/// with the answers.
async fn protect(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if let Err(refusal) = guard.check(request.uri(), request.headers()) {
        return (StatusCode::FORBIDDEN, refusal).into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// The page may run its own script and ask this address, and nothing else: a name that
/// got past its escaping would still not run.
fn page() -> Ready<Response> {
    let nonce = nonce();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    let page = PAGE.replace("@NONCE@", &nonce).replace("@CHECK@", CHECK);
    ready((headers, page).into_response())
}

fn metrics<V: View>(State(view): State<Arc<V>>) -> Ready<Response> {
    ready(match metrics::text(view.measurements()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    })
}

fn configz<V: View>(State(view): State<Arc<V>>) -> Ready<Response> {
    ready(Json(view.configz()).into_response())
}

/// 128 bits that differ each time; `RandomState` has its keys from the system.
fn nonce() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests;
