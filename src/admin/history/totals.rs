//! What service ports have carried since they are known.

use super::{Arc, BTreeMap, HashMap, flows, since};
use crate::ipvs::{ServicePortName, TrafficView, VirtualAddress, VirtualServerView};

/// Counters of service ports that only grow, also where a service loses one of its
/// addresses. A service port counts on its own while fewer than `limit` others do when
/// it is first seen, and until it goes; the others are counted together, for ever.
#[derive(Debug)]
pub(super) struct Totals {
    limit: usize,
    last: HashMap<VirtualAddress, (Arc<ServicePortName>, TrafficView)>,
    services: BTreeMap<Arc<ServicePortName>, Total>,
    others: Total,
    all: TrafficView,
}

#[derive(Clone, Copy, Debug, Default)]
struct Total {
    traffic: TrafficView,
    flows: u64,
    real_servers: u64,
    /// Any of its addresses is there, or was ever, for those together.
    there: bool,
}

/// What one service port has carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTotal {
    /// Which; none for those beyond the limit together.
    pub service: Option<Arc<ServicePortName>>,
    /// Flows, failures and bytes.
    pub traffic: TrafficView,
    /// Flows open now.
    pub flows: u64,
    /// Real servers that take new flows now, of that of its addresses that has most.
    pub real_servers: u64,
}

impl Totals {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            last: HashMap::new(),
            services: BTreeMap::new(),
            others: Total::default(),
            all: TrafficView::default(),
        }
    }

    /// Takes in what the virtual servers count now.
    pub(super) fn show(&mut self, views: &[VirtualServerView]) {
        for total in self.services.values_mut() {
            (total.there, total.flows, total.real_servers) = (false, 0, 0);
        }
        (self.others.flows, self.others.real_servers) = (0, 0);
        let mut last = HashMap::with_capacity(views.len());
        let mut strangers = Vec::new();
        for view in views {
            let now = (Arc::clone(&view.service), view.traffic);
            let before = self.last.get(&view.address);
            let before = before
                .filter(|(service, _)| *service == view.service)
                .map_or_else(TrafficView::default, |(_, traffic)| *traffic);
            let more = since(view.traffic, before);
            last.insert(view.address, now);
            add(&mut self.all, more);
            match self.services.get_mut(&view.service) {
                Some(total) => total.take(view, more),
                None => strangers.push((view, more)),
            }
        }
        self.last = last;
        // Their places may be taken by those that have come.
        self.services.retain(|_, total| total.there);
        for (view, more) in strangers {
            if self.services.len() < self.limit || self.services.contains_key(&view.service) {
                let service = Arc::clone(&view.service);
                self.services.entry(service).or_default().take(view, more);
            } else {
                self.others.take(view, more);
            }
        }
    }

    /// By name, those together last.
    pub(super) fn told(&self) -> Vec<ServiceTotal> {
        let each = self.services.iter();
        let mut told: Vec<_> = each
            .map(|(service, total)| total.told(Some(Arc::clone(service))))
            .collect();
        if self.others.there {
            told.push(self.others.told(None));
        }
        told
    }

    /// All that was carried.
    pub(super) fn all(&self) -> TrafficView {
        self.all
    }
}

impl Total {
    fn take(&mut self, view: &VirtualServerView, more: TrafficView) {
        add(&mut self.traffic, more);
        self.flows += u64::from(flows(view));
        let serving = view.real_servers.iter().filter(|real| real.weight > 0);
        let serving = u64::try_from(serving.count()).unwrap_or(u64::MAX);
        self.real_servers = self.real_servers.max(serving);
        self.there = true;
    }

    fn told(&self, service: Option<Arc<ServicePortName>>) -> ServiceTotal {
        ServiceTotal {
            service,
            traffic: self.traffic,
            flows: self.flows,
            real_servers: self.real_servers,
        }
    }
}

fn add(sum: &mut TrafficView, more: TrafficView) {
    sum.opened += more.opened;
    sum.failed += more.failed;
    sum.bytes_in += more.bytes_in;
    sum.bytes_out += more.bytes_out;
}
