//! Answers as an API server writes them, and queries as it reads them.

use std::collections::HashMap;
use std::io;

use futures_util::stream::poll_fn;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// What a watcher is sent.
pub(crate) type Sent = Result<Frame<Bytes>, io::Error>;

pub(crate) fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

pub(crate) fn bookmark(version: u64, ends_initial_events: bool) -> Value {
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if ends_initial_events {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"metadata": metadata, "spec": {}})
}

pub(crate) fn error_event(code: u16) -> String {
    line("ERROR", &failure(code, None))
}

pub(crate) fn failure(code: u16, retry_after: Option<u64>) -> Value {
    let mut status = json!({
        "kind": "Status",
        "status": "Failure",
        "message": format!("told to answer {code}"),
        "code": code,
    });
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
    }
    status
}

pub(crate) fn status(code: u16, retry_after: Option<u64>) -> Response<Body> {
    let text = failure(code, retry_after).to_string();
    let mut response = answer_of(code, Full::new(text.into()));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

pub(crate) fn answer_of(code: u16, body: Full<Bytes>) -> Response<Body> {
    response(code, body.map_err(|never| match never {}).boxed())
}

pub(crate) fn streamed(mut receiver: mpsc::Receiver<Sent>) -> Response<Body> {
    let body = StreamBody::new(poll_fn(move |cx| receiver.poll_recv(cx)));
    response(200, BodyExt::boxed(body))
}

pub(crate) fn response(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

pub(crate) fn name(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

pub(crate) fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), decode(value))
        })
        .collect()
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
