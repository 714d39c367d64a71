//! Health check node ports: whether this node has endpoints of a Service, told to load
//! balancers.
//!
//! As kube-proxy's (kubernetes `pkg/proxy/healthcheck/service_health.go`): 200 while the
//! Service has a ready endpoint on this node and the proxy is healthy, else 503; the
//! header `X-Load-Balancing-Endpoint-Weight` is the number of such endpoints.
//!
//! [`HealthChecks`] owns a task for each port and address. A port that is taken is
//! reported once and tried again. The tasks close their ports when it is dropped, and end
//! 5 s later. A process that takes over goes on with the sockets of the former
//! one, so that no check is refused meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Ready, pending, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::health::Health;
use crate::service::HealthCheck;
use crate::service::object::NamespacedName;

/// kube-proxy's header for weighted balancing.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// First and longest wait before a port that is taken is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Checks that wait to be accepted.
const BACKLOG: i32 = 128;

/// How long connections to a port that has closed are still answered: much longer than
/// a load balancer takes to ask.
const ANSWERING: Duration = Duration::from_secs(5);

/// The health check node ports that are open.
#[derive(Debug)]
pub struct HealthChecks {
    health: Health,
    addresses: BTreeSet<IpAddr>,
    services: BTreeMap<NamespacedName, Served>,
    /// Sockets of another process, until they are taken up.
    inherited: Inherited,
}

type Inherited = BTreeMap<SocketAddr, OwnedFd>;

/// One Service.
#[derive(Debug)]
struct Served {
    port: u16,
    answer: Answer,
    tasks: BTreeMap<IpAddr, Task>,
}

/// Ends when this is dropped: the port closes, and what was accepted is answered.
#[derive(Debug)]
struct Task {
    _stays: watch::Sender<()>,
    /// Where it listens, once it does.
    socket: Arc<OnceLock<OwnedFd>>,
}

/// What is told of one Service; clones share it.
#[derive(Clone, Debug)]
struct Answer {
    service: NamespacedName,
    local_endpoints: Arc<AtomicUsize>,
    health: Health,
}

impl HealthChecks {
    /// None yet; they will tell of `health` too.
    pub fn new(health: Health) -> Self {
        Self {
            health,
            addresses: BTreeSet::new(),
            services: BTreeMap::new(),
            inherited: Inherited::new(),
        }
    }

    /// Answers for a Service so, on its port and no other. Must be called within a
    /// tokio runtime.
    pub fn set(&mut self, check: &HealthCheck) {
        let known = self.services.get(&check.service);
        if known.is_none_or(|served| served.port != check.port) {
            let answer = Answer {
                service: check.service.clone(),
                local_endpoints: Arc::default(),
                health: self.health.clone(),
            };
            let served = Served {
                port: check.port,
                answer,
                tasks: BTreeMap::new(),
            };
            self.services.insert(check.service.clone(), served);
        }
        if let Some(served) = self.services.get_mut(&check.service) {
            let count = &served.answer.local_endpoints;
            count.store(check.local_endpoints, Ordering::Relaxed);
            served.listen(&self.addresses, &mut self.inherited);
        }
    }

    /// Answers for a Service no more.
    pub fn remove(&mut self, service: &NamespacedName) {
        self.services.remove(service);
    }

    /// The addresses that node ports are open on have changed. Must be called within
    /// a tokio runtime.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.addresses = addresses;
        for served in self.services.values_mut() {
            served.listen(&self.addresses, &mut self.inherited);
        }
    }

    /// The sockets that listen, for another process; this one goes on to answer.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn lend(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let mut lent = Vec::new();
        for served in self.services.values() {
            for (&ip, task) in &served.tasks {
                if let Some(socket) = task.socket.get() {
                    lent.push((SocketAddr::new(ip, served.port), socket.try_clone()?));
                }
            }
        }
        Ok(lent)
    }

    /// Goes on with sockets of another process where this one is to listen from now on.
    /// Those of before that were not taken up are closed.
    pub fn inherit(&mut self, lent: impl IntoIterator<Item = (SocketAddr, OwnedFd)>) {
        self.inherited = lent.into_iter().collect();
    }
}

