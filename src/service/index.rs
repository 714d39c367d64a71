//! The index: objects in, changes of virtual servers out.
//!
//! A plain struct without clock, IO or task. A slice may come before its
//! Service and a Service before its slices; the state depends on the objects
//! that exist, not on the order they came in. An event touches the virtual
//! servers of the Services it concerns, and a virtual server that is to be as it
//! was yields no change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::take;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::Family;
use super::endpoint::EndpointSlice;
use super::object::{
    Event, NamespacedName, Node, Object, ObjectError, ObjectKey, ObjectKind, ObjectWarning, Origin,
};
use super::service_port::{Service, ServicePort};
use super::slice_cache::SliceCache;
use super::topology::ThisNode;
use super::{Change, Exposure, HealthCheck, NodeNetwork, VirtualAddress, VirtualServerSpec};
use claims::Claims;
use emitted::Emitted;
use namespaces::Namespaces;
use specify::Selection;

mod claims;
mod emitted;
mod explain;
mod namespaces;
mod specify;

pub use explain::{ExplainedEndpoint, Explanation, Placing};

/// Everything known of Services, EndpointSlices and this node.
#[derive(Debug)]
pub struct Index {
    node: ThisNode,
    network: NodeNetwork,
    /// What was last said of it.
    network_told: NodeNetwork,
    /// Networks of the cluster's pods, if they are given.
    cluster_cidrs: Vec<IpNet>,
    ipvs_compat: bool,
    services: HashMap<NamespacedName, Stored>,
    slices: SliceCache,
    namespaces: Namespaces,
    claims: Claims,
    /// What was last said of each virtual server.
    emitted: HashMap<VirtualAddress, Emitted>,
    /// What was last said of each health check node port.
    health_checks: BTreeMap<NamespacedName, HealthCheck>,
}

/// Service ports with policy Local that have endpoints, but none on this node:
/// the values of kube-proxy's `sync_proxy_rules_no_local_endpoints_total`, for
/// one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// `traffic_policy="internal"`.
    pub internal: usize,
    /// `traffic_policy="external"`.
    pub external: usize,
}

/// What came of some events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What changes: this node first, then virtual servers in the order of
    /// addresses, then health checks in that of names; one change at most for
    /// each.
    pub changes: Vec<Change>,
    /// What was left out, each once as long as its object stays as it is.
    pub warnings: Vec<ObjectWarning>,
}

#[derive(Debug)]
struct Stored {
    service: Arc<Service>,
    origin: Option<Origin>,
}

/// What an event leaves to be done.
#[derive(Default)]
struct Dirty {
    addresses: BTreeSet<VirtualAddress>,
    /// Those whose health check may say something else.
    services: BTreeSet<NamespacedName>,
    warnings: Vec<ObjectWarning>,
}

