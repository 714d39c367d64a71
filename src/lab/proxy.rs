//! The real binary, run on a node.
//!
//! A [`ProxyProcess`] owns a child process and one thread that starts it, reads
//! its log and reaps it. Dropping it kills the process and joins the thread; so
//! does the kernel when our own process is killed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::client;
use super::error::LabError;
use super::namespace::Namespace;
use super::temp_dir::TempDir;

/// How long the proxy may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Between two questions whether it is ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// Lines of log kept; older ones go.
const MAX_LOG_LINES: usize = 100_000;

/// How a proxy is started.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    source: Source,
    service_cidrs: Vec<IpNet>,
    healthz: SocketAddr,
    metrics: SocketAddr,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    admin_socket: Option<PathBuf>,
    privileged: bool,
    user: Option<u32>,
}

/// Where a proxy gets its objects from.
#[derive(Clone, Debug)]
enum Source {
    Manifests(PathBuf),
    Kubeconfig(PathBuf),
}

impl ProxyOptions {
    /// A proxy that reads its objects from `manifests`, and takes the traffic of
    /// the service ranges.
    pub fn new(manifests: &Path, service_cidrs: &[IpNet]) -> Self {
        Self::of(Source::Manifests(manifests.to_owned()), service_cidrs)
    }

    /// A proxy that follows the cluster of a kubeconfig, which tells it the
    /// service ranges too.
    pub fn of_cluster(kubeconfig: &Path) -> Self {
        Self::of(Source::Kubeconfig(kubeconfig.to_owned()), &[])
    }

    fn of(source: Source, service_cidrs: &[IpNet]) -> Self {
        Self {
            source,
            service_cidrs: service_cidrs.to_vec(),
            healthz: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10256),
            metrics: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10249),
            arguments: Vec::new(),
            environment: Vec::new(),
            admin_socket: None,
            privileged: true,
            user: None,
        }
    }

    /// Where it tells its health; 127.0.0.1:10256 unless said otherwise.
    pub fn healthz(mut self, address: SocketAddr) -> Self {
        self.healthz = address;
        self
    }

    /// Where it tells its metrics; 127.0.0.1:10249 unless said otherwise.
    pub fn metrics(mut self, address: SocketAddr) -> Self {
        self.metrics = address;
        self
    }

    /// Adds an argument behind those of the lab.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Where its admin socket is; in a directory of its own unless said
    /// otherwise.
    pub fn admin_socket(mut self, path: &Path) -> Self {
        self.admin_socket = Some(path.to_owned());
        self
    }

    /// Starts it without any capability over the node: in a user namespace below
    /// the one that owns the node's network.
    pub fn unprivileged(mut self) -> Self {
        self.privileged = false;
        self
    }

    /// Starts it as this user, without any capability and without a way to gain one.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Sets a variable of its environment.
    pub fn environment(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }
}

/// A proxy that runs until it is killed, or dropped.
#[derive(Debug)]
pub struct ProxyProcess {
    namespace: Namespace,
    binary: PathBuf,
    healthz: SocketAddr,
    metrics: SocketAddr,
    admin_socket: PathBuf,
    pid: Pid,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Holds the admin socket.
    _directory: TempDir,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<String>,
    status: Option<ExitStatus>,
}

impl ProxyProcess {
    /// Starts `binary run …` on a node and waits until `/readyz` says 200.
    ///
    /// # Errors
    ///
    /// [`LabError::ProxyStart`]; [`LabError::ProxyNotReady`] with its log when it
    /// ends, or takes more than 10 s.
    pub fn start(
        node: &Namespace,
        binary: &Path,
        options: &ProxyOptions,
    ) -> Result<Self, LabError> {
        let proxy = Self::spawn(node, binary, options)?;
        proxy.wait_until_ready()?;
        Ok(proxy)
    }

    /// Starts `binary run …` on a node and does not wait.
    ///
    /// # Errors
    ///
    /// [`LabError::ProxyStart`].
    pub fn spawn(
        node: &Namespace,
        binary: &Path,
        options: &ProxyOptions,
    ) -> Result<Self, LabError> {
        let directory = TempDir::new()?;
        let admin_socket = match &options.admin_socket {
            Some(path) => path.clone(),
            None => directory.path().join("admin.sock"),
        };
        let command = command_of(node, binary, options, &admin_socket);
        let shared = Arc::new(Shared::default());
        let failed = |cause| LabError::ProxyStart {
            binary: binary.to_owned(),
            cause,
        };
        let (pid, thread) = spawn_and_watch(command, shared.clone()).map_err(failed)?;
        Ok(Self {
            namespace: node.clone(),
            binary: binary.to_owned(),
            healthz: options.healthz,
            metrics: options.metrics,
            admin_socket,
            pid,
            shared,
            thread: Some(thread),
            _directory: directory,
        })
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    ///
    /// [`LabError::ProxyNotReady`] when it ends first, or after 10 s.
    pub fn wait_until_ready(&self) -> Result<(), LabError> {
        let deadline = Instant::now() + READY_WITHIN;
        let not_ready = |what: fmt::Arguments<'_>| LabError::ProxyNotReady {
            what: what.to_string(),
            log: self.log(),
        };
        loop {
            if let Some(status) = self.status() {
                return Err(not_ready(format_args!("ended ({status})")));
            }
            let answer = client::http_get(&self.namespace, self.healthz, "/readyz", READY_WITHIN);
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = READY_WITHIN.as_secs();
                return Err(not_ready(format_args!(
                    "not ready within {seconds} s, /readyz last said {answer:?}"
                )));
            }
            // Either it ends, which is known at once, or it is asked again.
            let _ = self.wait(READY_POLL);
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Where it listens for `list` and the like.
    pub fn admin_socket(&self) -> &Path {
        &self.admin_socket
    }

    /// Where it tells its health.
    pub fn healthz(&self) -> SocketAddr {
        self.healthz
    }

    /// Where it tells its metrics.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.shared.lock().log.join("\n")
    }