impl Served {
    fn listen(&mut self, addresses: &BTreeSet<IpAddr>, inherited: &mut Inherited) {
        self.tasks.retain(|address, _| addresses.contains(address));
        for &address in addresses {
            self.tasks.entry(address).or_insert_with(|| {
                let address = SocketAddr::new(address, self.port);
                let before = inherited.remove(&address);
                let socket = Arc::new(OnceLock::new());
                let (stays, left) = watch::channel(());
                let (answer, its) = (self.answer.clone(), Arc::clone(&socket));
                tokio::spawn(serve(address, answer, before, its, left));
                Task {
                    _stays: stays,
                    socket,
                }
            });
        }
    }
}

async fn serve(
    address: SocketAddr,
    answer: Answer,
    before: Option<OwnedFd>,
    socket: Arc<OnceLock<OwnedFd>>,
    mut left: watch::Receiver<()>,
) {
    let before = before.and_then(|socket| TcpListener::from_std(socket.into()).ok());
    let listener = match before {
        Some(listener) => listener,
        None => tokio::select! {
            listener = listener(address, &answer.service) => listener,
            _ = left.changed() => return,
        },
    };
    // Without a descriptor for it the port is opened anew after a hand-over.
    if let Ok(duplicate) = listener.as_fd().try_clone_to_owned() {
        let _ = socket.set(duplicate);
    }
    drop(socket);
    let open = Open {
        address,
        listener: Some(listener),
        left: left.clone(),
    };
    let router = Router::new().fallback(reply).with_state(answer);
    let over = async {
        let _ = left.changed().await;
        sleep(ANSWERING).await;
    };
    tokio::select! {
        _ = axum::serve(open, router) => {}
        () = over => {}
    }
}

/// A port that closes when its Service leaves it. Axum cuts connections that it has not
/// read from when its future is dropped; so that goes on, with nothing to accept.
#[derive(Debug)]
struct Open {
    address: SocketAddr,
    listener: Option<TcpListener>,
    left: watch::Receiver<()>,
}

impl Listener for Open {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        if let Some(listener) = &mut self.listener {
            tokio::select! {
                accepted = Listener::accept(listener) => return accepted,
                _ = self.left.changed() => self.listener = None,
            }
        }
        pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Opens the port, however long it is another's.
async fn listener(address: SocketAddr, service: &NamespacedName) -> TcpListener {
    let mut wait = None;
    loop {
        match bind(address) {
            Ok(listener) => {
                if wait.is_some() {
                    info!(%service, %address, "the health check node port is free now and open");
                }
                return listener;
            }
            Err(error) => {
                if wait.is_none() {
                    warn!(
                        %service, %address, %error,
                        mend = format!(
                            "if another process, kube-proxy perhaps, has the port: \
                             `ss -ltnp sport = :{}` as root names it", address.port()
                        ),
                        "the health check node port cannot be opened and is tried again: load \
                         balancers take this node for one without endpoints"
                    );
                }
                let now = wait.map_or(RETRY_FIRST, |wait: Duration| (wait * 2).min(RETRY_MAX));
                sleep(now).await;
                wait = Some(now);
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// kube-proxy's body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Debug, Serialize)]
struct BodyService<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Whatever path is asked for, as kube-proxy.
fn reply(State(answer): State<Answer>) -> Ready<Response> {
    ready(respond(&answer, Instant::now()))
}

fn respond(answer: &Answer, now: Instant) -> Response {
    let local_endpoints = answer.local_endpoints.load(Ordering::Relaxed);
    let healthy = answer.health.is_healthy(now) && !answer.health.is_stopping();
    let status = if local_endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers: [(HeaderName, HeaderValue); 3] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (WEIGHT, HeaderValue::from(local_endpoints)),
    ];
    let body = Body {
        service: BodyService {
            namespace: &answer.service.namespace,
            name: &answer.service.name,
        },
        local_endpoints,
        service_proxy_healthy: healthy,
    };
    let mut text = Vec::new();
    // kube-proxy lays it out with tabs.
    let layout = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut to_text = serde_json::Serializer::with_formatter(&mut text, layout);
    match body.serialize(&mut to_text) {
        Ok(()) => (status, headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests;
