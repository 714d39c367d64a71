//! Asking a running proxy over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take. A proxy with 65,536 flows takes well under a
/// second; one that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a running proxy could not be asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// There is no socket, or nobody listens on it.
    #[error(
        "no proxy answers on {}: is `kube-tun-proxy run` running, with this --admin-socket?",
        path.display()
    )]
    NobodyThere {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket belongs to another user.
    #[error(
        "{} may not be opened: ask as the user that runs the proxy, or as root",
        path.display()
    )]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The proxy took the connection and said nothing.
    #[error("the proxy on {} did not answer within {} s", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// What came is not HTTP.
    #[error("the proxy's answer broke off")]
    Http(#[from] hyper::Error),
    /// The proxy answered with an error.
    #[error("the proxy answered {status}: {body}")]
    Status {
        /// HTTP status.
        status: StatusCode,
        /// What it said.
        body: String,
    },
    /// The document is not what this version of the program reads.
    #[error("the proxy's answer is not understood: it may be of another version")]
    Json(#[from] serde_json::Error),
}

/// Asks the proxy on `socket` for the document at `path`.
///
/// # Errors
///
/// [`AskError`], with what to do where that is known.
pub async fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AskError> {
    request(socket, get_request(path)).await
}

/// Has the proxy on `socket` replace the document at `path`. Returns its answer.
///
/// # Errors
///
/// As [`ask`].
pub async fn put<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    document: &impl Serialize,
) -> Result<T, AskError> {
    let mut put = get_request(path);
    *put.method_mut() = Method::PUT;
    let json = header::HeaderValue::from_static("application/json");
    put.headers_mut().insert(header::CONTENT_TYPE, json);
    *put.body_mut() = Full::from(serde_json::to_vec(document)?);
    request(socket, put).await
}

async fn request<T: DeserializeOwned>(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<T, AskError> {
    let exchange = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| connect_error(socket, source))?;
        let (parts, body) = send(stream, request).await?;
        let status = parts.status;
        if status == StatusCode::OK {
            Ok(serde_json::from_slice(&body)?)
        } else {
            let body = String::from_utf8_lossy(&body).trim_end().to_owned();
            Err(AskError::Status { status, body })
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| {
        let path = socket.to_owned();
        Err(AskError::Silent { path })
    })
}

fn connect_error(path: &Path, source: io::Error) -> AskError {
    let path = path.to_owned();
    let kind = source.kind();
    if kind == io::ErrorKind::NotFound || kind == io::ErrorKind::ConnectionRefused {
        AskError::NobodyThere { path, source }
    } else if kind == io::ErrorKind::PermissionDenied {
        AskError::Forbidden { path, source }
    } else {
        AskError::Connect { path, source }
    }
}

/// One HTTP/1.1 request for a document on a connection of its own.
#[cfg(test)]
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> Result<(hyper::http::response::Parts, Bytes), hyper::Error> {
    send(stream, get_request(path)).await
}

fn get_request(path: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = hyper::Uri::try_from(path).unwrap_or_default();
    request
        .headers_mut()
        .insert(header::HOST, header::HeaderValue::from_static("localhost"));
    request
}

/// One HTTP/1.1 request on a connection of its own.
async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(hyper::http::response::Parts, Bytes), hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        // The connection's future ends once nobody can send on it any more.
        drop(sender);
        Ok::<_, hyper::Error>((parts, body))
    };
    let (answer, connection) = tokio::join!(answer, connection);
    let answer = answer?;
    connection?;
    Ok(answer)
}
