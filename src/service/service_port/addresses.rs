//! The addresses by which a Service is reached.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Service, ServicePort};
use crate::service::address::Family;
use crate::service::{Exposure, VirtualAddress};

impl Service {
    /// Can traffic from outside the cluster reach this port over this family?
    pub fn externally_accessible(&self, port: &ServicePort, family: Family) -> bool {
        let has = |ips: &[IpAddr]| ips.iter().any(|&ip| Family::of(ip) == family);
        port.node_port.is_some() || has(&self.load_balancer_ips) || has(&self.external_ips)
    }

    /// Every address of every port, each once.
    ///
    /// An address that the Service has in two ways counts as the first of
    /// cluster IP, load balancer IP, external IP: so the source ranges of a load
    /// balancer hold for it, as in kube-proxy's nftables and IPVS modes.
    pub fn addresses(&self) -> Vec<(VirtualAddress, Exposure, &ServicePort)> {
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        let kinds = [
            (&self.cluster_ips, Exposure::ClusterIp),
            (&self.load_balancer_ips, Exposure::LoadBalancerIp),
            (&self.external_ips, Exposure::ExternalIp),
        ];
        for port in &self.ports {
            let protocol = port.name.protocol;
            let mut add = |address, exposure| {
                if seen.insert(address) {
                    all.push((address, exposure, port));
                }
            };
            for (ips, exposure) in kinds {
                for &ip in ips {
                    let port = port.port;
                    add(VirtualAddress { ip, port, protocol }, exposure);
                }
            }
            for &ip in &self.cluster_ips {
                if let Some(number) = port.node_port {
                    let family = Family::of(ip);
                    let address = VirtualAddress::node_port(family, number, protocol);
                    add(address, Exposure::NodePort);
                }
            }
        }
        all
    }

    /// The source ranges in force for load balancer IPs of a family; `None` is no
    /// restriction.
    ///
    /// As in kube-proxy, ranges of the other family restrict nothing here, and a
    /// `/0` is no restriction. Where a range could not be read, the first does
    /// not hold: it may have been meant for this family.
    pub fn source_ranges_for(&self, family: Family) -> Option<Vec<IpNet>> {
        let all = self.source_ranges.as_ref()?;
        let of_family = all.iter().filter(|net| Family::of(net.addr()) == family);
        let ranges: Vec<_> = of_family.copied().collect();
        let unread = |field: &str| field.starts_with("spec.loadBalancerSourceRanges");
        let all_read = !self.errors.iter().any(|error| unread(&error.field));
        let is_open = ranges.iter().any(|net| net.prefix_len() == 0);
        let is_of_other = ranges.is_empty() && all_read;
        (!is_open && !is_of_other).then_some(ranges)
    }
}
