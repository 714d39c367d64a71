//! SIGINT and SIGTERM, so that the demo cleans up after itself.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Listens until it is dropped; owns one thread.
pub(super) struct Interrupt {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    came: bool,
    /// A child that SIGTERM is passed on to. It is not reaped while this is set.
    child: Option<Pid>,
}

impl Interrupt {
    /// From now on both signals are ours.
    pub(super) fn listen() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        let shared = Arc::new(Shared::default());
        let (stop, mut stopped) = oneshot::channel();
        let seen = shared.clone();
        let thread = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        tokio::select! {
                            _ = interrupt.recv() => seen.came(false),
                            _ = terminate.recv() => seen.came(true),
                            _ = &mut stopped => return,
                        }
                    }
                });
            })?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Whether one came.
    pub(super) fn came(&self) -> bool {
        self.shared.lock().came
    }

    /// Waits until one came.
    pub(super) fn wait(&self) {
        let waited = self
            .shared
            .changed
            .wait_while(self.shared.lock(), |state| !state.came);
        drop(waited);
    }

    /// Waits for the end of a child. Meanwhile SIGTERM is passed on to it; SIGINT
    /// is not, since a terminal sends that to it too.
    pub(super) fn wait_for_child(&self, mut child: Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_raw(child.id().cast_signed());
        self.shared.lock().child = Some(pid);
        // Without reaping: until the lock is held, a signal may go to this id.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), ended) == Err(Errno::EINTR) {}
        self.shared.lock().child = None;
        child.wait()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported there.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn came(&self, terminate: bool) {
        let mut state = self.lock();
        state.came = true;
        if let (true, Some(child)) = (terminate, state.child) {
            // Fails only for a child that has ended, which is what is wanted.
            let _ = kill(child, Signal::SIGTERM);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
