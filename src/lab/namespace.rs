//! One network namespace, held by a descriptor.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::Handle;

use super::error::LabError;
use super::netlink;

/// A network namespace without a name on disk.
///
/// It vanishes with the last descriptor, socket or process in it. Cloning
/// gives another handle on the same namespace.
#[derive(Clone)]
pub struct Namespace {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes an empty namespace with loopback up. `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`LabError::Namespace`], as without [`super::enter`] or above
    /// `user.max_net_namespaces`.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let failed = |step| {
            move |cause: io::Error| LabError::Namespace {
                name: name.to_owned(),
                step,
                cause,
            }
        };
        let fd = on_fresh_thread(name, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let fd = File::open("/proc/thread-self/ns/net")?;
            netlink::loopback_up()?;
            Ok(fd)
        })
        .and_then(|made| made)
        .map_err(failed("cannot make it"))?;
        Ok(Self {
            name: name.into(),
            fd: Arc::new(fd.into()),
        })
    }

    /// The name given at birth; not known to the kernel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a fresh thread inside the namespace and returns what it
    /// returns. Sockets made there stay there, whoever uses them later.
    ///
    /// # Panics
    ///
    /// When `work` panics, with its payload; when no thread can be had.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = on_fresh_thread(&self.name, || self.enter_thread().map(|()| work()));
        match entered.and_then(|done| done) {
            Ok(done) => done,
            Err(error) => panic!("lab: cannot enter namespace {}: {error}", self.name),
        }
    }

    /// A command that will run inside the namespace, whichever thread starts it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.clone();
        // SAFETY: the closure makes one setns call and allocates nothing, which
        // is all that is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || namespace.enter_thread());
        }
        command
    }

    /// Reads a setting, as `net.ipv4.ip_forward`.
    ///
    /// # Errors
    ///
    /// [`LabError::Sysctl`].
    pub fn sysctl(&self, key: &str) -> Result<String, LabError> {
        self.run(|| fs::read_to_string(sysctl_path(key)))
            .map(|value| value.trim_end().to_owned())
            .map_err(|cause| self.sysctl_error(key, cause))
    }

    /// Writes a setting of this namespace.
    ///
    /// # Errors
    ///
    /// [`LabError::Sysctl`].
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.set_sysctls(&[(key, value)])
    }

    /// Writes several settings, in order.
    ///
    /// # Errors
    ///
    /// [`LabError::Sysctl`] at the first that fails.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                fs::write(sysctl_path(key), value).map_err(|cause| self.sysctl_error(key, cause))
            })
        })
    }

    /// Runs `work` with a netlink handle of this namespace, on a thread and a
    /// runtime of its own.
    ///
    /// # Errors
    ///
    /// What `work` returns, or [`LabError::Namespace`] when there is no socket.
    pub fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T, LabError> + Send,
    ) -> Result<T, LabError> {
        self.run(|| netlink::with_handle(work))
            .map_err(|cause| LabError::Namespace {
                name: self.name().to_owned(),
                step: "cannot open a netlink socket",
                cause,
            })?
    }

    fn enter_thread(&self) -> io::Result<()> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    fn sysctl_error(&self, key: &str, cause: io::Error) -> LabError {
        LabError::Sysctl {
            name: self.name().to_owned(),
            key: key.to_owned(),
            cause,
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("name", &self.name)
            .field("fd", &self.fd.as_raw_fd())
            .finish()
    }
}

/// Runs `work` on a thread that ends with it: namespaces belong to threads, and
/// one that was moved should not be used for anything else.
fn on_fresh_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let joined = thread::scope(|scope| {
        let thread = thread::Builder::new().name(format!("ns:{name}"));
        thread
            .spawn_scoped(scope, work)
            .map(thread::ScopedJoinHandle::join)
    })?;
    match joined {
        Ok(value) => Ok(value),
        Err(payload) => resume_unwind(payload),
    }
}

/// `/proc/sys` shows the settings of the network namespace of the thread that
/// reads it. A key with slashes is taken as it is: interface names have dots.
fn sysctl_path(key: &str) -> String {
    if key.contains('/') {
        format!("/proc/sys/{key}")
    } else {
        format!("/proc/sys/{}", key.replace('.', "/"))
    }
}
