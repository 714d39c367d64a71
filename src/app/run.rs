//! A proxy that runs, until a signal, a successor or a failure ends it.

use std::convert::Infallible;
use std::future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::signals::{Signals, Told};
use super::takeover::{Taking, gone, until_gone};
use super::watchdog::Vitals;
use super::{App, AppError, why_ended};
use crate::admin::readiness::STOPPING;
use crate::config::Settings;

impl App {
    /// Carries traffic until a signal to stop comes and the flows have drained;
    /// a second signal ends the wait. Nothing is left when it returns. SIGHUP has
    /// `settings` read again.
    ///
    /// # Errors
    ///
    /// A part of the proxy has ended by itself; the rest is ended then.
    pub async fn run(mut self, mut signals: Signals, settings: &Settings) -> Result<(), AppError> {
        let readiness = self.readiness.clone();
        let succeeds = self.succeeds;
        let announced = async {
            readiness.ready().await;
            info!("ready");
            if succeeds {
                notify(NotifyState::MainPid(std::process::id()));
            }
            notify(NotifyState::Ready);
            future::pending::<Infallible>().await
        };
        tokio::pin!(announced);
        let vitals = Vitals {
            dataplane: Arc::clone(&self.dataplane),
            node_ports: Arc::clone(&self.node_ports),
            health: self.health.clone(),
        };
        let mut watched = Box::pin(async move { vitals.tell().await });
        let mut taking = None;
        let stopped = loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::Stop(signal) => break Ok(Some(signal)),
                    Told::Reload => self.reloader.reload(settings, &self.config),
                },
                ended = self.tasks.join_next() => break Err(why_ended(ended)),
                ended = self.public.join_next() => break Err(why_ended(ended)),
                ended = self.admin_server.join_next() => break Err(why_ended(ended)),
                reason = self.dataplane.failed() => break Err(AppError::Worker { reason }),
                reason = self.node_ports.failed() => break Err(AppError::Worker { reason }),
                Some(stream) = self.takeovers.recv() => {
                    let refusal = taking.is_some().then_some("it hands over to another already");
                    match self.former.offer(stream, refusal).await {
                        Ok(Some(new)) => taking = Some(Box::pin(new.wait())),
                        Ok(None) => {}
                        Err(error) => warn!(%error, "a hand-over was not begun"),
                    }
                }
                taken = programmed(&mut taking) => {
                    taking = None;
                    match taken {
                        Ok(new) => if self.hand_over(new).await {
                            break Ok(None);
                        },
                        Err(error) => {
                            warn!(%error, "the new process has failed: this one goes on");
                        }
                    }
                }
                never = &mut announced => match never {},
                never = &mut watched => match never {},
            }
        };
        self.takeovers.close();
        // After a hand-over whoever still asks here is told what holds for the node.
        let handed_over = matches!(stopped, Ok(None));
        let _stopping = (!handed_over).then(|| self.readiness.block(STOPPING));
        let timeout = self.config.borrow().drain_timeout;
        let mut told = true;
        let drained = async {
            match stopped {
                Ok(Some(signal)) => {
                    notify(NotifyState::Stopping);
                    self.close().await;
                    info!(signal, ?timeout, "stopping, flows drain");
                    self.drain(&mut signals).await
                }
                Ok(None) => {
                    told = self.linger(&mut signals).await?;
                    Ok(())
                }
                Err(error) => {
                    notify(NotifyState::Stopping);
                    Err(error)
                }
            }
        };
        let result = tokio::select! {
            result = drained => result,
            // While flows drain, the manager goes on to watch.
            never = &mut watched => match never {},
        };
        // It has handles of the workers.
        drop(watched);
        self.tasks.shutdown().await;
        self.public.shutdown().await;
        drop((self.exposure, self.reloader));
        // The last handles join the workers' threads.
        let threads = (self.former, self.node_ports, self.dataplane);
        spawn_blocking(move || drop(threads)).await?;
        self.admin_server.shutdown().await;
        if !told && result.is_ok() {
            let path = self.config.borrow().admin_socket.clone();
            until_gone(&path, &mut signals).await;
        }
        info!("stopped");
        result
    }

    /// Gives all but the open flows to the new process. False if that has failed, and
    /// this one goes on.
    async fn hand_over(&mut self, taking: Taking) -> bool {
        if let Err(error) = self.former.hand_over(&taking).await {
            warn!(pid = taking.pid, %error, "the hand-over has failed: this process goes on");
            return false;
        }
        self.table.set_draining(true);
        self.admin_lent.set(true);
        self.exposure.release();
        self.public.shutdown().await;
        self.admin_server.shutdown().await;
        self.former.let_go();
        taking.commit().await;
        true
    }

    /// Takes no new flows.
    async fn close(&self) {
        // A load balancer is told at once, by the kernel's refusal. Whom the kernel has
        // accepted before is a flow yet.
        self.exposure.drain();
        self.node_ports.settled().await;
        self.table.set_draining(true);
        self.dataplane.drain();
        self.node_ports.hasten();
    }

    /// Waits for the flows that run, as long as configured or until the next signal.
    async fn drain(&mut self, signals: &mut Signals) -> Result<(), AppError> {
        let limit = self.config.borrow().drain_timeout;
        let drained = timeout(limit, self.dataplane.drained());
        tokio::select! {
            drained = drained => {
                if drained.is_err() {
                    warn!("flows are still open after the time to drain: they are cut");
                }
                Ok(())
            }
            signal = signals.stop() => {
                warn!(signal, "the second signal: flows that are still open are cut");
                Ok(())
            }
            ended = self.tasks.join_next() => Err(why_ended(ended)),
            ended = self.public.join_next() => Err(why_ended(ended)),
            ended = self.admin_server.join_next() => Err(why_ended(ended)),
            reason = self.dataplane.failed() => Err(AppError::Worker { reason }),
            reason = self.node_ports.failed() => Err(AppError::Worker { reason }),
        }
    }

    /// Waits for the flows that run while another process takes what is new. Whether
    /// nothing more is to be waited for then: the first signal to stop has come, or
    /// nobody would start this process anew.
    async fn linger(&mut self, signals: &mut Signals) -> Result<bool, AppError> {
        let (stays, limit, alone, path) = {
            let config = self.config.borrow();
            (
                config.generation.is_some(),
                config.takeover_drain_timeout,
                config.drain_timeout,
                config.admin_socket.clone(),
            )
        };
        info!(timeout = ?limit, "handed over, flows drain");
        // Whoever keeps several says when this one is to end.
        let mut deadline = (!stays).then(|| Instant::now() + limit);
        let (mut told, mut is_gone) = (false, false);
        let successor_gone = gone(&path);
        tokio::pin!(successor_gone);
        let (dataplane, node_ports) = (Arc::clone(&self.dataplane), Arc::clone(&self.node_ports));
        let drained = dataplane.drained();
        tokio::pin!(drained);
        loop {
            tokio::select! {
                () = &mut drained => return Ok(told || !stays),
                () = at(deadline) => {
                    warn!("flows are still open after the time to drain: they are cut");
                    return Ok(told || !stays);
                }
                signal = signals.stop() => {
                    if told {
                        warn!(signal, "the second signal: flows that are still open are cut");
                        return Ok(true);
                    }
                    told = true;
                    notify(NotifyState::Stopping);
                    let time = if stays { limit } else { alone };
                    info!(signal, timeout = ?time, "stopping, flows go on to drain");
                    deadline = earlier(deadline, time);
                }
                () = &mut successor_gone, if !is_gone => {
                    is_gone = true;
                    // Nothing new is carried until this one is out of the way.
                    deadline = earlier(deadline, alone);
                    warn!(timeout = ?alone, "the process that has taken over is gone, flows drain");
                }
                ended = self.tasks.join_next() => return Err(why_ended(ended)),
                reason = dataplane.failed() => return Err(AppError::Worker { reason }),
                reason = node_ports.failed() => return Err(AppError::Worker { reason }),
            }
        }
    }
}

/// In that time, unless it is over before.
fn earlier(deadline: Option<Instant>, time: Duration) -> Option<Instant> {
    let soon = Instant::now() + time;
    Some(deadline.map_or(soon, |before| before.min(soon)))
}

/// Returns at that time; without one, never.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => future::pending().await,
    }
}

/// Waits until the new process, if there is one, is programmed.
async fn programmed<T: Future<Output = io::Result<Taking>>>(
    taking: &mut Option<Pin<Box<T>>>,
) -> io::Result<Taking> {
    match taking {
        Some(taking) => taking.await,
        None => future::pending().await,
    }
}

/// Tells systemd, if it listens (NOTIFY_SOCKET).
pub(super) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager cannot be told");
    }
}
