//! What clients and servers say to each other.
//!
//! The first byte of a connection decides: `U` and the server reads to the end;
//! `D` and it writes until the client is gone; `G` and it is HTTP/1.1, so that
//! other load generators can be held against ours.

/// Asks the server to read whatever comes.
pub(super) const UP: u8 = b'U';

/// Asks the server to write until the connection is closed.
pub(super) const DOWN: u8 = b'D';

/// A request on a connection that stays.
pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: service\r\n\r\n";

/// A request after which the server closes.
pub(super) const LAST_REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n";

/// How a request ends.
pub(super) const REQUEST_END: &[u8] = b"\r\n\r\n";

/// Length of each response, head and body, in bytes.
pub(super) const RESPONSE_LENGTH: usize = 256;

/// A response whose body begins with `name`.
pub(super) fn response(name: &str) -> Vec<u8> {
    // Three digits of Content-Length: the head has the same length for each.
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length:03}\r\n\r\n");
    let body = RESPONSE_LENGTH - head(0).len();
    let mut response = head(body).into_bytes();
    response.extend(name.bytes().chain([b'\n']).take(body));
    response.resize(RESPONSE_LENGTH, b'.');
    response
}
