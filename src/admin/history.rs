//! How fast things go, now and over the last minutes, and what each service port has
//! carried since the start.
//!
//! A [`Recorder`] is shown the virtual servers once every [`INTERVAL`] by a task of
//! the control plane, and keeps what it needs for rates and, in rings of fixed size,
//! the values of the last [`SAMPLES`] intervals. It has no clock and no task.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::{History, Rates};
use crate::dataplane::Counters;
use crate::ipvs::{ServicePortName, TrafficView, VirtualAddress, VirtualServerView};

mod ring;
mod totals;

use ring::Ring;
pub use totals::ServiceTotal;
use totals::Totals;

/// Between two samples.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Samples of a history: five minutes.
pub const SAMPLES: usize = 150;

/// What is remembered of virtual servers and of the proxy as a whole.
#[derive(Debug)]
pub struct Recorder {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    sampled: Option<Instant>,
    servers: HashMap<VirtualAddress, Server>,
    /// How many of them have a ring.
    rings: usize,
    limit: usize,
    whole: Whole,
    totals: Totals,
}

/// One virtual server.
#[derive(Debug)]
struct Server {
    service: Arc<ServicePortName>,
    traffic: TrafficView,
    rates: Option<Rates>,
    ring: Option<Box<Ring>>,
    real_servers: HashMap<SocketAddr, Real>,
    /// Shown in the last sample.
    there: bool,
}

#[derive(Clone, Copy, Debug)]
struct Real {
    traffic: TrafficView,
    rates: Option<Rates>,
}

/// The proxy as a whole.
#[derive(Debug, Default)]
struct Whole {
    counters: Option<Counters>,
    before: Option<Counters>,
    /// Seconds between the two.
    seconds: f64,
    traffic: TrafficView,
    rates: Option<Rates>,
    ring: Ring,
}

/// What is known of one virtual server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerRates {
    /// Its own; none before the second sample.
    pub rates: Option<Rates>,
    /// Its real servers'.
    pub real_servers: HashMap<SocketAddr, Rates>,
    /// The last minutes, if asked for and kept.
    pub history: Option<History>,
}

/// What is known of the whole proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WholeRates {
    /// None before the second sample.
    pub rates: Option<Rates>,
    /// The last minutes.
    pub history: History,
    /// The counters at the last sample and at the one before, and the seconds between.
    pub counters: Option<(Counters, Counters, f64)>,
}

