//! Which sockets should listen, from what should be served and what addresses the node
//! has. Pure: no socket, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::addresses::{NodeAddresses, NodePortAddress, is_unrestricted};
use super::listener::{Listen, ListenAddress};
use crate::ipvs::{Protocol, ServicePortName, VirtualAddress};
use crate::service::{Change, Exposure, VirtualServerSpec};

/// A change of the sockets that listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Listen there, or on behalf of another there.
    Open(Listen),
    /// Listen there no more.
    Close(ListenAddress),
    /// Nobody serves there now: UDP flows go on for as long as they last, and nothing
    /// new begins.
    Linger(ListenAddress),
}

/// What changes, and who is to be told of something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    /// In order: a socket is closed before another is opened in its way.
    pub(super) steps: Vec<Step>,
    /// Services with the external traffic policy Local whose real servers will not see
    /// the client's address; each once.
    pub(super) masked: Vec<Arc<ServicePortName>>,
}

/// Sockets wanted, kept up to date change by change.
#[derive(Debug)]
pub(super) struct Plan {
    wanted: Vec<NodePortAddress>,
    addresses: NodeAddresses,
    chosen: BTreeSet<IpAddr>,
    /// Networks of this node's pods.
    pods: Vec<IpNet>,
    /// Addresses of the node as its Node object has them.
    named: Vec<IpAddr>,
    /// This node and its pods, whom policy Local without a local endpoint leaves.
    inside: Arc<[IpNet]>,
    /// Whether anything is open: not before the table serves, nor when it takes nothing
    /// new any more.
    open: bool,
    servers: BTreeMap<VirtualAddress, Server>,
    /// Who would listen where; the first of several does.
    claims: BTreeMap<ListenAddress, BTreeSet<VirtualAddress>>,
    /// Services whose clients' addresses are hidden although the policy is Local, with
    /// the virtual servers concerned.
    masked: BTreeMap<(Arc<str>, Arc<str>), BTreeSet<VirtualAddress>>,
}

/// What matters of a virtual server.
#[derive(Clone, Debug)]
struct Server {
    service: Arc<ServicePortName>,
    exposure: Exposure,
    /// There is somebody to choose from.
    usable: bool,
    /// For clients from outside too.
    usable_outside: bool,
    /// Whom a load balancer lets in, if not everybody.
    source_ranges: Option<Vec<IpNet>>,
    listens: BTreeSet<ListenAddress>,
    /// Who was last said to be let in there, if not everybody.
    only: Option<Arc<[IpNet]>>,
}

impl Plan {
    pub(super) fn new(wanted: Vec<NodePortAddress>) -> Self {
        Self {
            wanted,
            addresses: NodeAddresses::default(),
            chosen: BTreeSet::new(),
            pods: Vec::new(),
            named: Vec::new(),
            inside: Arc::new([]),
            open: false,
            servers: BTreeMap::new(),
            claims: BTreeMap::new(),
            masked: BTreeMap::new(),
        }
    }

    /// The node's addresses.
    pub(super) fn addresses(&self) -> &NodeAddresses {
        &self.addresses
    }

    /// Those that node ports are opened on.
    pub(super) fn chosen(&self) -> &BTreeSet<IpAddr> {
        &self.chosen
    }

