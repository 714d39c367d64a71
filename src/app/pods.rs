//! Whether pods are served under `--pod-traffic auto`: while the cluster has no
//! NetworkPolicies, which would see the node as the source of a pod's connection
//! and judge it wrongly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::PodTraffic;
use crate::dataplane::Dataplane;
use crate::source::kubernetes::NetworkPolicies;

/// What decides whether pods are served: the setting, and under `auto` what is
/// known of NetworkPolicies.
#[derive(Debug)]
pub(super) struct PodGate {
    dataplane: Arc<Dataplane>,
    state: Mutex<State>,
    known: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    setting: PodTraffic,
    /// What `auto` comes to now; `None` if nobody follows the cluster in it.
    auto: Option<bool>,
}

impl PodGate {
    /// The data plane serves pods as `dataplane` was started to; `auto` is what
    /// the setting of that name would come to.
    pub(super) fn new(dataplane: Arc<Dataplane>, setting: PodTraffic, auto: Option<bool>) -> Self {
        let state = Mutex::new(State { setting, auto });
        Self {
            dataplane,
            state,
            known: watch::Sender::new(false),
        }
    }

    /// What `auto` comes to from now on, and whether that is known or to be on the safe
    /// side.
    pub(super) fn decided(&self, serve: bool, is_known: bool) {
        let mut state = self.state();
        state.auto = Some(serve);
        if state.setting == PodTraffic::Auto {
            self.dataplane.serve_pods(serve);
        }
        drop(state);
        if is_known {
            self.known.send_replace(true);
        }
    }

    /// Returns when the cluster has said what `auto` comes to.
    pub(super) async fn known(&self) {
        // The sender is here.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Whether that setting can be followed without a restart.
    pub(super) fn can(&self, setting: PodTraffic) -> bool {
        setting != PodTraffic::Auto || self.state().auto.is_some()
    }

    /// Follows another setting from now on.
    pub(super) fn set(&self, setting: PodTraffic) {
        let mut state = self.state();
        state.setting = setting;
        match (setting, state.auto) {
            (PodTraffic::Always, _) => self.dataplane.serve_pods(true),
            (PodTraffic::Never, _) => self.dataplane.serve_pods(false),
            (PodTraffic::Auto, Some(serve)) => self.dataplane.serve_pods(serve),
            (PodTraffic::Auto, None) => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `serve` with whether pods are served, and whether that is known, now and
/// whenever it changes. One task; it ends with the source.
pub(super) async fn follow(
    mut policies: watch::Receiver<NetworkPolicies>,
    serve: impl Fn(bool, bool) + Send,
) {
    loop {
        let state = *policies.borrow_and_update();
        serve(is_served(state), state != NetworkPolicies::Unknown);
        match state {
            NetworkPolicies::Present => warn!(
                "the cluster has NetworkPolicies, which would see the node as the source of a \
                 pod's connections: pods are not served; --pod-traffic always serves them"
            ),
            NetworkPolicies::Absent => info!("the cluster has no NetworkPolicies: pods are served"),
            NetworkPolicies::Unknown | NetworkPolicies::Unavailable => {}
        }
        if policies.changed().await.is_err() {
            return;
        }
    }
}

/// Before it is known they are not; where it cannot be known they are, as the
/// source has said.
fn is_served(state: NetworkPolicies) -> bool {
    match state {
        NetworkPolicies::Absent | NetworkPolicies::Unavailable => true,
        NetworkPolicies::Present | NetworkPolicies::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn pods_are_served_while_there_are_no_policies() {
        let (sender, receiver) = watch::channel(NetworkPolicies::Unknown);
        let (told, mut served) = mpsc::channel(1);
        let following = tokio::spawn(follow(receiver, move |serve, is_known| {
            told.try_send((serve, is_known)).unwrap();
        }));
        assert_eq!(served.recv().await, Some((false, false)));
        for (state, serve) in [
            (NetworkPolicies::Unavailable, true),
            (NetworkPolicies::Present, false),
            (NetworkPolicies::Absent, true),
        ] {
            sender.send_replace(state);
            assert_eq!(served.recv().await, Some((serve, true)), "{state:?}");
        }
        drop(sender);
        following.await.unwrap();
    }
}
