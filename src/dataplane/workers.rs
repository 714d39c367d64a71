//! The threads of one kind of worker, and how they are told something.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use mio::{Poll, Token, Waker};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use super::access_log::{self, FlowRecord};
use super::shared::Sweep;

/// Messages that wait for a worker. The control plane waits when it is full; another
/// worker that hands over a packet drops it.
const MAILBOX_DEPTH: usize = 1024;

/// The data plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No epoll instance or wake-up descriptor.
    #[error("cannot make the event queue of worker {worker}")]
    Events {
        /// The worker's number.
        worker: usize,
        /// The system's error.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the thread '{name}'")]
    Thread {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// What messages are sent by, and what wakes whom they are for.
pub(crate) type Mailbox<M> = (SyncSender<M>, Arc<Waker>);

/// What a worker hears by.
#[derive(Debug)]
pub(crate) struct Inbox<M> {
    pub(crate) poll: Poll,
    pub(crate) mailbox: Receiver<M>,
    pub(crate) sweep: Arc<Sweep>,
}

/// The threads of one kind of worker, with the one that logs their flows.
#[derive(Debug)]
pub(crate) struct Workers<M> {
    mailboxes: Vec<Mailbox<M>>,
    sweeps: Vec<Arc<Sweep>>,
    threads: Vec<thread::JoinHandle<()>>,
    failed: Arc<watch::Sender<Option<String>>>,
}

impl<M> Workers<M> {
    /// What so many workers hear by, `mailbox` being the token of their messages, and what
    /// they log to. They have no threads yet.
    ///
    /// # Errors
    /// When the system gives no epoll instance or no thread.
    #[expect(clippy::type_complexity, reason = "taken apart where it is called")]
    pub(crate) fn prepare(
        count: usize,
        mailbox: Token,
    ) -> Result<(Self, Vec<Inbox<M>>, SyncSender<FlowRecord>), StartError> {
        let mut mailboxes = Vec::new();
        let mut inboxes = Vec::new();
        for worker in 0..count {
            let events = |source| StartError::Events { worker, source };
            let poll = Poll::new().map_err(events)?;
            let waker = Waker::new(poll.registry(), mailbox).map_err(events)?;
            let (sender, receiver) = sync_channel(MAILBOX_DEPTH);
            mailboxes.push((sender, Arc::new(waker)));
            inboxes.push(Inbox {
                poll,
                mailbox: receiver,
                sweep: Arc::default(),
            });
        }
        let (log, log_thread) = access_log::start().map_err(|source| StartError::Thread {
            name: "access-log".to_owned(),
            source,
        })?;
        let workers = Self {
            mailboxes,
            sweeps: inboxes.iter().map(|it| Arc::clone(&it.sweep)).collect(),
            threads: vec![log_thread],
            failed: Arc::new(watch::Sender::new(None)),
        };
        Ok((workers, inboxes, log))
    }

    /// Starts the thread of one, which fails with the reason.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), StartError> {
        let failed = Arc::clone(&self.failed);
        let named = thread::Builder::new().name(name.clone());
        let thread = named.spawn(move || {
            if let Err(reason) = work() {
                failed.send_replace(Some(reason));
            }
        });
        self.threads
            .push(thread.map_err(|source| StartError::Thread { name, source })?);
        Ok(())
    }

    pub(crate) fn mailboxes(&self) -> &[Mailbox<M>] {
        &self.mailboxes
    }

    /// Tells all of them.
    pub(crate) fn tell(&self, message: impl FnMut() -> M) {
        self.tell_each(std::iter::repeat_with(message));
    }

    /// Tells each what is its, in the order of their numbers.
    pub(crate) fn tell_each(&self, messages: impl IntoIterator<Item = M>) {
        for (mailbox, message) in self.mailboxes.iter().zip(messages) {
            send(mailbox, message);
        }
    }

    /// Tells the one with this number.
    pub(crate) fn tell_one(&self, worker: usize, message: M) {
        if let Some(mailbox) = self.mailboxes.get(worker) {
            send(mailbox, message);
        }
    }

    /// Asks all of them.
    pub(crate) fn ask<T>(
        &self,
        mut message: impl FnMut(oneshot::Sender<T>) -> M,
    ) -> Vec<oneshot::Receiver<T>> {
        let mut replies = Vec::new();
        self.tell(|| {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            message(sender)
        });
        replies
    }

    /// Returns whether all have answered `question` within `patience`.
    pub(crate) async fn answer(
        &self,
        question: impl Fn(oneshot::Sender<()>) -> M,
        patience: Duration,
    ) -> bool {
        let mut replies = Vec::new();
        for (mailbox, waker) in &self.mailboxes {
            let (sender, receiver) = oneshot::channel();
            // A worker whose mailbox is full does not read it.
            if mailbox.try_send(question(sender)).is_err() || waker.wake().is_err() {
                return false;
            }
            replies.push(receiver);
        }
        let all = async {
            for reply in replies {
                if reply.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(patience, all).await.unwrap_or(false)
    }

    /// Asks for the [`Sweep`] of each. It never waits.
    pub(crate) fn sweep(&self) {
        for (sweep, (_, waker)) in self.sweeps.iter().zip(&self.mailboxes) {
            if sweep.ask() {
                // Fails for no worker that runs.
                let _ = waker.wake();
            }
        }
    }

    /// Returns when one has failed, with the reason.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failed.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // What it is told by is here as long as they are.
            Err(_) => std::future::pending().await,
        }
    }

    /// Has them stop, and waits for the threads.
    pub(crate) fn end(&mut self, stop: impl FnMut() -> M) {
        // The wakers outlive the threads: one that is closed before its thread has
        // looked is no event any more.
        self.tell(stop);
        for thread in self.threads.drain(..).rev() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn send<M>((mailbox, waker): &Mailbox<M>, message: M) {
    // A worker that ended needs no message.
    if mailbox.send(message).is_ok() {
        let _ = waker.wake();
    }
}