    /// Takes changes of the table in.
    pub(super) fn program<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) -> Steps {
        let mut masked = Vec::new();
        let mut touched = BTreeSet::new();
        for change in changes {
            match change {
                Change::Upsert(spec) if spec.exposure.is_external() => {
                    masked.extend(self.mask(spec));
                    touched.insert(spec.address);
                    self.upsert(spec);
                }
                Change::Upsert(VirtualServerSpec { address, .. }) | Change::Remove(address) => {
                    touched.insert(*address);
                    self.remove(*address);
                }
                Change::Node(network)
                    if network.pod_cidrs != self.pods || network.addresses != self.named =>
                {
                    self.pods.clone_from(&network.pod_cidrs);
                    self.named.clone_from(&network.addresses);
                    self.find_inside();
                    touched.extend(self.servers.keys());
                }
                Change::HealthCheck(_) | Change::RemoveHealthCheck(_) | Change::Node(_) => {}
            }
        }
        let steps = self.settle(touched);
        Steps { steps, masked }
    }

    /// The node has these addresses now.
    pub(super) fn set_addresses(&mut self, addresses: NodeAddresses) -> Vec<Step> {
        if addresses == self.addresses {
            return Vec::new();
        }
        self.chosen = addresses.chosen(&self.wanted);
        self.addresses = addresses;
        self.find_inside();
        let all: BTreeSet<_> = self.servers.keys().copied().collect();
        self.settle(all)
    }

    /// These addresses of the node are asked for now.
    pub(super) fn set_wanted(&mut self, wanted: Vec<NodePortAddress>) -> Vec<Step> {
        self.wanted = wanted;
        self.chosen = self.addresses.chosen(&self.wanted);
        let all: BTreeSet<_> = self.servers.keys().copied().collect();
        self.settle(all)
    }

    /// Opens everything, or closes it.
    pub(super) fn set_open(&mut self, open: bool) -> Vec<Step> {
        self.open = open;
        let all: BTreeSet<_> = self.servers.keys().copied().collect();
        self.settle(all)
    }

    fn upsert(&mut self, spec: &VirtualServerSpec) {
        let inside = !spec.real_servers.is_empty();
        let outside = spec
            .external
            .as_ref()
            .map_or(inside, |external| !external.is_empty());
        let before = self.servers.remove(&spec.address);
        let (listens, only) = before.map(|s| (s.listens, s.only)).unwrap_or_default();
        let server = Server {
            service: Arc::clone(&spec.service),
            exposure: spec.exposure,
            usable: inside || outside,
            usable_outside: outside,
            source_ranges: spec.source_ranges.clone(),
            listens,
            only,
        };
        self.servers.insert(spec.address, server);
    }

    fn find_inside(&mut self) {
        let own = self.addresses.all.iter().map(|ip| IpNet::from(*ip));
        let loopback = IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
        let pods = self.pods.iter().copied();
        self.inside = own.chain([loopback]).chain(pods).collect();
    }

    /// What it listens on is left for [`Plan::settle`] to take away.
    fn remove(&mut self, address: VirtualAddress) {
        self.masked.retain(|_, servers| {
            servers.remove(&address);
            !servers.is_empty()
        });
        if let Some(server) = self.servers.get_mut(&address) {
            (server.usable, server.usable_outside) = (false, false);
            server.exposure = Exposure::ClusterIp;
        }
    }

    /// The service, if it is the first time that this is to be said of it.
    fn mask(&mut self, spec: &VirtualServerSpec) -> Option<Arc<ServicePortName>> {
        let name = (
            Arc::clone(&spec.service.namespace),
            Arc::clone(&spec.service.name),
        );
        if spec.external.is_none() || spec.proxy_protocol.is_some() {
            if let Some(servers) = self.masked.get_mut(&name) {
                servers.remove(&spec.address);
                if servers.is_empty() {
                    self.masked.remove(&name);
                }
            }
            return None;
        }
        let servers = self.masked.entry(name).or_default();
        let first = servers.is_empty();
        servers.insert(spec.address);
        first.then(|| Arc::clone(&spec.service))
    }

    /// Works out who listens where among these virtual servers.
    fn settle(&mut self, touched: BTreeSet<VirtualAddress>) -> Vec<Step> {
        // Where something changes, with who listened there before.
        let mut before: BTreeMap<ListenAddress, Option<VirtualAddress>> = BTreeMap::new();
        // Where others are let in than before.
        let mut retold = BTreeSet::new();
        for address in touched {
            let Some(server) = self.servers.get(&address) else {
                continue;
            };
            let wanted = self.listens(address, server);
            let only = self.audience(address, server);
            if only != server.only {
                for at in server.listens.intersection(&wanted) {
                    let first = self.claims.get(at).and_then(|c| c.first().copied());
                    before.entry(*at).or_insert(first);
                    if first == Some(address) {
                        retold.insert(*at);
                    }
                }
            }
            for at in server.listens.symmetric_difference(&wanted) {
                let claims = self.claims.entry(*at).or_default();
                before.entry(*at).or_insert_with(|| claims.first().copied());
                if wanted.contains(at) {
                    claims.insert(address);
                } else {
                    claims.remove(&address);
                }
            }
            if server.exposure.is_external() {
                if let Some(server) = self.servers.get_mut(&address) {
                    (server.listens, server.only) = (wanted, only);
                }
            } else {
                self.servers.remove(&address);
            }
        }
        let (mut closed, mut opened) = (Vec::new(), Vec::new());
        for (at, owner_before) in before {
            let owner = self.claims.get(&at).and_then(|c| c.first().copied());
            match owner {
                None => {
                    self.claims.remove(&at);
                    if let Some(before) = owner_before {
                        closed.push(if self.lingers(at, before) {
                            Step::Linger(at)
                        } else {
                            Step::Close(at)
                        });
                    }
                }
                Some(owner) if Some(owner) != owner_before || retold.contains(&at) => {
                    opened.extend(self.open(at, owner));
                }
                Some(_) => {}
            }
        }
        closed.append(&mut opened);
        closed
    }

    /// Whether only endpoints are missing there. As with kube-proxy, UDP flows of a
    /// service that has none that serves are left alone.
    fn lingers(&self, at: ListenAddress, server: VirtualAddress) -> bool {
        let udp = at.protocol == Protocol::Udp && self.open;
        let server = self.servers.get(&server).map(|its| (server, its));
        udp && server.is_some_and(|(address, server)| {
            !server.usable && self.places(address, server).contains(&at)
        })
    }

    fn open(&self, at: ListenAddress, server: VirtualAddress) -> Option<Step> {
        let Server { service, only, .. } = self.servers.get(&server)?;
        Some(Step::Open(Listen {
            at,
            server,
            service: Arc::clone(service),
            only: only.clone(),
        }))
    }

    /// Who is let in, if not everybody. The table is asked about each client too: over
    /// UDP that is enough, while a client of TCP would be answered before.
    fn audience(&self, address: VirtualAddress, server: &Server) -> Option<Arc<[IpNet]>> {
        if address.protocol != Protocol::Tcp {
            None
        } else if !server.usable_outside {
            Some(Arc::clone(&self.inside))
        } else {
            let ranges = server.source_ranges.as_ref()?;
            let is_node = self
                .named
                .iter()
                .any(|ip| ranges.iter().any(|r| r.contains(ip)));
            let own = self.addresses.all.iter().map(|ip| IpNet::from(*ip));
            let own = own.filter(|_| is_node);
            Some(ranges.iter().copied().chain(own).collect())
        }
    }

    /// Where a virtual server should listen.
    fn listens(&self, address: VirtualAddress, server: &Server) -> BTreeSet<ListenAddress> {
        if self.open && server.usable {
            self.places(address, server)
        } else {
            BTreeSet::new()
        }
    }

    /// Where it would listen if it had endpoints.
    fn places(&self, address: VirtualAddress, server: &Server) -> BTreeSet<ListenAddress> {
        let at = |ip: IpAddr| ListenAddress {
            protocol: address.protocol,
            address: SocketAddr::new(ip, address.port),
        };
        if address.protocol == Protocol::Sctp {
            return BTreeSet::new();
        }
        match server.exposure {
            Exposure::ClusterIp => BTreeSet::new(),
            Exposure::ExternalIp | Exposure::LoadBalancerIp => {
                let own = self.addresses.all.contains(&address.ip);
                own.then(|| at(address.ip)).into_iter().collect()
            }
            Exposure::NodePort => {
                let v4 = address.ip.is_ipv4();
                let mut chosen = self.chosen.iter().filter(|ip| ip.is_ipv4() == v4);
                // A datagram's answer must come from where it went to.
                let wildcard = address.protocol == Protocol::Tcp
                    && is_unrestricted(&self.wanted, v4)
                    && chosen.next().is_some();
                if wildcard {
                    let any: IpAddr = if v4 {
                        Ipv4Addr::UNSPECIFIED.into()
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    };
                    return BTreeSet::from([at(any)]);
                }
                let chosen = self.chosen.iter().filter(|ip| ip.is_ipv4() == v4);
                chosen.map(|&ip| at(ip)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
