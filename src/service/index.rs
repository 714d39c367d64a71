//! The index: objects in, changes of virtual servers out.
//!
//! A plain struct without clock, IO or task. A slice may come before its
//! Service and a Service before its slices; the state depends on the objects
//! that exist, not on the order they came in. An event touches the virtual
//! servers of the Services it concerns, and a virtual server that is to be as it
//! was yields no change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::address::Family;
use super::endpoint::{Endpoint, EndpointSlice};
use super::object::{
    Event, NamespacedName, Object, ObjectError, ObjectKey, ObjectKind, ObjectWarning, Origin,
};
use super::service_port::{Service, ServicePort, TrafficPolicy};
use super::slice_cache::SliceCache;
use super::topology::{Categorized, Policy, Standing, ThisNode, categorize};
use super::{Change, VirtualAddress, VirtualServerSpec, WhenEmpty};
use claims::Claims;

mod claims;

/// Everything known of Services, EndpointSlices and this node.
#[derive(Debug)]
pub struct Index {
    node: ThisNode,
    services: HashMap<NamespacedName, Stored>,
    slices: SliceCache,
    claims: Claims,
    /// What was last said of each virtual server.
    emitted: HashMap<VirtualAddress, VirtualServerSpec>,
}

/// What came of some events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What changes, in the order of addresses; one change at most for each.
    pub changes: Vec<Change>,
    /// What was left out, each once as long as its object stays as it is.
    pub warnings: Vec<ObjectWarning>,
}

