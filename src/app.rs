//! Wiring, in the order of starting up.
//!
//! [`App::start`] opens what can be refused first, listeners and device, then
//! starts the workers, then lets objects in. [`App::run`] ends with the signal to
//! stop or after a hand-over to another process, after the flows have drained, or when
//! a part has ended by itself.
//!
//! Tasks on the control runtime: the source, the control loop, the keeper of the
//! routes where they are not fixed, the follower of the kernel in fallback mode, the
//! health, metrics and admin servers and the recorder of rates. All end with the
//! [`App`], those that another process goes on with at the hand-over. The threads of the
//! data plane are its own and are joined before `run` returns; with the last queue the
//! kernel takes away device, addresses and routes, unless `init` has made them.
//! [`confinement`] says which thread keeps which privilege.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::admin::health::Health;
use crate::admin::readiness::Readiness;
use crate::admin::socket::FileLent;
use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::NodePorts;
use crate::tun::Link;
use exposure::Exposure;
use programming::ProgrammingLatency;
use reload::Reloader;
use takeover::FormerSide;

mod checks;
mod cluster;
pub mod confinement;
mod control;
mod device;
mod error;
mod explain;
mod exposure;
mod fallback;
mod limits;
pub mod logging;
mod observe;
mod pods;
pub mod prepare;
mod process;
pub mod programming;
mod reload;
mod routes;
mod run;
mod settings;
pub mod signals;
mod start;
mod syncs;
mod takeover;
#[cfg(test)]
mod testing;
mod view;
mod watchdog;

pub use error::AppError;
pub use fallback::{Participation, Standing};
pub use takeover::{TakeoverError, until_gone};

/// A proxy that carries traffic.
#[derive(Debug)]
pub struct App {
    bound: Bound,
    /// What is in effect.
    config: watch::Sender<Arc<Config>>,
    table: Arc<Table>,
    dataplane: Arc<Dataplane>,
    node_ports: Arc<NodePorts>,
    readiness: Readiness,
    health: Health,
    reloader: Reloader,
    latency: Arc<ProgrammingLatency>,
    participation: Option<Participation>,
    tasks: JoinSet<Ended>,
    /// What another process goes on with after a hand-over.
    public: JoinSet<Ended>,
    /// The same, and the last to end: whoever waits for the end of this process asks there.
    admin_server: JoinSet<Ended>,
    exposure: Arc<Exposure>,
    former: FormerSide,
    admin_lent: FileLent,
    /// New processes that want to take over.
    takeovers: mpsc::Receiver<UnixStream>,
    /// It has taken over from another process.
    succeeds: bool,
    /// Its netlink task ends with it.
    _link: Arc<Link>,
}

/// What a running proxy has opened.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where health is served, with the port that the system chose for port 0.
    pub healthz: Option<SocketAddr>,
    /// Where metrics and the status page are, in the same way.
    pub metrics: Option<SocketAddr>,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// Name of the TUN device.
    pub tun: String,
}

/// A task that has ended, and how.
type Ended = (&'static str, Option<io::Error>);

impl App {
    /// What has been opened.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Whether the proxy is ready, and what it waits for.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// The configuration in effect, as it changes.
    pub fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// How long changes took from the cluster to the table.
    pub fn programming_latency(&self) -> &ProgrammingLatency {
        &self.latency
    }

    /// Whether the proxy takes part at present, with `--mode fallback`.
    pub fn participation(&self) -> Option<&Participation> {
        self.participation.as_ref()
    }
}

fn why_ended(ended: Option<Result<Ended, JoinError>>) -> AppError {
    match ended {
        Some(Ok((part, source))) => AppError::Ended { part, source },
        Some(Err(error)) => AppError::Panicked(error),
        None => AppError::Ended {
            part: "everything",
            source: None,
        },
    }
}
