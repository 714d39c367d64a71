//! The routes into the TUN where nobody has fixed them: those that the cluster's
//! service ranges and the virtual IPs call for. Where service ranges are fixed, only
//! external and load balancer IPs outside of them have routes here. An address of the
//! node has none: listeners serve it ([`crate::node_port`]).
//!
//! Where the service ranges are known each is a route, and a virtual IP outside
//! of them has one of its own; where they are not known, every virtual IP has. A
//! route is added before another that it replaces is removed, so that no packet
//! leaves the node meanwhile. One that flows still use stays until the last of them has
//! ended: connections of a Service that is removed go on.
//!
//! [`keep`] is one task. It ends with its future, and the routes with the device.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use ipnet::IpNet;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::admin::readiness::Blocker;
use crate::service::{Change, Exposure, VirtualAddress, VirtualServerSpec};
use crate::source::kubernetes::ServiceCidrs;

mod device;

pub(super) use device::Device;

/// Requests to the kernel at a time: it takes them one by one, but the way there
/// and back is shared.
const AT_A_TIME: usize = 32;

/// How often a route that was refused, since another is in its way for instance,
/// is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(30);

/// How many times within [`RETRY`] it is looked whether the flows that hold a route have
/// ended.
const LOOKS: u32 = 6;

/// Sets routes. The [`Device`] does.
pub(super) trait RouteTable: Sync {
    /// Why not.
    type Error: fmt::Display + Send;

    /// Adds a route; one that is there already is no error.
    fn add(&self, route: IpNet) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Removes a route; one that is not there is no error.
    fn remove(&self, route: IpNet) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The virtual IPs of open flows that these routes lead to.
    fn used(&self, routes: Vec<IpNet>) -> impl Future<Output = BTreeSet<IpAddr>> + Send;
}

/// What decides about the routes; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Routes that the operator has fixed: cluster IPs get no others.
    fixed: Option<Vec<IpNet>>,
    /// The fixed ones too are set and removed here.
    sets_fixed: bool,
    /// There are no others.
    only_fixed: bool,
    /// Nothing is routed for the present.
    idle: bool,
    /// Addresses of the node, which no route can lead away from it.
    own: BTreeSet<IpAddr>,
    addresses: BTreeSet<VirtualAddress>,
    /// The first full state is in here.
    complete: bool,
}

impl Wanted {
    /// Where these routes are fixed: only external and load balancer IPs outside of
    /// them have routes of their own.
    pub(super) fn beside(fixed: Vec<IpNet>) -> Self {
        let wanted = Self::default();
        wanted.lock().fixed = Some(fixed);
        wanted
    }

    /// Where no route is set beside the fixed ones.
    pub(super) fn only_fixed(self) -> Self {
        self.lock().only_fixed = true;
        self
    }

    /// Where nothing is routed until [`set_active`](Self::set_active) says so.
    pub(super) fn idle(self) -> Self {
        let mut state = self.lock();
        state.sets_fixed = true;
        state.idle = true;
        drop(state);
        self
    }

    /// Sets the routes, or takes all of them away.
    pub(super) fn set_active(&self, active: bool) {
        self.lock().idle = !active;
        self.0.changed.notify_one();
    }

    /// Takes the node's addresses: what comes to them is for listeners.
    pub(super) fn set_own(&self, own: BTreeSet<IpAddr>) {
        let mut state = self.lock();
        let changed = state.own != own;
        state.own = own;
        drop(state);
        if changed {
            self.0.changed.notify_one();
        }
    }

    /// Takes changes of virtual servers, and whether the first full state is in.
    pub(super) fn programmed(&self, changes: &[Change], complete: bool) {
        let mut state = self.lock();
        let mut changed = complete && !state.complete;
        state.complete |= complete;
        for change in changes {
            changed |= match change {
                Change::Upsert(spec) if state.may_route(spec.exposure) => {
                    state.addresses.insert(spec.address)
                }
                Change::Upsert(VirtualServerSpec { address, .. }) | Change::Remove(address) => {
                    state.addresses.remove(address)
                }
                Change::HealthCheck(_) | Change::RemoveHealthCheck(_) | Change::Node(_) => false,
            };
        }
        drop(state);
        if changed {
            self.0.changed.notify_one();
        }
    }

