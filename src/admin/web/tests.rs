use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::admin::client;
use crate::admin::socket::tests::Fixed;

/// Asks a server of its own, as `Host: localhost`.
async fn get(path: &str) -> (hyper::http::response::Parts, Bytes) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { serve(listener, Arc::new(Fixed), "node1").await });
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = client::exchange(stream, path).await.unwrap();
    server.abort();
    answer
}

fn header<'a>(parts: &'a hyper::http::response::Parts, name: &str) -> &'a str {
    parts.headers[name].to_str().unwrap()
}

#[tokio::test]
async fn kube_proxys_paths() {
    let (parts, body) = get("/proxyMode").await;
    assert_eq!((parts.status, &body[..]), (StatusCode::OK, &b"tun"[..]));
    let (parts, body) = get("/healthz").await;
    assert_eq!((parts.status, &body[..]), (StatusCode::OK, &b"ok"[..]));
    let (parts, body) = get("/configz").await;
    assert_eq!(header(&parts, "content-type"), "application/json");
    assert_eq!(
        &body[..],
        br#"{"kind":"TunProxyConfiguration","workers":2}"#
    );
    let (parts, body) = get("/metrics").await;
    assert_eq!(header(&parts, "content-type"), metrics::CONTENT_TYPE);
    assert!(body.ends_with(b"# EOF\n"));
    assert_eq!(get("/nothing").await.0.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_documents_of_the_admin_socket() {
    let (parts, body) = get("/api/v1/services?history=true").await;
    assert_eq!(parts.status, StatusCode::OK);
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(told["virtualServers"][0]["history"].is_object(), "{told}");
    let (_, body) = get("/api/v1/flows?limit=7&sort=bytes").await;
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(told["matching"], 7);
    for path in ["/api/v1/flows?client=x", "/api/v1/services?histroy=true"] {
        assert_eq!(get(path).await.0.status, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(get("/api/v1/status").await.0.status, StatusCode::OK);
}

#[tokio::test]
async fn the_page_runs_nothing_but_its_own_script() {
    let (parts, body) = get("/").await;
    let body = String::from_utf8(body.to_vec()).unwrap();
    let policy = header(&parts, "content-security-policy");
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next();
    let nonce = nonce.unwrap();
    assert_eq!(nonce.len(), 32);
    assert!(body.contains(&format!("<script nonce=\"{nonce}\">")));
    assert!(body.contains(&format!("<style nonce=\"{nonce}\">")));
    assert!(!body.contains("@NONCE@") && !body.contains("@CHECK@"));
    let at = format!("<meta name=\"check\" content=\"{CHECK}\">");
    assert!(body.contains(&at));
    let (parts, told) = get(&format!("/{CHECK}")).await;
    assert_eq!(parts.status, StatusCode::OK);
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let fields = told["checks"][0].as_object().unwrap().keys();
    assert!(fields.eq(["found", "mend", "name", "result"]), "{told}");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    assert!(
        !get("/").await.0.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains(nonce)
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(header(&parts, name), value);
    }
    // Nothing comes from elsewhere, and text is never taken for markup.
    for bad in [
        "http://",
        "https://",
        "innerHTML",
        "insertAdjacentHTML",
        "document.write",
    ] {
        let found = body.replace("http://www.w3.org/2000/svg", "").contains(bad);
        assert!(!found, "the page has {bad}");
    }
}

#[tokio::test]
async fn a_foreign_name_reads_nothing() {
    for (host, status) in [("127.0.0.1:1", 200), ("evil.example", 403)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { serve(listener, Arc::new(Fixed), "node1").await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let ask =
            format!("GET /api/v1/flows HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(answer.contains("kube-dns"), status == 200);
        server.abort();
    }
}