/// All that decides about one virtual server.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    /// What is programmed.
    pub spec: &'a VirtualServerSpec,
    /// The Service it belongs to.
    pub service: &'a Service,
    /// The port of that Service.
    pub port: &'a ServicePort,
    /// Where the Service stands, if in a file.
    pub origin: Option<&'a Origin>,
    /// Every endpoint of the service port in this family.
    pub endpoints: Vec<Endpoint>,
    /// Where each of them stands.
    pub categorized: Categorized,
    /// The list that cluster-internal traffic uses.
    pub policy: TrafficPolicy,
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
            services: HashMap::new(),
            slices: SliceCache::default(),
            claims: Claims::default(),
            emitted: HashMap::new(),
        }
    }

    /// Takes one event.
    pub fn apply(&mut self, event: Event) -> Outcome {
        self.apply_all([event])
    }

    /// Takes events together: each virtual server concerned is worked out once,
    /// after the last of them.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Outcome {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                Event::Apply { object, origin } => self.take(object, origin, &mut dirty),
                Event::Delete(key) => self.forget(&key, &mut dirty),
            }
        }
        let Dirty {
            addresses,
            mut warnings,
        } = dirty;
        let mut changes = Vec::new();
        for address in addresses {
            changes.extend(self.settle(address));
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
        Outcome { changes, warnings }
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
    pub fn virtual_servers(&self) -> Vec<&VirtualServerSpec> {
        let mut all: Vec<_> = self.emitted.values().collect();
        all.sort_by_key(|spec| spec.address);
        all
    }

    /// Why a virtual server is as it is. `None` if no Service has that address.
    pub fn explain(&self, address: &VirtualAddress) -> Option<Explanation<'_>> {
        let spec = self.emitted.get(address)?;
        let (stored, port) = self.owner(address)?;
        let service = &*stored.service;
        let (endpoints, categorized) = self.select(address, service, port);
        Some(Explanation {
            spec,
            service,
            port,
            origin: stored.origin.as_ref(),
            endpoints,
            categorized,
            policy: service.internal_policy,
        })
    }

    /// Is nothing known?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.slices.is_empty()
            && self.claims.is_empty()
            && self.emitted.is_empty()
    }

    fn take(&mut self, object: Object, origin: Option<Origin>, dirty: &mut Dirty) {
        match object {
            Object::Service(service) => self.take_service(service, origin, dirty),
            Object::EndpointSlice(slice) => self.take_slice(slice, origin.as_ref(), dirty),
            Object::Node(node) => self.take_node(&node.name.name, node.zone.as_ref(), dirty),
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
        for (address, port) in service.cluster_addresses() {
            self.claims.add(address, &service, port);
            dirty.addresses.insert(address);
        }
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

    fn take_node(&mut self, name: &Arc<str>, zone: Option<&Arc<str>>, dirty: &mut Dirty) {
        if *name != self.node.name || self.node.zone.as_ref() == zone {
            return;
        }
        self.node.zone = zone.cloned();
        dirty.addresses.extend(self.emitted.keys().copied());
    }

    /// Takes the claims of a Service back.
    fn release(&mut self, service: &Service, dirty: &mut Dirty) {
        for (address, _) in service.cluster_addresses() {
            self.claims.remove(&address, &service.name);
            dirty.addresses.insert(address);
        }
    }

    /// Endpoints of a Service have changed.
    fn touch(&self, service: &NamespacedName, dirty: &mut Dirty) {
        if let Some(stored) = self.services.get(service) {
            let addresses = stored.service.cluster_addresses();
            dirty
                .addresses
                .extend(addresses.map(|(address, _)| address));
        }
    }

    /// Works out one virtual server and says what changed.
    fn settle(&mut self, address: VirtualAddress) -> Option<Change> {
        let Some((stored, port)) = self.owner(&address) else {
            self.emitted.remove(&address)?;
            return Some(Change::Remove(address));
        };
        let spec = self.specify(address, &stored.service, port);
        if self.emitted.get(&address) == Some(&spec) {
            return None;
        }
        self.emitted.insert(address, spec.clone());
        Some(Change::Upsert(spec))
    }

    fn owner(&self, address: &VirtualAddress) -> Option<(&Stored, &ServicePort)> {
        let (service, position) = self.claims.owner(address)?;
        let stored = self.services.get(service)?;
        let mut ports = stored.service.ports.iter();
        Some((stored, ports.find(|p| p.position == position)?))
    }

    fn select(
        &self,
        address: &VirtualAddress,
        service: &Service,
        port: &ServicePort,
    ) -> (Vec<Endpoint>, Categorized) {
        let family = Family::of(address.ip);
        let policy = Policy {
            internal_local: service.internal_policy == TrafficPolicy::Local,
            external_local: service.external_policy == TrafficPolicy::Local,
            externally_accessible: service.externally_accessible(port, family),
        };
        let endpoints = self.slices.endpoints(&port.name, family, &self.node.name);
        let categorized = categorize(&endpoints, policy, &self.node);
        (endpoints, categorized)
    }

    fn specify(
        &self,
        address: VirtualAddress,
        service: &Service,
        port: &ServicePort,
    ) -> VirtualServerSpec {
        let (endpoints, categorized) = self.select(&address, service, port);
        let list: &[Standing] = match service.internal_policy {
            TrafficPolicy::Local => &categorized.local,
            TrafficPolicy::Cluster => &categorized.cluster,
        };
        let chosen = endpoints
            .iter()
            .zip(list)
            .filter(|(_, standing)| standing.is_in());
        let serving = endpoints
            .iter()
            .filter(|e| e.conditions.ready || e.conditions.serving);
        let mut serving: Vec<_> = serving.map(|e| e.address).collect();
        serving.sort_unstable();
        VirtualServerSpec {
            real_servers: chosen.map(|(endpoint, _)| endpoint.address).collect(),
            serving,
            // With policy Cluster an empty list means that there are none at all.
            when_empty: match service.internal_policy {
                TrafficPolicy::Local if categorized.has_any => WhenEmpty::Drop,
                TrafficPolicy::Local | TrafficPolicy::Cluster => WhenEmpty::Reject,
            },
            persistence: service.affinity,
            ..VirtualServerSpec::new(address, port.name.clone())
        }
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