impl Recorder {
    /// With the history of `limit` virtual servers and the totals of as many service
    /// ports; those that come later are counted together.
    pub fn new(limit: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                sampled: None,
                servers: HashMap::new(),
                rings: 0,
                limit,
                whole: Whole::default(),
                totals: Totals::new(limit),
            }),
        }
    }

    /// Takes a sample.
    pub fn sample(&self, now: Instant, servers: &[VirtualServerView], counters: Counters) {
        let mut inner = self.lock();
        let seconds = inner
            .sampled
            .replace(now)
            .map(|before| now.saturating_duration_since(before).as_secs_f64())
            .filter(|seconds| *seconds > 0.0);
        inner.sample_servers(servers, seconds);
        inner.totals.show(servers);
        let traffic = inner.totals.all();
        inner.whole.sample(traffic, counters, seconds);
    }

    /// What each service port has carried since it is known, by name, and last those
    /// beyond the limit together, if there are such.
    pub fn totals(&self, servers: &[VirtualServerView]) -> Vec<ServiceTotal> {
        let mut inner = self.lock();
        inner.totals.show(servers);
        inner.totals.told()
    }

    /// What is known of a virtual server.
    pub fn server(&self, address: &VirtualAddress, history: bool) -> ServerRates {
        let inner = self.lock();
        let Some(server) = inner.servers.get(address) else {
            return ServerRates::default();
        };
        let real_servers = server
            .real_servers
            .iter()
            .filter_map(|(address, real)| Some((*address, real.rates?)));
        let ring = server.ring.as_ref().filter(|_| history);
        ServerRates {
            rates: server.rates,
            real_servers: real_servers.collect(),
            history: ring.map(|ring| ring.told()),
        }
    }

    /// What is known of the whole proxy.
    pub fn whole(&self) -> WholeRates {
        let inner = self.lock();
        let whole = &inner.whole;
        let counters = whole.before.clone().zip(whole.counters.clone());
        WholeRates {
            rates: whole.rates,
            history: whole.ring.told(),
            counters: counters.map(|(before, now)| (now, before, whole.seconds)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn sample_servers(&mut self, views: &[VirtualServerView], seconds: Option<f64>) {
        self.servers
            .values_mut()
            .for_each(|server| server.there = false);
        for view in views {
            let known = self.servers.get_mut(&view.address);
            match known.filter(|server| server.service == view.service) {
                Some(server) => server.sample(view, seconds),
                None => {
                    let former = self.servers.insert(view.address, Server::new(view));
                    self.rings -= usize::from(former.is_some_and(|server| server.ring.is_some()));
                }
            }
        }
        let rings = &mut self.rings;
        self.servers.retain(|_, server| {
            if !server.there && server.ring.is_some() {
                *rings -= 1;
            }
            server.there
        });
        // In the order that they are shown, so that it does not depend on hashes.
        for view in views {
            if self.rings >= self.limit {
                break;
            }
            if let Some(server) = self.servers.get_mut(&view.address)
                && server.ring.is_none()
            {
                server.ring = Some(Box::default());
                self.rings += 1;
            }
        }
    }
}

impl Server {
    fn new(view: &VirtualServerView) -> Self {
        Self {
            service: Arc::clone(&view.service),
            traffic: view.traffic,
            rates: None,
            ring: None,
            real_servers: reals(view)
                .map(|(address, traffic)| {
                    let rates = None;
                    (address, Real { traffic, rates })
                })
                .collect(),
            there: true,
        }
    }

    fn sample(&mut self, view: &VirtualServerView, seconds: Option<f64>) {
        self.there = true;
        let Some(seconds) = seconds else {
            return;
        };
        let rates = rates(since(view.traffic, self.traffic), seconds);
        self.traffic = view.traffic;
        self.rates = Some(rates);
        if let Some(ring) = &mut self.ring {
            ring.push(&rates, flows(view));
        }
        let before = std::mem::take(&mut self.real_servers);
        for (address, traffic) in reals(view) {
            let former = before
                .get(&address)
                .map_or_else(TrafficView::default, |real| real.traffic);
            let rates = Some(self::rates(since(traffic, former), seconds));
            self.real_servers.insert(address, Real { traffic, rates });
        }
    }
}

impl Whole {
    fn sample(&mut self, traffic: TrafficView, counters: Counters, seconds: Option<f64>) {
        let flows = u32::try_from(counters.flows).unwrap_or(u32::MAX);
        self.before = self.counters.replace(counters);
        let former = std::mem::replace(&mut self.traffic, traffic);
        if let Some(seconds) = seconds {
            self.seconds = seconds;
            let rates = rates(since(traffic, former), seconds);
            self.rates = Some(rates);
            self.ring.push(&rates, flows);
        }
    }
}

/// The real servers' counters, in the words of a virtual server's.
fn reals(view: &VirtualServerView) -> impl Iterator<Item = (SocketAddr, TrafficView)> + '_ {
    view.real_servers.iter().map(|real| {
        let traffic = TrafficView {
            opened: real.connections.saturating_sub(real.failed),
            failed: real.failed,
            bytes_in: real.bytes_in,
            bytes_out: real.bytes_out,
        };
        (real.address, traffic)
    })
}

/// Flows open now.
fn flows(view: &VirtualServerView) -> u32 {
    view.real_servers
        .iter()
        .map(|real| real.active + real.inactive)
        .sum()
}

/// What has come since `before`. Counters that went back have begun anew.
fn since(now: TrafficView, before: TrafficView) -> TrafficView {
    let less = |now: u64, before: u64| if now < before { now } else { now - before };
    TrafficView {
        opened: less(now.opened, before.opened),
        failed: less(now.failed, before.failed),
        bytes_in: less(now.bytes_in, before.bytes_in),
        bytes_out: less(now.bytes_out, before.bytes_out),
    }
}

fn rates(traffic: TrafficView, seconds: f64) -> Rates {
    Rates {
        new_flows_per_second: traffic.opened as f64 / seconds,
        bytes_to_real_server_per_second: traffic.bytes_in as f64 / seconds,
        bytes_to_client_per_second: traffic.bytes_out as f64 / seconds,
    }
}

#[cfg(test)]
mod tests;
