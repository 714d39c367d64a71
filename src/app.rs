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
mod programming;
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
pub use takeover::{TakeoverError, until_gone};

/// A proxy that carries traffic.
#[derive(Debug)]
pub struct App {
    /// What is in effect.
    config: watch::Sender<Arc<Config>>,
    table: Arc<Table>,
    dataplane: Arc<Dataplane>,
    node_ports: Arc<NodePorts>,
    readiness: Readiness,
    health: Health,
    reloader: Reloader,
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

/// A task that has ended, and how.
type Ended = (&'static str, Option<io::Error>);

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
