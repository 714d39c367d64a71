//! The admin socket: HTTP on a unix socket, answers in JSON.
//!
//! Only the user that runs the proxy may open it (mode 0600). The file is
//! removed when the [`AdminSocket`] is dropped; one that a killed proxy left
//! behind is replaced, one that is answered on is not.
//!
//! [`AdminSocket::serve`] owns one task; it ends when its future is dropped.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use nix::sys::stat::{Mode, fchmod};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::api::{
    AllCounters, CHECK, CONFIGZ, COUNTERS, Checks, Detail, EXPLAIN, Explanation, FLOWS, FlowFilter,
    Flows, LOG_LEVEL, LogLevel, Question, SERVICES, STATUS, Services, Standing, Status,
    VirtualServer,
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

    /// What the node has and lacks.
    fn check(&self) -> impl Future<Output = Checks> + Send;

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

/// Path of the request of a new process to take over from this one, which becomes a
/// connection of another protocol ([`TAKEOVER_UPGRADE`]).
pub const TAKEOVER: &str = "/takeover";

/// Name of that protocol.
pub const TAKEOVER_UPGRADE: &str = "kube-tun-proxy-takeover";

/// The bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of an [`AdminSocket`] belongs to another process now.
#[derive(Clone, Debug, Default)]
pub struct FileLent(Arc<AtomicBool>);

impl FileLent {
    /// Whether the file stays when the socket is dropped.
    pub fn set(&self, lent: bool) {
        self.0.store(lent, Ordering::Relaxed);
    }
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

    /// Goes on with the listening socket of another process, whose file is at `path`
    /// and stays that process's until [`FileLent::set`] says otherwise. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError::System`] if there is no such file or no such socket.
    pub fn adopt(socket: OwnedFd, path: &Path) -> Result<Self, BindError> {
        let failed = |operation| {
            move |source| BindError::System {
                path: path.to_owned(),
                operation,
                source,
            }
        };
        let file = SocketFile::new(path).map_err(failed("read it"))?;
        let listener =
            UnixListener::from_std(socket.into()).map_err(failed("hand it to the runtime"))?;
        file.lent.set(true);
        Ok(Self { listener, file })
    }

    /// The listening socket for another process, and who says that it has it.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn lend(&self) -> io::Result<(OwnedFd, FileLent)> {
        let socket = self.listener.as_fd().try_clone_to_owned()?;
        Ok((socket, self.file.lent.clone()))
    }

    /// Answers until the future is dropped, which removes the file. New processes that
    /// want to take over go to `takeovers`; while nobody takes them there, they are
    /// refused.
    ///
    /// # Errors
    ///
    /// None that a listener gives while it runs; it waits and accepts again.
    pub async fn serve(
        self,
        view: Arc<impl View>,
        takeovers: mpsc::Sender<UnixStream>,
    ) -> io::Result<()> {
        let Self { listener, file } = self;
        let takeover = Router::new()
            .route(TAKEOVER, get(takeover))
            .with_state(takeovers);
        let served = axum::serve(listener, router(view).merge(takeover)).await;
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
    lent: FileLent,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
            lent: FileLent::default(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.lent.0.load(Ordering::Relaxed)
            && identity(&self.path).is_ok_and(|identity| identity == self.identity)
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
        .route(CHECK, get(check::<V>))
        .with_state(view)
}

/// Makes an answer about all services beside the runtime: a thread of it that works for
/// long may be the one that watches the sockets.
pub(super) async fn aside<R: IntoResponse>(make: impl FnOnce() -> R + Send + 'static) -> Response {
    match spawn_blocking(move || make().into_response()).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn services<V: View>(State(view): State<Arc<V>>, Query(detail): Query<Detail>) -> Response {
    aside(move || {
        let virtual_servers = view.services(detail);
        let fallback = view.standing();
        Json(Services {
            fallback,
            virtual_servers,
        })
    })
    .await
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

async fn check<V: View>(State(view): State<Arc<V>>) -> Json<Checks> {
    Json(view.check().await)
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

/// Turns the connection into one of another protocol, and passes it on.
fn takeover(
    State(takeovers): State<mpsc::Sender<UnixStream>>,
    mut request: Request,
) -> std::future::Ready<Response> {
    let wanted = request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|name| name != TAKEOVER_UPGRADE) {
        return std::future::ready(StatusCode::UPGRADE_REQUIRED.into_response());
    }
    let Ok(place) = takeovers.try_reserve_owned() else {
        return std::future::ready(StatusCode::SERVICE_UNAVAILABLE.into_response());
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        // Whoever speaks before being answered does not speak this protocol.
        if let Ok(parts) = downcast::<TokioIo<UnixStream>>(upgraded)
            && parts.read_buf.is_empty()
        {
            place.send(parts.io.into_inner());
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, TAKEOVER_UPGRADE),
    ];
    std::future::ready((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
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
