//! EndpointSlices by name, and their union for each service port.
//!
//! A Service may have any number of slices, and controllers move endpoints
//! between them; only the union means anything. The rules are those of
//! kube-proxy's `endpointslicecache.go`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ServicePortName;
use super::address::Family;
use super::endpoint::{Endpoint, EndpointSlice};
use super::object::NamespacedName;

/// All slices, whether or not their Service exists.
#[derive(Debug, Default)]
pub struct SliceCache {
    /// Slices of each Service, by slice name so that the union has one order.
    services: HashMap<NamespacedName, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    /// The Service under which a slice is filed.
    owners: HashMap<NamespacedName, NamespacedName>,
}

/// The Services whose endpoints may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The Service the slice belonged to, if that was another.
    pub before: Option<NamespacedName>,
    /// The Service the slice belongs to; its name is empty if it is to be
    /// ignored.
    pub after: NamespacedName,
}

impl SliceCache {
    /// Takes a slice in place of the one of that name.
    pub fn apply(&mut self, slice: Arc<EndpointSlice>) -> Touched {
        // One to be ignored is filed under the empty name, which no Service has.
        let after = NamespacedName {
            namespace: slice.name.namespace.clone(),
            name: slice.service.clone().unwrap_or_default(),
        };
        let before = match self.owners.get(&slice.name) {
            Some(service) if *service != after => self.remove(&slice.name),
            _ => None,
        };
        self.owners.insert(slice.name.clone(), after.clone());
        let slices = self.services.entry(after.clone()).or_default();
        slices.insert(slice.name.name.clone(), slice);
        Touched { before, after }
    }

    /// Forgets a slice; the answer is the Service it belonged to.
    pub fn remove(&mut self, slice: &NamespacedName) -> Option<NamespacedName> {
        let service = self.owners.remove(slice)?;
        if let Some(slices) = self.services.get_mut(&service) {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.services.remove(&service);
            }
        }
        Some(service)
    }

    /// The slice of that name.
    pub fn get(&self, slice: &NamespacedName) -> Option<&Arc<EndpointSlice>> {
        let service = self.owners.get(slice)?;
        self.services.get(service)?.get(&slice.name)
    }

    /// The endpoints of one service port in one family, sorted by endpoint
    /// string as kube-proxy sorts them.
    ///
    /// Of several entries for the same address and port, one that does not
    /// terminate replaces what is there and one that does is taken only if
    /// nothing is there (kubernetes PR #135593); slices count in name order.
    pub fn endpoints(
        &self,
        port: &ServicePortName,
        family: Family,
        node_name: &str,
    ) -> Vec<Endpoint> {
        let service = NamespacedName {
            namespace: port.namespace.clone(),
            name: port.name.clone(),
        };
        let mut all = Vec::new();
        for slice in self
            .services
            .get(&service)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            for slice_port in &slice.ports {
                if slice_port.protocol != port.protocol || slice_port.name != port.port {
                    continue;
                }
                let of_family = slice
                    .endpoints
                    .iter()
                    .filter(|e| Family::of(e.ip) == family);
                all.extend(of_family.map(|entry| Endpoint {
                    address: (entry.ip, slice_port.port).into(),
                    local: entry.node.as_deref() == Some(node_name),
                    conditions: entry.conditions,
                    hints: entry.hints.clone(),
                    node: entry.node.clone(),
                }));
            }
        }
        // Stable, so that entries for one address stay in the order of slices.
        all.sort_by_cached_key(|endpoint| endpoint.address.to_string());
        all.dedup_by(|next, kept| {
            let same = next.address == kept.address;
            if same && !next.conditions.terminating {
                std::mem::swap(next, kept);
            }
            same
        });
        all
    }

    /// Are no slices held?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.owners.is_empty()
    }
}

#[cfg(test)]
mod tests;
