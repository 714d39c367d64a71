//! The service manager's watchdog (WATCHDOG_USEC): it is told that the proxy is
//! alive as long as every worker answers and no change waits to be programmed for
//! too long. One that hangs is killed by the manager, which starts it again.
//!
//! No task of its own: it belongs to whoever runs the proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::warn;

use crate::admin::health::Health;
use crate::dataplane::Dataplane;
use crate::node_port::NodePorts;

/// Those who have to be alive.
#[derive(Debug)]
pub(super) struct Vitals {
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) node_ports: Arc<NodePorts>,
    pub(super) health: Health,
}

impl Vitals {
    /// What does not answer within `patience`, if anything.
    async fn missing(&self, patience: Duration) -> Option<&'static str> {
        if !self.health.is_healthy(Instant::now()) {
            Some("the control loop")
        } else if !self.dataplane.answers(patience).await {
            Some("a worker")
        } else if !self.node_ports.answers(patience).await {
            Some("a worker of the node ports")
        } else {
            None
        }
    }

    /// Tells the service manager, if it has asked to be told, for ever.
    pub(super) async fn tell(&self) -> Infallible {
        let Some(interval) = sd_notify::watchdog_enabled() else {
            return std::future::pending().await;
        };
        self.tell_every(interval, || super::run::notify(NotifyState::Watchdog))
            .await
    }

    /// Calls `alive` twice in an interval, as sd_watchdog_enabled(3) recommends, while
    /// nothing is missing.
    async fn tell_every(&self, interval: Duration, alive: impl Fn()) -> Infallible {
        let mut well = true;
        loop {
            // Two groups of workers are asked one after the other.
            match self.missing(interval / 4).await {
                None => {
                    alive();
                    well = true;
                }
                Some(part) => {
                    if well {
                        warn!(
                            part,
                            "does not answer: the service manager is not told that the proxy is alive"
                        );
                    }
                    well = false;
                }
            }
            sleep(interval / 2).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::admin::health::{Family, HEALTH_TIMEOUT};
    use crate::admin::readiness::Readiness;
    use crate::app::testing::{dataplane, node_ports};

    #[tokio::test]
    async fn a_control_loop_that_hangs_is_not_passed_over() {
        let dataplane = dataplane();
        let vitals = Vitals {
            node_ports: node_ports(&dataplane),
            dataplane,
            health: Health::new(Readiness::new(), [Family::IPv4]),
        };
        let (told, mut alive) = mpsc::channel(1);
        let tell = || {
            let _ = told.try_send(());
        };
        let interval = Duration::from_millis(20);
        tokio::select! {
            never = vitals.tell_every(interval, tell) => match never {},
            first = alive.recv() => assert_eq!(first, Some(())),
        }
        let long_ago = Instant::now().checked_sub(2 * HEALTH_TIMEOUT).unwrap();
        vitals.health.queued(long_ago);
        assert_eq!(
            vitals.missing(HEALTH_TIMEOUT).await,
            Some("the control loop")
        );
        let silent = timeout(
            10 * interval,
            vitals.tell_every(interval, || panic!("not alive")),
        );
        assert!(silent.await.is_err());
        vitals.health.updated(SystemTime::now());
        assert_eq!(vitals.missing(HEALTH_TIMEOUT).await, None);
    }
}
