//! Whether the kernel carries services, from what can be seen of it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::kube_proxy::Answer;
use super::links::Node;
use super::nftables::Rules;
use super::{genetlink, kube_proxy::ask};

/// The device that kube-proxy's IPVS mode gives service addresses to (kubernetes
/// `pkg/proxy/ipvs/proxier.go`, defaultDummyDevice).
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// What was seen at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// The kernel offers IPVS: its generic netlink family is there.
    pub ipvs: bool,
    /// Addresses on [`IPVS_DEVICE`]; `None` if there is no such device.
    pub ipvs_addresses: Option<usize>,
    /// Rules of kube-proxy in netfilter; `None` if they may not be read.
    pub netfilter: Option<bool>,
    /// What answers on kube-proxy's health port.
    pub kube_proxy: Answer,
}

/// What the kernel does about services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// kube-proxy is well and has IPVS to work with.
    CarriesByIpvs,
    /// kube-proxy is well and has its rules in netfilter.
    CarriesByNetfilter,
    /// Everything is in place but nobody keeps it: what it carries grows old.
    Orphaned,
    /// kube-proxy is well but has nothing in the kernel yet, or no longer.
    Empty,
    /// The kernel offers no IPVS, and there is no kube-proxy.
    Absent,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::CarriesByIpvs,
        Self::CarriesByNetfilter,
        Self::Orphaned,
        Self::Empty,
        Self::Absent,
    ];

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CarriesByIpvs => "carries_by_ipvs",
            Self::CarriesByNetfilter => "carries_by_netfilter",
            Self::Orphaned => "orphaned",
            Self::Empty => "empty",
            Self::Absent => "absent",
        }
    }

    /// Whether services are carried without us.
    pub fn carries(self) -> bool {
        matches!(self, Self::CarriesByIpvs | Self::CarriesByNetfilter)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CarriesByIpvs => "kube-proxy is well and the kernel carries services by IPVS",
            Self::CarriesByNetfilter => {
                "kube-proxy is well and the kernel carries services by netfilter"
            }
            Self::Orphaned => "kube-proxy does not answer as well, though its rules are there",
            Self::Empty => "kube-proxy is well but the kernel has neither IPVS addresses nor rules",
            Self::Absent => "the kernel carries no services",
        })
    }
}

impl Sight {
    /// Looks once. What cannot be read counts as not there.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn look(node: &Node, kube_proxy: SocketAddr) -> io::Result<Self> {
        let device = node.device(IPVS_DEVICE).await?;
        let ipvs_addresses = match device {
            Some(device) => {
                let addresses = node.addresses().await?;
                // A link-local one is the kernel's own doing.
                let services = addresses
                    .iter()
                    .filter(|(index, address)| *index == device.index && !is_link_local(*address));
                Some(services.count())
            }
            None => None,
        };
        let netfilter = match Rules::read() {
            Ok(rules) => Some(
                !(rules.nftables.is_empty()
                    && rules.iptables.is_empty()
                    && rules.legacy_tables.is_empty()),
            ),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            ipvs: genetlink::has_ipvs()?,
            ipvs_addresses,
            netfilter,
            kube_proxy: ask(kube_proxy).await,
        })
    }

    /// What that means.
    pub fn kernel(&self) -> Kernel {
        let ipvs = self.ipvs && self.ipvs_addresses.is_some_and(|count| count > 0);
        let netfilter = self.netfilter == Some(true);
        match (self.kube_proxy, ipvs, netfilter) {
            (Answer::Well, true, _) => Kernel::CarriesByIpvs,
            (Answer::Well, false, true) => Kernel::CarriesByNetfilter,
            (Answer::Well, false, false) => Kernel::Empty,
            (Answer::Nobody | Answer::Unwell | Answer::OneOfUs, false, false) => Kernel::Absent,
            (Answer::Nobody | Answer::Unwell | Answer::OneOfUs, _, _) => Kernel::Orphaned,
        }
    }
}

/// Whether an address is one that the kernel makes by itself.
pub fn is_link_local(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_and_what_it_means() {
        let sight = |ipvs, ipvs_addresses, netfilter, kube_proxy| {
            Sight {
                ipvs,
                ipvs_addresses,
                netfilter,
                kube_proxy,
            }
            .kernel()
        };
        for (kernel, expected) in [
            (
                sight(true, Some(3), Some(false), Answer::Well),
                Kernel::CarriesByIpvs,
            ),
            // Addresses without IPVS carry nothing, IPVS without addresses neither.
            (
                sight(false, Some(3), Some(false), Answer::Well),
                Kernel::Empty,
            ),
            (
                sight(true, Some(0), Some(false), Answer::Well),
                Kernel::Empty,
            ),
            (sight(true, None, None, Answer::Well), Kernel::Empty),
            (
                sight(false, None, Some(true), Answer::Well),
                Kernel::CarriesByNetfilter,
            ),
            (
                sight(true, Some(3), Some(true), Answer::Well),
                Kernel::CarriesByIpvs,
            ),
            (sight(true, Some(3), None, Answer::Nobody), Kernel::Orphaned),
            (
                sight(false, None, Some(true), Answer::Unwell),
                Kernel::Orphaned,
            ),
            (
                sight(true, None, Some(false), Answer::Nobody),
                Kernel::Absent,
            ),
            (sight(false, None, None, Answer::OneOfUs), Kernel::Absent),
        ] {
            assert_eq!(kernel, expected);
        }
    }
}