    /// The routes, without those that were refused, and whether the first full
    /// state is among them.
    fn target(&self, cidrs: &ServiceCidrs, refused: &BTreeSet<IpNet>) -> (BTreeSet<IpNet>, bool) {
        let state = self.lock();
        if state.idle {
            return (BTreeSet::new(), state.complete);
        }
        let covering: Vec<IpNet> = match cidrs {
            // They are about to be known, and host routes would be in vain.
            ServiceCidrs::Unknown if state.awaits_ranges() => {
                return (BTreeSet::new(), false);
            }
            ServiceCidrs::Unknown | ServiceCidrs::Unavailable => Vec::new(),
            ServiceCidrs::Known(known) => {
                let nets = widest(known).filter(|net| !refused.contains(net));
                nets.collect()
            }
        };
        let mut target: BTreeSet<IpNet> = covering.iter().copied().collect();
        if state.sets_fixed {
            let fixed = state.fixed.iter().flatten();
            target.extend(fixed.filter(|net| !refused.contains(net)));
        }
        let covering = state.fixed.as_ref().unwrap_or(&covering);
        let mut last = None;
        for VirtualAddress { ip, .. } in &state.addresses {
            // Sorted by IP first.
            if last.replace(*ip) == Some(*ip) || covering.iter().any(|net| net.contains(ip)) {
                continue;
            }
            let host = IpNet::from(*ip);
            if !state.own.contains(ip) && !refused.contains(&host) {
                target.insert(host);
            }
        }
        (target, state.complete)
    }

