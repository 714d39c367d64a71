//! Who has a virtual address when several Services ask for it.
//!
//! A cluster IP before a load balancer IP before an external IP, so that nobody
//! takes over the traffic of another Service by claiming its cluster IP
//! (CVE-2020-8554). Then the oldest by creationTimestamp, then the first by name;
//! one without a timestamp counts as younger than any. The others are told once,
//! and the next in order takes over when the owner goes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::service::object::{NamespacedName, ObjectError, Reason};
use crate::service::service_port::{Service, ServicePort};
use crate::service::{Exposure, ServicePortName, VirtualAddress};

/// Claims on all addresses.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// In order: the owner is the first. Never empty.
    by_address: HashMap<VirtualAddress, Vec<Claim>>,
}

#[derive(Debug)]
struct Claim {
    service: NamespacedName,
    exposure: Exposure,
    created: Option<i64>,
    port: Arc<ServicePortName>,
    position: u32,
    /// The owner that this claim was told of.
    told: Option<Arc<ServicePortName>>,
}

impl Claims {
    /// Adds the claim of a Service that has none on this address.
    pub(super) fn add(
        &mut self,
        address: VirtualAddress,
        exposure: Exposure,
        service: &Service,
        port: &ServicePort,
    ) {
        let claim = Claim {
            exposure,
            service: service.name.clone(),
            created: service.created,
            port: port.name.clone(),
            position: port.position,
            told: None,
        };
        // Nearly all stay alone; a vector that grows would have room for four.
        let claims = self
            .by_address
            .entry(address)
            .or_insert_with(|| Vec::with_capacity(1));
        let before = claims.partition_point(|other| other.rank() < claim.rank());
        claims.insert(before, claim);
    }

    /// Takes the claim of a Service back.
    pub(super) fn remove(&mut self, address: &VirtualAddress, service: &NamespacedName) {
        if let Some(claims) = self.by_address.get_mut(address) {
            claims.retain(|claim| claim.service != *service);
            if claims.is_empty() {
                self.by_address.remove(address);
            }
        }
    }

    /// The Service that has the address, the position of its port, and by what
    /// kind of address it has it.
    pub(super) fn owner(
        &self,
        address: &VirtualAddress,
    ) -> Option<(&NamespacedName, u32, Exposure)> {
        let first = self.by_address.get(address)?.first()?;
        Some((&first.service, first.position, first.exposure))
    }

    /// The claims on this address that lost and were not told so yet.
    pub(super) fn new_conflicts(
        &mut self,
        address: &VirtualAddress,
    ) -> Vec<(NamespacedName, ObjectError)> {
        let Some([owner, losers @ ..]) = self.by_address.get_mut(address).map(Vec::as_mut_slice)
        else {
            return Vec::new();
        };
        let mut told = Vec::new();
        for loser in losers {
            if loser.told.as_ref() == Some(&owner.port) {
                continue;
            }
            loser.told = Some(owner.port.clone());
            let reason = Reason::Taken {
                address: *address,
                owner: owner.port.clone(),
            };
            let what = match loser.exposure {
                Exposure::NodePort => "nodePort",
                Exposure::ClusterIp | Exposure::LoadBalancerIp | Exposure::ExternalIp => "port",
            };
            let field = format!("spec.ports[{}].{what}", loser.position);
            told.push((loser.service.clone(), ObjectError::new(field, reason)));
        }
        told
    }

    /// Is nothing claimed?
    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

impl Claim {
    fn rank(&self) -> (Exposure, bool, Option<i64>, &NamespacedName) {
        let no_time = self.created.is_none();
        (self.exposure, no_time, self.created, &self.service)
    }
}
