//! An API server over real HTTPS that does as a test says.
//!
//! It keeps objects and their history as the real one does, so that lists, pages,
//! streams, watches and selectors fit together; a test changes objects and puts
//! faults in the way of requests. It runs as tasks of the test's runtime, which
//! end with it.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::stream::poll_fn;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::{TlsAcceptor, rustls};

use answers::{
    Body, Sent, answer_of, bookmark, error_event, line, query, response, status, streamed,
};
use resource::Resource;
use selection::Selection;

use crate::kubeconfig;

mod answers;
mod resource;
mod selection;

/// Makes the socket that listens at an address.
type Listen = dyn Fn(SocketAddr) -> io::Result<std::net::TcpListener> + Send + Sync;

/// What a request meets in place of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// An error status.
    Status(u16),
    /// An error status that says when to come again, in seconds.
    RetryAfter(u16, u64),
    /// 200, and an ERROR event of this code.
    ErrorEvent(u16),
    /// 200, the half of what was to be sent, and an end amid it.
    Half,
    /// 200, and then nothing for ever.
    Silence,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The resource, as `services`.
    pub(crate) resource: String,
    /// The parameters.
    pub(crate) query: HashMap<String, String>,
    /// When.
    pub(crate) at: Instant,
    /// The media type asked for.
    pub(crate) accept: String,
}

impl Seen {
    /// A streaming list.
    pub(crate) fn is_stream(&self) -> bool {
        self.query.contains_key("sendInitialEvents")
    }

    /// A watch that begins at a version.
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains_key("watch") && !self.is_stream()
    }

    /// A list of everything, or a page of it.
    pub(crate) fn is_list(&self) -> bool {
        !self.query.contains_key("watch") && self.query.get("limit").is_none_or(|l| l != "1")
    }

    /// A question for the newest version.
    pub(crate) fn is_newest(&self) -> bool {
        !self.query.contains_key("watch") && self.query.get("limit").is_some_and(|l| l == "1")
    }
}

#[derive(Default)]
struct State {
    version: u64,
    token: String,
    resources: BTreeMap<String, Resource>,
    seen: Vec<Seen>,
}

/// The server. It ends when dropped.
pub(crate) struct ApiServer {
    state: Arc<Mutex<State>>,
    seen: watch::Sender<usize>,
    address: SocketAddr,
    listen: Box<Listen>,
    acceptor: TlsAcceptor,
    certificate: String,
    /// A client certificate and its key, in PEM.
    client: (String, String),
    tasks: JoinSet<()>,
}

impl ApiServer {
    /// Starts one without objects, which lets in whoever has `token`.
    pub(crate) async fn start(token: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(token, address, std::net::TcpListener::bind).await
    }

    /// The same at an address, with sockets from `listen`; port 0 is any that is
    /// free.
    pub(crate) async fn start_at(
        token: &str,
        address: SocketAddr,
        listen: impl Fn(SocketAddr) -> io::Result<std::net::TcpListener> + Send + Sync + 'static,
    ) -> Self {
        let issued = rcgen::generate_simple_self_signed([address.ip().to_string()]).unwrap();
        let key = issued.signing_key.serialize_der().try_into().unwrap();
        let (authority, client) = client_certificate();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let state = State {
            version: 100,
            token: token.to_owned(),
            ..State::default()
        };
        let mut server = Self {
            state: Arc::new(Mutex::new(state)),
            seen: watch::Sender::new(0),
            address,
            listen: Box::new(listen),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate: issued.cert.pem(),
            client,
            tasks: JoinSet::new(),
        };
        server.come_back().await;
        server
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its certificate in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A client certificate that it lets in, and its key, in PEM.
    pub(crate) fn client_certificate(&self) -> &(String, String) {
        &self.client
    }

    /// A directory with a kubeconfig of this user, for this server at `url`.
    pub(crate) fn kubeconfig(&self, url: &str, user: &Value) -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let authority = directory.path().join("ca.pem");
        fs::write(&authority, self.certificate()).unwrap();
        let cluster = json!({"server": url, "certificate-authority": authority});
        let path = directory.path().join("kubeconfig");
        fs::write(&path, kubeconfig::text(&cluster, user)).unwrap();
        (directory, path)
    }