    fn is_idle(&self) -> bool {
        self.lock().idle
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether nothing can be said before the ranges are known.
    fn awaits_ranges(&self) -> bool {
        let sets_fixed = self.sets_fixed && self.fixed.is_some();
        !self.complete && !sets_fixed
    }

    /// Whether virtual servers of that kind have routes, if anything does not cover
    /// them.
    fn may_route(&self, exposure: Exposure) -> bool {
        match exposure {
            Exposure::ClusterIp => self.fixed.is_none(),
            Exposure::LoadBalancerIp | Exposure::ExternalIp => !self.only_fixed,
            Exposure::NodePort => false,
        }
    }
}

/// The networks that lie in no other.
fn widest(nets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let within = |net: &IpNet| nets.iter().any(|other| other != net && other.contains(net));
    nets.iter().copied().filter(move |net| !within(net))
}

/// Makes the routes as they are wanted, for ever. `unrouted` is dropped once those
/// of the first full state are set. What was refused is tried again after `retry`, what
/// is held looked at more often.
/// `server` are the addresses of the API server, which had better not be among
/// them. `found` are routes that are there already, from a former process.
pub(super) async fn keep<T: RouteTable>(
    table: T,
    wanted: Wanted,
    mut cidrs: watch::Receiver<ServiceCidrs>,
    unrouted: Blocker,
    retry: Duration,
    server: Vec<IpAddr>,
    found: BTreeSet<IpNet>,
) {
    let mut unrouted = Some(unrouted);
    let mut retry_at = None;
    let mut server = server;
    let mut routes = Routes {
        table,
        installed: found,
        refused: BTreeSet::new(),
        told: BTreeSet::new(),
        held: BTreeSet::new(),
    };
    loop {
        let ranges = cidrs.borrow_and_update().clone();
        let complete = routes.reconcile(&wanted, &ranges).await;
        warn_of_hazard(&mut server, routes.installed.iter());
        if complete && let Some(unrouted) = unrouted.take() {
            info!(
                routes = routes.installed.len(),
                "services are routed into the TUN"
            );
            drop(unrouted);
        }
        retry_at = if routes.refused.is_empty() {
            None
        } else {
            retry_at.or_else(|| Some(Instant::now() + retry))
        };
        let time_to_retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let time_to_let_go = async {
            if routes.held.is_empty() {
                pending::<()>().await;
            }
            sleep(retry / LOOKS).await;
        };
        tokio::select! {
            () = time_to_let_go => {}
            () = wanted.0.changed.notified() => {}
            () = changed(&mut cidrs) => {}
            () = time_to_retry => {
                retry_at = None;
                routes.retry(&wanted, &ranges).await;
            }
        }
    }
}

/// Waits for other service ranges, which come while their source lives.
async fn changed(cidrs: &mut watch::Receiver<ServiceCidrs>) {
    if cidrs.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// Warns once if the API server is reached through what the proxy itself serves.
pub(super) fn warn_of_hazard<'a>(
    server: &mut Vec<IpAddr>,
    mut routes: impl Iterator<Item = &'a IpNet>,
) {
    let hazard = routes.find_map(|route| {
        let address = server.iter().find(|address| route.contains(*address));
        address.map(|address| (*address, *route))
    });
    if let Some((address, route)) = hazard {
        warn!(
            %address, %route,
            "the API server is reached by a service address, which this proxy serves itself: after \
             a restart it may not come to learn of services; give the server's own address with \
             --master URL"
        );
        server.clear();
    }
}

/// Names the routes of a former process that a process with fixed routes alone leaves as
/// they are: it may not remove them.
pub(super) fn tell_of_left(left: &BTreeSet<IpNet>, tun: &str) {
    if left.is_empty() {
        return;
    }
    let names: Vec<_> = left.iter().map(IpNet::to_string).collect();
    warn!(
        routes = names.join(","),
        mend = format!("as root, for each that is not wanted: `ip route del ROUTE dev {tun}`"),
        "the former process has set routes that stay as long as the device: with --fixed-routes \
         this one neither sets nor removes any. What they lead to is served while a Service \
         has it"
    );
}

/// What there is.
struct Routes<T> {
    table: T,
    installed: BTreeSet<IpNet>,
    /// Not to be had at present.
    refused: BTreeSet<IpNet>,
    /// Refused, which was told.
    told: BTreeSet<IpNet>,
    /// Not wanted any more, but used.
    held: BTreeSet<IpNet>,
}

impl<T: RouteTable> Routes<T> {
    /// Sets what is missing, then removes what is not wanted. The answer is
    /// whether the first full state is routed.
    async fn reconcile(&mut self, wanted: &Wanted, cidrs: &ServiceCidrs) -> bool {
        loop {
            let (target, complete) = wanted.target(cidrs, &self.refused);
            let missing: Vec<IpNet> = target.difference(&self.installed).copied().collect();
            if self.add(missing).await {
                // What one would have covered needs routes of its own.
                continue;
            }
            let surplus: Vec<IpNet> = self.installed.difference(&target).copied().collect();
            self.held = if surplus.is_empty() || wanted.is_idle() {
                BTreeSet::new()
            } else {
                let mut used = self.table.used(surplus.clone()).await;
                used.retain(|ip| !target.iter().any(|net| net.contains(ip)));
                let is_used = |route: &&IpNet| used.iter().any(|ip| route.contains(ip));
                surplus.iter().filter(is_used).copied().collect()
            };
            for route in surplus {
                if self.held.contains(&route) {
                    debug!(%route, "a route stays while open flows use it");
                    continue;
                }
                match self.table.remove(route).await {
                    Ok(()) => debug!(%route, "route removed"),
                    Err(error) => warn!(%route, %error, "a route cannot be removed"),
                }
                self.installed.remove(&route);
            }
            if self.refused.is_empty() {
                self.told.clear();
            }
            return complete;
        }
    }

    /// Tries once more what was refused.
    async fn retry(&mut self, wanted: &Wanted, cidrs: &ServiceCidrs) {
        let (target, _) = wanted.target(cidrs, &BTreeSet::new());
        self.refused.retain(|route| target.contains(route));
        let again: Vec<IpNet> = self.refused.iter().copied().collect();
        self.add(again).await;
    }

    /// Adds routes. The answer is whether one was refused that was not before.
    async fn add(&mut self, routes: Vec<IpNet>) -> bool {
        let table = &self.table;
        let adding = routes
            .into_iter()
            .map(|route| async move { (route, table.add(route).await) });
        let mut adding = std::pin::pin!(stream::iter(adding).buffer_unordered(AT_A_TIME));
        let mut refused_anew = false;
        while let Some((route, added)) = adding.next().await {
            match added {
                Ok(()) => {
                    debug!(%route, "route added");
                    self.installed.insert(route);
                    self.refused.remove(&route);
                    self.told.remove(&route);
                }
                Err(error) => {
                    refused_anew |= self.refused.insert(route);
                    if self.told.insert(route) {
                        warn!(
                            %route, %error,
                            "services are not reached by this route, which is tried again"
                        );
                    }
                }
            }
        }
        refused_anew
    }
}

#[cfg(test)]
mod tests;
