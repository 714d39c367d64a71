//! The way to the API server: where it is, who we are, and a client of it that
//! is made anew when either may have changed.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::{Request, Response, Uri};
use jiff::{SignedDuration, Timestamp};
use kube::client::{Body, ClientBuilder};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::requests::{Requests, Sent};

/// Time for TCP and TLS to the API server.
const CONNECT: Duration = Duration::from_secs(10);

/// Time to find the API server's address by its name, only to warn of it.
const LOOKUP: Duration = Duration::from_secs(2);

/// Least time between two looks for new credentials: an exec plugin may call a
/// service of its own.
const RENEW_GAP: Duration = Duration::from_secs(10);

/// Time for credentials: an exec plugin that hangs must not stop everything.
const CREDENTIALS: Duration = Duration::from_secs(30);

/// How long before its end a client certificate of an exec plugin is replaced.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_secs(60);

/// How to find and to enter a cluster.
#[derive(Clone, Debug)]
pub struct Access {
    /// The kubeconfig; `None` is what a pod is given (in-cluster configuration).
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server in place of the one that is configured.
    pub master: Option<Uri>,
}

/// Why there is no way to a cluster.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("--kubeconfig '{}' cannot be used", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// Not in a pod, or one without a service account.
    #[error(
        "neither --manifests nor --kubeconfig is given, and in-cluster configuration is not to be had"
    )]
    InCluster {
        /// What is missing.
        source: Box<InClusterError>,
    },
    /// Certificates, tokens or an exec plugin do not make a client.
    #[error("no client of the API server can be made")]
    Client {
        /// What is wrong.
        source: Box<kube::Error>,
    },
    /// An exec plugin has not come to an end.
    #[error("credentials for the API server were not to be had within {} s", CREDENTIALS.as_secs())]
    Slow,
    /// Making it has panicked, or the runtime ends.
    #[error("no client of the API server can be made")]
    Task(#[from] JoinError),
}

/// A client of the API server; shared by all that follow something of it.
pub struct Connection {
    access: Access,
    server: Uri,
    requests: Arc<Requests>,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    /// When it was last tried to make one anew.
    renewed: Option<Instant>,
    /// Why the last attempt failed.
    failure: Option<String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("access", &self.access)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Reads the configuration and makes a client. Nothing is sent yet, but an
    /// exec plugin is run.
    ///
    /// # Errors
    ///
    /// [`AccessError`].
    pub async fn open(access: Access) -> Result<Self, AccessError> {
        let config = access.config().await?;
        let server = config.cluster_url.clone();
        let client = make(config).await?;
        let current = Current {
            client,
            renewed: None,
            failure: None,
        };
        Ok(Self {
            access,
            server,
            requests: Arc::default(),
            current: Mutex::new(current),
        })
    }

    /// Address of the API server, as it was when opened.
    pub fn server(&self) -> &Uri {
        &self.server
    }

    /// The addresses of the API server, as far as they can be told.
    pub async fn addresses(&self) -> Vec<IpAddr> {
        let Some(host) = self.server.host() else {
            return Vec::new();
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse() {
            return vec![address];
        }
        match timeout(LOOKUP, lookup_host((host, 0))).await {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// What became of the requests.
    pub fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }

    /// Sends a request; the answer may be an error status.
    pub(super) async fn send(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<Response<Body>, kube::Error> {
        let client = {
            let mut current = self.current.lock().await;
            if expires_soon(&current.client) && !current.was_renewed() {
                self.make_anew(&mut current).await;
            }
            current.client.clone()
        };
        let mut sent = Sent {
            requests: &self.requests,
            method: request.method().to_string(),
            is_answered: false,
        };
        let begun = Instant::now();
        let answer = client.send(request.map(Body::from)).await?;
        sent.is_answered = true;
        let (status, now) = (answer.status().as_u16(), SystemTime::now());
        self.requests
            .answered(&sent.method, status, begun.elapsed(), now);
        Ok(answer)
    }

    /// Reads the configuration again and makes a new client, unless that was done
    /// a moment ago. If it fails the present one stays.
    pub(super) async fn renew(&self) {
        let mut current = self.current.lock().await;
        if !current.was_renewed() {
            self.make_anew(&mut current).await;
        }
    }

    async fn make_anew(&self, current: &mut Current) {
        current.renewed = Some(Instant::now());
        let made = async { make(self.access.config().await?).await };
        match made.await {
            Ok(client) => {
                debug!("the client of the API server is made anew");
                current.client = client;
                current.failure = None;
            }
            Err(error) => {
                let error = chain(&error);
                if current.failure.as_ref() != Some(&error) {
                    warn!(%error, "credentials for the API server cannot be read again");
                    current.failure = Some(error);
                }
            }
        }
    }
}

impl Current {
    fn was_renewed(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < RENEW_GAP)
    }
}

impl Access {
    async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match &self.kubeconfig {
            Some(path) => from_kubeconfig(path).await?,
            None => Config::incluster().map_err(|source| AccessError::InCluster {
                source: Box::new(source),
            })?,
        };
        if let Some(master) = &self.master {
            config.cluster_url = master.clone();
        }
        config.connect_timeout = Some(CONNECT);
        // Whoever asks decides when to ask again, and has the answer for it.
        config.default_retry = false;
        Ok(config)
    }
}

async fn from_kubeconfig(path: &Path) -> Result<Config, AccessError> {
    let read = async {
        let kubeconfig = Kubeconfig::read_from(path)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
    };
    read.await.map_err(|source| AccessError::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// On the blocking pool, since an exec plugin is waited for.
async fn make(config: Config) -> Result<Client, AccessError> {
    let made = spawn_blocking(move || ClientBuilder::try_from(config).map(ClientBuilder::build));
    let made = timeout(CREDENTIALS, made).await;
    made.map_err(|_| AccessError::Slow)??
        .map_err(|source| AccessError::Client {
            source: Box::new(source),
        })
}

fn expires_soon(client: &Client) -> bool {
    let until = client.valid_until().as_ref();
    until.is_some_and(|until| until.duration_since(Timestamp::now()) < RENEW_BEFORE)
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
