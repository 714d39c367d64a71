//! What is followed beside the objects of the index: the ranges that services
//! get their addresses from, and whether there are NetworkPolicies. Whoever is
//! interested sees the newest state of each in a watch channel.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::{info, warn};

use super::collect::Update;
use super::collection::{Collection, Deleted};
use super::wire::{HeadMeta, object};
use crate::service::address::parse_cidr;

/// The networks that services get their addresses from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServiceCidrs {
    /// Nobody has said yet.
    #[default]
    Unknown,
    /// The cluster does not say, or not to us.
    Unavailable,
    /// These: sorted, each once.
    Known(Vec<IpNet>),
}

/// Whether the cluster has NetworkPolicies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkPolicies {
    /// Nobody has said yet.
    #[default]
    Unknown,
    /// The cluster does not say, or not to us.
    Unavailable,
    /// There are none.
    Absent,
    /// There is at least one.
    Present,
}

/// Keeps [`ServiceCidrs`] up to date. All objects count, whether or not they are
/// Ready: one that is being deleted goes when no address of it is in use.
#[derive(Debug)]
pub(super) struct Cidrs {
    known: BTreeMap<String, Vec<IpNet>>,
    listing: BTreeMap<String, Vec<IpNet>>,
    sender: watch::Sender<ServiceCidrs>,
}

impl Cidrs {
    pub(super) fn new(sender: watch::Sender<ServiceCidrs>) -> Self {
        Self {
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            sender,
        }
    }

    /// The networks of one object; those of before if it makes no sense.
    fn read(&self, name: &str, text: &RawValue) -> Vec<IpNet> {
        let before = || self.known.get(name).cloned().unwrap_or_default();
        let cidr: networking::ServiceCIDR = match object(text) {
            Ok(cidr) => cidr,
            Err(error) => {
                warn!(object = %format_args!("ServiceCIDR {name}"), %error, "an object makes no sense and is skipped");
                return before();
            }
        };
        let mut networks = Vec::new();
        for text in cidr.spec.and_then(|spec| spec.cidrs).unwrap_or_default() {
            match parse_cidr(&text).filter(is_service_range) {
                Some(network) => networks.push(network),
                None => warn!(
                    object = %format_args!("ServiceCIDR {name}"), network = text,
                    "is no range that services get addresses from, and is left out"
                ),
            }
        }
        networks
    }

    fn publish(&self) {
        let networks: BTreeSet<IpNet> = self.known.values().flatten().copied().collect();
        let networks = ServiceCidrs::Known(networks.into_iter().collect());
        self.sender.send_if_modified(|current| {
            let changed = *current != networks;
            if changed {
                info!(service_cidrs = ?networks, "the cluster's service ranges");
                *current = networks;
            }
            changed
        });
    }
}

impl Collection for Cidrs {
    fn begin(&mut self) {
        self.listing.clear();
    }

    fn listed(&mut self, head: &HeadMeta, object: &RawValue) {
        let networks = self.read(&head.name, object);
        self.listing.insert(head.name.clone(), networks);
    }

    fn unlisted(&mut self, head: &HeadMeta) {
        self.listing.remove(&head.name);
    }

    fn complete(&mut self) -> Option<Update> {
        self.known = std::mem::take(&mut self.listing);
        self.publish();
        None
    }

    fn applied(&mut self, head: &HeadMeta, object: &RawValue) -> Option<Update> {
        let networks = self.read(&head.name, object);
        self.known.insert(head.name.clone(), networks);
        self.publish();
        None
    }

    fn deleted(&mut self, head: &HeadMeta) -> Deleted {
        self.known.remove(&head.name);
        self.publish();
        Deleted::Update(None)
    }

    fn unavailable(&mut self) {
        set_if_unknown(
            &self.sender,
            ServiceCidrs::Unknown,
            ServiceCidrs::Unavailable,
        );
    }
}

/// Keeps [`NetworkPolicies`] up to date, by the name of one of them: while that
/// stands, no other matters.
#[derive(Debug)]
pub(super) struct Policies {
    witness: Option<(String, String)>,
    listing: Option<(String, String)>,
    sender: watch::Sender<NetworkPolicies>,
}

impl Policies {
    pub(super) fn new(sender: watch::Sender<NetworkPolicies>) -> Self {
        Self {
            witness: None,
            listing: None,
            sender,
        }
    }

    fn publish(&self) {
        let state = match self.witness {
            Some(_) => NetworkPolicies::Present,
            None => NetworkPolicies::Absent,
        };
        self.sender.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

impl Collection for Policies {
    fn begin(&mut self) {
        self.listing = None;
    }

    fn listed(&mut self, head: &HeadMeta, _object: &RawValue) {
        self.listing = Some(full_name(head));
    }

    fn unlisted(&mut self, head: &HeadMeta) {
        let name = full_name(head);
        self.listing.take_if(|witness| *witness == name);
    }

    fn complete(&mut self) -> Option<Update> {
        self.witness = self.listing.take();
        self.publish();
        None
    }

    fn applied(&mut self, head: &HeadMeta, _object: &RawValue) -> Option<Update> {
        if self.witness.is_none() {
            self.witness = Some(full_name(head));
            self.publish();
        }
        None
    }

    fn deleted(&mut self, head: &HeadMeta) -> Deleted {
        if self.witness == Some(full_name(head)) {
            // Until the list says that there is no other, there is one.
            Deleted::ListAgain
        } else {
            Deleted::Update(None)
        }
    }

    fn unavailable(&mut self) {
        set_if_unknown(
            &self.sender,
            NetworkPolicies::Unknown,
            NetworkPolicies::Unavailable,
        );
    }
}

fn set_if_unknown<T: PartialEq>(sender: &watch::Sender<T>, unknown: T, state: T) {
    sender.send_if_modified(|current| {
        let changed = *current == unknown;
        if changed {
            *current = state;
        }
        changed
    });
}

fn full_name(head: &HeadMeta) -> (String, String) {
    let namespace = head.namespace.clone().unwrap_or_default();
    (namespace, head.name.clone())
}

/// Not everything, and nothing that hosts give a meaning of its own.
fn is_service_range(network: &IpNet) -> bool {
    let first = network.network();
    let link_local = match first {
        std::net::IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let special =
        first.is_unspecified() || first.is_loopback() || first.is_multicast() || link_local;
    network.prefix_len() > 0 && !special
}