    /// Breaks all connections and takes no new ones.
    pub(crate) async fn go_away(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Takes connections again, on the same port.
    pub(crate) async fn come_back(&mut self) {
        // The port is free once the connections of before have gone.
        let patience = tokio::time::Instant::now() + Duration::from_secs(10);
        let listener = loop {
            match (self.listen)(self.address) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && tokio::time::Instant::now() < patience =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => break result.unwrap(),
            }
        };
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        self.address = listener.local_addr().unwrap();
        let (state, seen) = (Arc::clone(&self.state), self.seen.clone());
        let acceptor = self.acceptor.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // As the real one: a change is not to wait for the last one's ACK.
                stream.set_nodelay(true).unwrap();
                let (state, seen) = (Arc::clone(&state), seen.clone());
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that gives up amid the handshake, or later.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let known = stream.get_ref().1.peer_certificates().is_some();
                    let service = service_fn(|request| {
                        let answer = answer(&state, &seen, &request, known);
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    drop(connection.await);
                });
            }
        });
    }

    /// Another token is valid from now on.
    pub(crate) fn set_token(&self, token: &str) {
        token.clone_into(&mut self.lock().token);
    }

    /// Creates or changes an object.
    pub(crate) fn apply(&self, resource: &str, object: Value) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        state.resource(resource).apply(version, object);
    }

    /// Deletes an object by its name, with `namespace/` if it has one.
    pub(crate) fn delete(&self, resource: &str, name: &str) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        state.resource(resource).delete(version, name);
    }

    /// Tells watchers the present version.
    pub(crate) fn bookmark(&self, resource: &str) {
        let mut state = self.lock();
        let version = state.version;
        let line = line("BOOKMARK", &bookmark(version, false));
        state.resource(resource).send(&line);
    }

    /// Ends watches in order.
    pub(crate) fn end_watches(&self, resource: &str) {
        self.lock().resource(resource).watchers.clear();
    }

    /// Breaks watches off amid a line.
    pub(crate) fn cut_watches(&self, resource: &str) {
        for watcher in self.lock().resource(resource).watchers.drain(..) {
            let half = Bytes::from_static(b"{\"type\":\"DELETED\",\"object\":{\"meta");
            // One that has gone is cut already.
            let _ = watcher.send(Ok(Frame::data(half)));
            let _ = watcher.send(Err(io::Error::other("cut")));
        }
    }

    /// Sends watchers this line, whatever it is.
    pub(crate) fn say(&self, resource: &str, text: &str) {
        self.lock().resource(resource).send(&format!("{text}\n"));
    }

    /// Puts a fault in the way of the next request.
    pub(crate) fn fault(&self, resource: &str, fault: Fault) {
        self.lock().resource(resource).faults.push_back(fault);
    }

    /// Every request for a resource gets this error status from now on; `None`
    /// is over with it.
    pub(crate) fn refuse(&self, resource: &str, code: Option<u16>) {
        self.lock().resource(resource).refused = code;
    }

    /// Streaming lists are refused.
    pub(crate) fn without_streams(&self, resource: &str) {
        self.lock().resource(resource).without_streams = true;
    }

    /// Forgets all history: only the present version can be watched from.
    pub(crate) fn compact(&self, resource: &str) {
        let mut state = self.lock();
        let version = state.version;
        let resource = state.resource(resource);
        resource.oldest = version;
        resource.history.clear();
    }

    /// Goes back to an older version with these objects, as if restored from a
    /// backup.
    pub(crate) fn restore(&self, version: u64, resource: &str, objects: Vec<Value>) {
        let mut state = self.lock();
        state.version = version;
        let resource = state.resource(resource);
        resource.objects.clear();
        for object in objects {
            resource.apply(version, object);
        }
        resource.history.clear();
        resource.oldest = 0;
    }

    /// The present version.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The requests for a resource so far.
    pub(crate) fn seen(&self, resource: &str) -> Vec<Seen> {
        let state = self.lock();
        let of = state.seen.iter().filter(|seen| seen.resource == resource);
        of.cloned().collect()
    }

    /// Waits until the requests for a resource are as told.
    pub(crate) async fn until_seen(&self, resource: &str, wanted: impl Fn(&[Seen]) -> bool) {
        let mut count = self.seen.subscribe();
        while !wanted(&self.seen(resource)) {
            count.changed().await.unwrap();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl State {
    fn resource(&mut self, name: &str) -> &mut Resource {
        self.resources.entry(name.to_owned()).or_default()
    }
}

/// An authority for clients, and a certificate from it with its key in PEM.
fn client_certificate() -> (CertificateDer<'static>, (String, String)) {
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut client = rcgen::CertificateParams::default();
    client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let client = client.signed_by(&key, &issuer).unwrap();
    (
        certificate.der().clone(),
        (client.pem(), key.serialize_pem()),
    )
}

fn answer(
    state: &Mutex<State>,
    count: &watch::Sender<usize>,
    request: &Request<Incoming>,
    known: bool,
) -> Response<Body> {
    let mut state = state.lock().unwrap();
    let path = request.uri().path();
    let resource = path.rsplit('/').next().unwrap().to_owned();
    let header = |name| request.headers().get(name).map(|v| v.to_str().unwrap());
    let query = query(request.uri().query().unwrap_or_default());
    state.seen.push(Seen {
        resource: resource.clone(),
        query: query.clone(),
        at: Instant::now(),
        accept: header(ACCEPT).unwrap_or_default().to_owned(),
    });
    count.send_modify(|count| *count += 1);
    let token = format!("Bearer {}", state.token);
    if !known && header(AUTHORIZATION) != Some(token.as_str()) {
        return status(401, None);
    }
    let version = state.version;
    let resource = state.resource(&resource);
    if let Some(code) = resource.refused {
        return status(code, None);
    }
    let selection = Selection::of(&query);
    let is_stream = query.contains_key("sendInitialEvents");
    match resource.faults.pop_front() {
        Some(Fault::Status(code)) => return status(code, None),
        Some(Fault::RetryAfter(code, seconds)) => return status(code, Some(seconds)),
        Some(Fault::ErrorEvent(code)) => {
            return answer_of(200, Full::new(error_event(code).into()));
        }
        Some(Fault::Half) => {
            let (sender, receiver) = mpsc::channel(2);
            let half = Bytes::from_static(b"{\"kind\":\"List\",\"metadata\":{},\"items\":[{");
            sender.try_send(Ok(Frame::data(half))).unwrap();
            sender.try_send(Err(io::Error::other("cut"))).unwrap();
            return streamed(receiver);
        }
        Some(Fault::Silence) => {
            return response(
                200,
                BodyExt::boxed(StreamBody::new(poll_fn(|_| {
                    std::task::Poll::<Option<Sent>>::Pending
                }))),
            );
        }
        None => {}
    }
    if is_stream && resource.without_streams {
        return status(422, None);
    }
    if query.contains_key("watch") {
        resource.watch(version, &query, selection)
    } else {
        resource.list(version, &query, &selection)
    }
}