impl Index {
    /// An empty index for the node of that name.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node: ThisNode {
                name: node_name.into(),
                zone: None,
            },
            network: NodeNetwork::default(),
            network_told: NodeNetwork::default(),
            cluster_cidrs: Vec::new(),
            ipvs_compat: false,
            services: HashMap::new(),
            slices: SliceCache::default(),
            namespaces: Namespaces::default(),
            claims: Claims::default(),
            emitted: HashMap::new(),
            health_checks: BTreeMap::new(),
        }
    }

    /// Whether policies Local are followed as kube-proxy's IPVS mode does, rather
    /// than its iptables and nftables modes. To be said before the first event.
    pub fn with_ipvs_compat(mut self, ipvs_compat: bool) -> Self {
        self.ipvs_compat = ipvs_compat;
        self
    }

    /// Tells pods by these networks, as kube-proxy's detector ClusterCIDR does; those
    /// of a family of which none is given, by the networks that the Node names. To be
    /// said before the first event.
    pub fn with_cluster_cidrs(mut self, cluster_cidrs: Vec<IpNet>) -> Self {
        self.cluster_cidrs = cluster_cidrs;
        self.network = self.network_of(NodeNetwork::default());
        self
    }

    /// Takes one event.
    pub fn apply(&mut self, event: Event) -> Outcome {
        self.apply_all([event])
    }

    /// Takes events together: each virtual server concerned is worked out once,
    /// after the last of them.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Outcome {
        let mut changes = Vec::new();
        let warnings = self.apply_in_portions(events, usize::MAX, |all| changes = all);
        Outcome { changes, warnings }
    }

    /// Takes events together, and gives what changes in portions of at most so many
    /// changes, in the order of [`Outcome::changes`]: a whole cluster at once is
    /// more than need be in memory. The answer is what was left out.
    pub fn apply_in_portions(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        portion: usize,
        mut give: impl FnMut(Vec<Change>),
    ) -> Vec<ObjectWarning> {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                Event::Apply { object, origin } => self.take(object, origin, &mut dirty),
                Event::Delete(key) => self.forget(&key, &mut dirty),
            }
        }
        let Dirty {
            addresses,
            services,
            mut warnings,
        } = dirty;
        let mut changes = Vec::new();
        if self.network != self.network_told {
            self.network_told.clone_from(&self.network);
            changes.push(Change::Node(self.network.clone()));
        }
        for address in addresses {
            changes.extend(self.settle(address));
            if changes.len() >= portion {
                give(take(&mut changes));
            }
            for (loser, error) in self.claims.new_conflicts(&address) {
                warnings.push(ObjectWarning {
                    origin: self.services.get(&loser).and_then(|s| s.origin.clone()),
                    object: ObjectKey {
                        kind: ObjectKind::Service,
                        name: loser,
                    },
                    error,
                });
            }
        }
        changes.extend(services.iter().filter_map(|name| self.settle_health(name)));
        if !changes.is_empty() {
            give(changes);
        }
        warnings
    }

    /// This node as far as it is known.
    pub fn node(&self) -> &ThisNode {
        &self.node
    }

    /// The Service of that name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(|stored| &*stored.service)
    }

    /// All Services, by namespace and name.
    pub fn services(&self) -> Vec<&Service> {
        let mut all: Vec<_> = self.services.values().map(|s| &*s.service).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The virtual servers as they should be, by address.
    pub fn virtual_servers(&self) -> Vec<VirtualServerSpec> {
        let mut all: Vec<_> = self.emitted.values().map(Emitted::spec).collect();
        all.sort_by_key(|spec| spec.address);
        all
    }

    /// What health check node ports should say, by Service.
    pub fn health_checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.health_checks.values()
    }

    /// How many service ports lack local endpoints in this family.
    pub fn no_local_endpoints(&self, family: Family) -> NoLocalEndpoints {
        let (mut internal, mut external) = (BTreeSet::new(), BTreeSet::new());
        for emitted in self.emitted.values().filter(|e| e.lacks_local) {
            let spec = &emitted.spec;
            if Family::of(spec.address.ip) != family {
                continue;
            }
            let names = if spec.exposure.is_external() {
                &mut external
            } else {
                &mut internal
            };
            names.insert(&spec.service);
        }
        NoLocalEndpoints {
            internal: internal.len(),
            external: external.len(),
        }
    }

    /// Is nothing known?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.slices.is_empty()
            && self.namespaces.is_empty()
            && self.claims.is_empty()
            && self.emitted.is_empty()
            && self.health_checks.is_empty()
    }

    fn take(&mut self, object: Object, origin: Option<Origin>, dirty: &mut Dirty) {
        match object {
            Object::Service(service) => self.take_service(service, origin, dirty),
            Object::EndpointSlice(slice) => self.take_slice(slice, origin.as_ref(), dirty),
            Object::Node(node) => self.take_node(&node.name.name, Some(&node), dirty),
            Object::Namespace(namespace) => {
                self.take_namespace(namespace, origin.as_ref(), dirty);
            }
        }
    }

    fn forget(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        match key.kind {
            ObjectKind::Service => {
                if let Some(stored) = self.services.remove(&key.name) {
                    self.release(&stored.service, dirty);
                }
            }
            ObjectKind::EndpointSlice => {
                if let Some(service) = self.slices.remove(&key.name) {
                    self.touch(&service, dirty);
                }
            }
            ObjectKind::Node => self.take_node(&key.name.name, None, dirty),
            ObjectKind::Namespace => self.forget_namespace(&key.name.name, dirty),
        }
    }

    fn take_service(&mut self, service: Arc<Service>, origin: Option<Origin>, dirty: &mut Dirty) {
        if let Some(stored) = self.services.get_mut(&service.name) {
            stored.origin.clone_from(&origin);
            if stored.service == service {
                return;
            }
            let before = stored.service.clone();
            self.release(&before, dirty);
        }
        warn(
            dirty,
            &service.errors,
            || ObjectKey {
                kind: ObjectKind::Service,
                name: service.name.clone(),
            },
            origin.as_ref(),
        );
        for (address, exposure, port) in service.addresses() {
            self.claims.add(address, exposure, &service, port);
            dirty.addresses.insert(address);
        }
        dirty.services.insert(service.name.clone());
        let name = service.name.clone();
        self.services.insert(name, Stored { service, origin });
    }

    fn take_slice(
        &mut self,
        slice: Arc<EndpointSlice>,
        origin: Option<&Origin>,
        dirty: &mut Dirty,
    ) {
        if self.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        warn(
            dirty,
            &slice.errors,
            || ObjectKey {
                kind: ObjectKind::EndpointSlice,
                name: slice.name.clone(),
            },
            origin,
        );
        let touched = self.slices.apply(slice);
        for service in touched.before.iter().chain([&touched.after]) {
            self.touch(service, dirty);
        }
    }

    fn take_node(&mut self, name: &Arc<str>, node: Option<&Node>, dirty: &mut Dirty) {
        if *name != self.node.name {
            return;
        }
        let network = match node {
            Some(node) => node.network.clone(),
            None => NodeNetwork {
                // What was last said of it, as kube-proxy.
                leaving: self.network.leaving,
                ..NodeNetwork::default()
            },
        };
        self.network = self.network_of(network);
        let zone = node.and_then(|n| n.zone.as_ref());
        if self.node.zone.as_ref() != zone {
            self.node.zone = zone.cloned();
            dirty.addresses.extend(self.emitted.keys().copied());
        }
    }

    /// With the networks of the cluster's pods in place of those of the node's.
    fn network_of(&self, mut network: NodeNetwork) -> NodeNetwork {
        let given = &self.cluster_cidrs;
        let is_given = |net: &IpNet| {
            given
                .iter()
                .any(|its| its.addr().is_ipv4() == net.addr().is_ipv4())
        };
        network.pod_cidrs.retain(|net| !is_given(net));
        network.pod_cidrs.extend(given);
        network
    }

    /// Takes the claims of a Service back.
    fn release(&mut self, service: &Service, dirty: &mut Dirty) {
        for (address, ..) in service.addresses() {
            self.claims.remove(&address, &service.name);
            dirty.addresses.insert(address);
        }
        dirty.services.insert(service.name.clone());
    }

    /// Endpoints of a Service have changed.
    fn touch(&self, service: &NamespacedName, dirty: &mut Dirty) {
        if let Some(stored) = self.services.get(service) {
            let addresses = stored.service.addresses();
            let addresses = addresses.into_iter().map(|(address, ..)| address);
            dirty.addresses.extend(addresses);
            dirty.services.insert(service.clone());
        }
    }

    /// Works out one virtual server and says what changed.
    fn settle(&mut self, address: VirtualAddress) -> Option<Change> {
        let Some(selection) = self.select(address) else {
            self.emitted.remove(&address)?;
            return Some(Change::Remove(address));
        };
        let mut spec = selection.spec();
        spec.access_log = self.access_log(&spec.service);
        let new = Emitted::new(spec, selection.lacks_local());
        let is_new = self.emitted.get(&address).is_none_or(|e| !e.says_as(&new));
        let change = is_new.then(|| Change::Upsert(new.spec()));
        self.emitted.insert(address, new);
        change
    }

    /// Counts for the health check node port of one Service.
    fn settle_health(&mut self, name: &NamespacedName) -> Option<Change> {
        let service = self.services.get(name).map(|stored| &stored.service);
        let Some((service, port)) = service.and_then(|s| Some((s, s.health_check_node_port?)))
        else {
            self.health_checks.remove(name)?;
            return Some(Change::RemoveHealthCheck(name.clone()));
        };
        let check = HealthCheck {
            service: name.clone(),
            port,
            local_endpoints: self.local_ready(service),
        };
        if self.health_checks.get(name) == Some(&check) {
            return None;
        }
        self.health_checks.insert(name.clone(), check.clone());
        Some(Change::HealthCheck(check))
    }

    fn local_ready(&self, service: &Service) -> usize {
        let count = |family| {
            let ports = service.ports.iter();
            let all = ports.flat_map(|p| self.slices.endpoints(&p.name, family, &self.node.name));
            let ready = all.filter(|e| e.local && e.conditions.ready);
            ready.map(|e| e.address.ip()).collect::<BTreeSet<_>>().len()
        };
        Family::ALL.map(count).into_iter().max().unwrap_or(0)
    }

    fn owner(&self, address: &VirtualAddress) -> Option<(&Stored, &ServicePort, Exposure)> {
        let (service, position, exposure) = self.claims.owner(address)?;
        let stored = self.services.get(service)?;
        let mut ports = stored.service.ports.iter();
        Some((stored, ports.find(|p| p.position == position)?, exposure))
    }

    fn select(&self, address: VirtualAddress) -> Option<Selection<'_>> {
        let (stored, port, exposure) = self.owner(&address)?;
        let family = Family::of(address.ip);
        let endpoints = self.slices.endpoints(&port.name, family, &self.node.name);
        Some(Selection::new(
            (&stored.service, port),
            (address, exposure),
            endpoints,
            &self.node,
            self.ipvs_compat,
        ))
    }
}

fn warn(
    dirty: &mut Dirty,
    errors: &[ObjectError],
    key: impl Fn() -> ObjectKey,
    origin: Option<&Origin>,
) {
    dirty
        .warnings
        .extend(errors.iter().map(|error| ObjectWarning {
            object: key(),
            origin: origin.cloned(),
            error: error.clone(),
        }));
}

#[cfg(test)]
mod tests;
