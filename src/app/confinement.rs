//! Which thread keeps which privilege.
//!
//! | thread | keeps | for |
//! | --- | --- | --- |
//! | main | nothing, once the device is set up and the workers are started; CAP_NET_RAW until then | to open the raw sockets of ICMP errors |
//! | control, those that wait for files, `check` | CAP_NET_ADMIN | routes that change, unless `--fixed-routes` |
//! | | CAP_NET_BIND_SERVICE | health check node ports below 1024 |
//! | | CAP_DAC_READ_SEARCH | a source that only so can be read |
//! | `worker-N`, access log | nothing | |
//! | `node-port-N` | CAP_NET_BIND_SERVICE | node ports below 1024 |
//! | | CAP_NET_ADMIN | the socket filter of policy Local, which some kernels refuse without (seen with 6.18), unless `--fixed-routes` |
//!
//! No program that is started gains any (no_new_privs).

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use tracing::{info, warn};

use crate::config::{Config, Source};
use crate::node::privileges::{Capabilities, Capability, confine};

/// What each kind of thread keeps, of what there is.
#[derive(Clone, Debug)]
pub struct Confinement {
    start: Capabilities,
    control: Capabilities,
    node_ports: Capabilities,
}

impl Confinement {
    /// What a proxy of this configuration needs.
    pub fn of(config: &Config) -> Self {
        let mut node_ports = vec![Capability::NetBindService];
        if !config.fixed_routes {
            node_ports.push(Capability::NetAdmin);
        }
        let mut control = node_ports.clone();
        if needs_reading(&config.source) {
            control.push(Capability::DacReadSearch);
        }
        // What is opened with CAP_NET_RAW serves without it.
        let start = [Capability::NetAdmin, Capability::NetRaw];
        let start = start.iter().chain(&control);
        Self {
            start: start.copied().collect(),
            control: control.into_iter().collect(),
            node_ports: node_ports.into_iter().collect(),
        }
    }

    /// For the thread that starts the proxy, before there is another.
    pub fn confine_start(&self) {
        confined("main", &self.start);
    }

    /// For each thread of the control runtime, as the first thing.
    pub fn confine_control(&self) {
        confined("control", &self.control);
    }

    /// For the thread that has started the workers of the data plane.
    pub(super) fn confine_to_node_ports(&self) {
        confined("main", &self.node_ports);
    }

    /// For the thread that has nothing more to start.
    pub(super) fn confine_main(&self) {
        confined("main", &Capabilities::none());
        let has = |set: &Capabilities| set.to_string();
        info!(
            main = "none",
            workers = "none",
            control = has(&self.control),
            node_ports = has(&self.node_ports),
            "privileges that are kept, as far as they were given"
        );
    }
}

/// Runs `work` on a thread without privileges, so that those it starts have none.
pub(super) fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("start".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            confined("start", &Capabilities::none());
            work()
        })?;
        thread
            .join()
            .map_err(|_| io::Error::other("starting has panicked"))
    })
}

/// A kernel that forbids to give up privileges is no reason not to serve.
fn confined(thread: &str, keep: &Capabilities) {
    if let Err(error) = confine(keep) {
        warn!(thread, %error, "privileges cannot be given up");
    }
}

/// Whether the source can be read only with privilege: it belongs to another user.
fn needs_reading(source: &Source) -> bool {
    let path = match source {
        Source::Manifests(path) => path,
        Source::Cluster {
            kubeconfig: Some(path),
            ..
        } => path,
        Source::Cluster {
            kubeconfig: None, ..
        } => return false,
    };
    let denied = unprivileged(|| is_denied(path));
    denied.unwrap_or(false)
}

fn is_denied(path: &Path) -> bool {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    if !path.is_dir() {
        return File::open(path).is_err_and(|error| denied(&error));
    }
    match fs::read_dir(path) {
        Ok(mut entries) => entries.any(|entry| {
            entry.is_ok_and(|entry| File::open(entry.path()).is_err_and(|error| denied(&error)))
        }),
        Err(error) => denied(&error),
    }
}
