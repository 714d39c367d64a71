//! The admin socket: HTTP on a unix socket, answers in JSON.
//!
//! Only the user that runs the proxy may open it (mode 0600). The file is
//! removed when the [`AdminSocket`] is dropped; one that a killed proxy left
//! behind is replaced, one that is answered on is not.
//!
//! [`AdminSocket::serve`] owns one task; it ends when its future is dropped.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use nix::sys::stat::{Mode, fchmod};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::UnixListener;

use super::api::{
    AllCounters, CONFIGZ, COUNTERS, Detail, EXPLAIN, Explanation, FLOWS, FlowFilter, Flows,
    LOG_LEVEL, LogLevel, Question, SERVICES, STATUS, Services, Standing, Status, VirtualServer,
};
use super::metrics::Measurements;

/// Commands waiting to be answered; more than a person and a script ever are.
/// The kernel lets those beyond it wait in `connect`.
const BACKLOG: i32 = 16;

/// What can be told of the proxy, and the one thing that can be changed.
pub trait View: Send + Sync + 'static {
    /// The virtual servers, in the order to print.
    fn services(&self, detail: Detail) -> Vec<VirtualServer>;

    /// Whether the proxy takes part, if it does not always.
    fn standing(&self) -> Option<Standing> {
        None
    }

    /// The flows that are asked for.
    fn flows(&self, filter: &FlowFilter) -> impl Future<Output = Flows> + Send;

    /// What was counted.
    fn counters(&self) -> AllCounters;

    /// What becomes of a new flow, and why.
    fn explain(&self, question: &Question) -> Explanation;

    /// The proxy as a whole.
    fn status(&self, detail: Detail) -> Status;

    /// All that is measured.
    fn measurements(&self) -> Measurements;

    /// The configuration in effect.
    fn configz(&self) -> Value;

    /// The directives that decide what is logged.
    fn log_level(&self) -> String;

    /// Logs what these directives say from now on.
    ///
    /// # Errors
    ///
    /// A sentence about what is wrong with them.
    fn set_log_level(&self, directives: &str) -> Result<(), String>;
}

/// Why the socket could not be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another proxy answers there.
    #[error("--admin-socket {}: another proxy answers on it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("--admin-socket {}: there is a file that is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("--admin-socket {}: cannot {operation}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// The bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl AdminSocket {
    /// Makes the socket, its directory if need be, and listens. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError`] if the path is taken or cannot be made.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |operation| {
            move |source| BindError::System {
                path: path.to_owned(),
                operation,
                source,
            }
        };
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("make its directory"))?;
        }
        remove_stale(path)?;
        let socket = listen(path).map_err(failed("listen"))?;
        let file = SocketFile::new(path).map_err(failed("read it"))?;
        let listener = UnixListener::from_std(socket).map_err(failed("hand it to the runtime"))?;
        Ok(Self { listener, file })
    }

    /// Answers until the future is dropped, which removes the file.
    ///
    /// # Errors
    ///
    /// None that a listener gives while it runs; it waits and accepts again.
    pub async fn serve(self, view: Arc<impl View>) -> io::Result<()> {
        let Self { listener, file } = self;
        let served = axum::serve(listener, router(view)).await;
        drop(file);
        served
    }
}

/// The socket's file, as long as it is ours: after somebody else has put another
/// in its place, there is nothing to remove.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "admin socket not removed");
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket that nobody answers on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let at = || path.to_owned();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            let operation = "look at it";
            return Err(BindError::System {
                path: at(),
                operation,
                source,
            });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NoSocket { path: at() });
        }
        Ok(_) => {}
    }
    match net::UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: at() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| BindError::System {
                path: at(),
                operation: "remove the one a former proxy left",
                source,
            }),
        Err(source) => Err(BindError::System {
            path: at(),
            operation: "find out whether another proxy answers on it",
            source,
        }),
    }
}

/// A listening socket whose file has mode 0600 from the start: `bind` gives the
/// file the mode of the socket's own inode (`unix_bind_bsd`, net/unix/af_unix.c).
fn listen(path: &Path) -> io::Result<net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn router<V: View>(view: Arc<V>) -> Router {
    let private = Router::new()
        .route(CONFIGZ, get(configz::<V>))
        .route(LOG_LEVEL, get(log_level::<V>).put(set_log_level::<V>))
        .with_state(Arc::clone(&view));
    documents(view).merge(private)
}

/// The documents that anyone who reaches a socket of ours may read.
pub(super) fn documents<V: View>(view: Arc<V>) -> Router {
    Router::new()
        .route(SERVICES, get(services::<V>))
        .route(FLOWS, get(flows::<V>))
        .route(COUNTERS, get(counters::<V>))
        .route(EXPLAIN, get(explain::<V>))
        .route(STATUS, get(status::<V>))
        .with_state(view)
}

fn services<V: View>(
    State(view): State<Arc<V>>,
    Query(detail): Query<Detail>,
) -> std::future::Ready<Json<Services>> {
    let virtual_servers = view.services(detail);
    let fallback = view.standing();
    std::future::ready(Json(Services {
        fallback,
        virtual_servers,
    }))
}

fn counters<V: View>(State(view): State<Arc<V>>) -> std::future::Ready<Json<AllCounters>> {
    std::future::ready(Json(view.counters()))
}

async fn flows<V: View>(
    State(view): State<Arc<V>>,
    Query(filter): Query<FlowFilter>,
) -> Json<Flows> {
    Json(view.flows(&filter).await)
}

fn status<V: View>(
    State(view): State<Arc<V>>,
    Query(detail): Query<Detail>,
) -> std::future::Ready<Json<Status>> {
    std::future::ready(Json(view.status(detail)))
}

fn explain<V: View>(
    State(view): State<Arc<V>>,
    Query(question): Query<Question>,
) -> std::future::Ready<Json<Explanation>> {
    std::future::ready(Json(view.explain(&question)))
}

fn configz<V: View>(State(view): State<Arc<V>>) -> std::future::Ready<Json<Value>> {
    std::future::ready(Json(view.configz()))
}

fn log_level<V: View>(State(view): State<Arc<V>>) -> std::future::Ready<Json<LogLevel>> {
    let directives = view.log_level();
    std::future::ready(Json(LogLevel { directives }))
}

fn set_log_level<V: View>(
    State(view): State<Arc<V>>,
    Json(level): Json<LogLevel>,
) -> std::future::Ready<Result<Json<LogLevel>, (StatusCode, String)>> {
    let set = view.set_log_level(&level.directives);
    let answer = set.map_err(|error| (StatusCode::BAD_REQUEST, error));
    std::future::ready(answer.map(|()| {
        let directives = view.log_level();
        Json(LogLevel { directives })
    }))
}

#[cfg(test)]
pub(super) mod tests;