    /// Waits for a line of log that holds `text`, from the beginning on; None
    /// when none comes within `limit` or before the end.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Option<String> {
        let find = |state: &State| state.log.iter().find(|line| line.contains(text)).cloned();
        let missing = |state: &mut State| find(state).is_none() && state.status.is_none();
        find(&self.shared.wait_while(limit, missing))
    }

    /// Its exit status, once it ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.shared.lock().status
    }

    /// Waits for its end; None when it still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        self.shared
            .wait_while(limit, |state| state.status.is_none())
            .status
    }

    /// Sends it a signal. Nothing happens when it has ended.
    ///
    /// # Errors
    ///
    /// As kill(2).
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // The lock keeps the process from being reaped meanwhile, and so its id
        // from becoming another's.
        let state = self.shared.lock();
        match state.status {
            Some(_) => Ok(()),
            None => Ok(kill(self.pid, signal)?),
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    ///
    /// As kill(2).
    pub fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported there.
            drop(thread.join());
        }
        Ok(())
    }

    /// Runs `binary ARGUMENTS --admin-socket …` on the node, as `list`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn command(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = self.namespace.command(&self.binary);
        command
            .args(arguments)
            .arg("--admin-socket")
            .arg(&self.admin_socket);
        command.stdin(Stdio::null()).output()
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        // kill(2) fails only for a process that is not ours.
        drop(self.kill());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(
        &self,
        limit: Duration,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'_, State> {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), limit, condition);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn command_of(
    node: &Namespace,
    binary: &Path,
    options: &ProxyOptions,
    admin_socket: &Path,
) -> Command {
    let cidrs: Vec<String> = options
        .service_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut command = node.command(binary);
    command.arg("run");
    match &options.source {
        Source::Manifests(path) => command.arg("--manifests").arg(path),
        Source::Kubeconfig(path) => command.arg("--kubeconfig").arg(path),
    };
    if !cidrs.is_empty() {
        command.args(["--service-cidr", &cidrs.join(",")]);
    }
    command
        .args(["--hostname-override", node.name()])
        .args(["--healthz-bind-address", &options.healthz.to_string()])
        .args(["--metrics-bind-address", &options.metrics.to_string()])
        .arg("--admin-socket")
        .arg(admin_socket)
        .args(&options.arguments)
        // Of whoever runs the lab, not the proxy's.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .envs(
            options
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        // Ctrl-C is for whoever runs the lab, which ends the proxy in its time.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let (privileged, user) = (options.privileged, options.user);
    // SAFETY: the closure makes system calls and allocates nothing, which is all that
    // is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if !privileged {
                unshare(CloneFlags::CLONE_NEWUSER)?;
            }
            if let Some(user) = user {
                become_user(user)?;
            }
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        });
    }
    command
}

/// Gives up every capability, those that a program could gain too, and then all ids.
/// Allocates nothing.
fn become_user(user: u32) -> io::Result<()> {
    /// Beyond any that there is: the kernel has 41 (linux/capability.h).
    const CAPABILITIES: libc::c_ulong = 64;
    for capability in 0..CAPABILITIES {
        // SAFETY: takes numbers only; one that there is not is refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: these take numbers and, with none of them, no groups.
    let results = unsafe {
        [
            libc::setgroups(0, std::ptr::null()),
            libc::setgid(user),
            libc::setuid(user),
        ]
    };
    // An ordinary user's lab may not touch groups, and has none but its own.
    if results[2] != 0 || (user != 0 && results != [0; 3]) {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts the command on a thread of its own, which then reads the log and reaps
/// the child. The thread must be the one that started it: a parent-death signal
/// comes at the end of the parent's thread (PR_SET_PDEATHSIG(2const)).
fn spawn_and_watch(mut command: Command, shared: Arc<Shared>) -> io::Result<(Pid, JoinHandle<()>)> {
    let (started_tx, started) = sync_channel(1);
    let thread = thread::Builder::new()
        .name("proxy".to_owned())
        .spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    // The receiver waits for exactly this.
                    drop(started_tx.send(Err(error)));
                    return;
                }
            };
            let pid = Pid::from_raw(child.id().cast_signed());
            drop(started_tx.send(Ok(pid)));
            if let Some(stderr) = child.stderr.take() {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let mut state = shared.lock();
                    if state.log.len() >= MAX_LOG_LINES {
                        state.log.remove(0);
                    }
                    state.log.push(String::from_utf8_lossy(&line).into_owned());
                    drop(state);
                    shared.changed.notify_all();
                }
            }
            // Wait without reaping, then reap under the lock: whoever holds it and
            // finds no status knows that the id is still the child's.
            let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), ended) == Err(Errno::EINTR) {}
            let mut state = shared.lock();
            match child.wait() {
                Ok(status) => state.status = Some(status),
                Err(error) => tracing::error!(%error, "lab: proxy not reaped"),
            }
            drop(state);
            shared.changed.notify_all();
        })?;
    let pid = started.recv().map_err(io::Error::other)??;
    Ok((pid, thread))
}
