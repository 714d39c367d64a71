//! `--mode fallback`: taking part only while the kernel does not carry services.
//!
//! [`Follower::run`] is one task, which ends with its future. It looks at the kernel each
//! [`LOOK`], and [`Fallback`] decides.
//!
//! # Leaving without cutting flows
//!
//! When the kernel carries again, new flows are its own before any route is looked at:
//! kube-ipvs0 makes a service's address one of the node, and netfilter rewrites the first
//! packet of a connection. So the routes stay while flows are open here, at most for the
//! time to drain, and do not compete with it. Routes for the flows alone would be no help:
//! what takes packets away does so before them.
//!
//! What is lost: with IPVS the packets of open flows to an address that is on kube-ipvs0
//! reach the node's own stack from then on, which resets them; nothing that a route says
//! comes before the local table. With netfilter they go on, since only the first packet of
//! a connection is rewritten; but where no connection tracking was at work before
//! kube-proxy started it, a packet in mid-flow looks like a first one. UDP flows are not
//! waited for: the client's next datagram goes where the kernel says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::exposure::Exposure;
use super::routes::Wanted;
use crate::admin::health::Health;
use crate::admin::readiness::Blocker;
use crate::dataplane::Dataplane;
use crate::node::fallback::{Decision, Fallback, LOOK};
use crate::node::kernel_proxy::{Kernel, Sight};
use crate::node::links::Node;

/// Whether this proxy takes part, why, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Whether its routes are set.
    pub(super) active: bool,
    /// What the kernel did when that was decided.
    pub(super) reason: Kernel,
    /// When it was decided.
    pub(super) since: Instant,
    /// How often it was decided otherwise than before, from the start on.
    pub(super) changes: u64,
}

/// Where the present standing can be read; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Participation(Arc<watch::Sender<Option<Standing>>>);

impl Participation {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// The present standing; `None` until the kernel was looked at.
    pub(super) fn standing(&self) -> Option<Standing> {
        *self.0.borrow()
    }

    fn decided(&self, Decision { active, reason }: Decision) {
        self.0.send_modify(|standing| {
            let changes = standing.map_or(0, |before| before.changes + 1);
            *standing = Some(Standing {
                active,
                reason,
                since: Instant::now(),
                changes,
            });
        });
    }
}

/// Carries out what is decided.
pub(super) struct Follower {
    pub(super) kube_proxy: SocketAddr,
    pub(super) routes: Wanted,
    pub(super) exposure: Arc<Exposure>,
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) health: Health,
    pub(super) participation: Participation,
    pub(super) drain_timeout: Duration,
    /// Routes are set from the start: the process that it has taken over from took part.
    pub(super) takes_part: bool,
}

impl Follower {
    /// Follows the kernel, for ever. `undecided` is dropped with the first decision.
    pub(super) async fn run(self, node: Node, undecided: Blocker) {
        let mut undecided = Some(undecided);
        let mut fallback = Fallback::default();
        let mut leaving: Option<Leaving> = None;
        let mut told = false;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let sight = match Sight::look(&node, self.kube_proxy).await {
                Ok(sight) => sight,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%error, "the kernel cannot be looked at: the mode stays as it is");
                    }
                    continue;
                }
            };
            told = false;
            let Some(decision) = fallback.seen(sight.kernel(), Instant::now()) else {
                continue;
            };
            let first = undecided.is_some() && !self.takes_part;
            if decision.active {
                // What drains meanwhile goes on.
                drop(leaving.take());
                self.routes.set_active(true);
                self.exposure.set_active(true);
            } else {
                self.exposure.set_active(false);
                if first {
                    self.routes.set_active(false);
                } else {
                    leaving = Some(self.leave());
                }
            }
            let reason = decision.reason;
            if decision.active {
                info!(%reason, "fallback: takes part");
            } else {
                info!(%reason, "fallback: stands by");
            }
            let what = if decision.active {
                "takes part"
            } else {
                "stands by"
            };
            self.health.set_note(format!("{what}: {reason}"));
            self.participation.decided(decision);
            drop(undecided.take());
        }
    }

    /// Takes the routes away once no flow needs them any more.
    fn leave(&self) -> Leaving {
        let dataplane = Arc::clone(&self.dataplane);
        let (routes, patience) = (self.routes.clone(), self.drain_timeout);
        Leaving(tokio::spawn(async move {
            if timeout(patience, dataplane.tcp_drained()).await.is_err() {
                warn!(
                    after = ?patience,
                    "fallback: flows are open that the kernel does not know: their packets are \
                     routed elsewhere from now on"
                );
            }
            routes.set_active(false);
        }))
    }
}

/// Routes that are about to go; they stay if it is dropped.
struct Leaving(JoinHandle<()>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abort();
    }
}
