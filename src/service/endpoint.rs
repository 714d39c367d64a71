//! EndpointSlice objects, reduced to what a proxy needs, with kube-proxy's
//! reading of every field (`pkg/proxy/endpointslicecache.go`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as api;

use super::Protocol;
use super::address::{Family, parse_ip};
use super::object::{NamespacedName, ObjectError, Reason};
use super::service_port::{parse_protocol, unknown_protocol};

/// Names the Service of a slice.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

/// On slices of headless Services, which no proxy serves.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// An EndpointSlice in compact form.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The Service it belongs to; none if it is to be ignored.
    pub service: Option<Arc<str>>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports, each on every endpoint.
    pub ports: Vec<SlicePort>,
    /// What was left out.
    pub errors: Vec<ObjectError>,
}

/// One address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses; the API forbids to use another.
    pub ip: IpAddr,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// Its conditions.
    pub conditions: Conditions,
    /// For whom it is meant; none for everybody.
    pub hints: Option<Arc<Hints>>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service port it belongs to.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: u16,
}

/// Conditions of an endpoint, unset ones filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new flows; true if unset.
    pub ready: bool,
    /// Answers, be it on its way out; true if unset.
    pub serving: bool,
    /// On its way out; false if unset.
    pub terminating: bool,
}

/// Topology hints of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Zones whose nodes should use it.
    pub zones: Vec<String>,
    /// Nodes that should use it.
    pub nodes: Vec<String>,
}

/// An endpoint of one service port, as selection sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its node is this node.
    pub local: bool,
    /// Its conditions.
    pub conditions: Conditions,
    /// Its topology hints.
    pub hints: Option<Arc<Hints>>,
    /// The node it is on.
    pub node: Option<Arc<str>>,
}

impl EndpointSlice {
    /// Takes what is needed from the API's object. `None` if it has no name.
    pub fn from_api(slice: &api::EndpointSlice) -> Option<Self> {
        let meta = &slice.metadata;
        let name = meta.name.as_deref().filter(|n| !n.is_empty())?;
        let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty());
        let mut compact = Self {
            name: NamespacedName::new(namespace.unwrap_or("default"), name),
            service: None,
            endpoints: Vec::new(),
            ports: Vec::new(),
            errors: Vec::new(),
        };
        let label = |key| meta.labels.as_ref().and_then(|l| l.get(key));
        if label(LABEL_HEADLESS).is_some() {
            return Some(compact);
        }
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return Some(compact),
            "" => {
                compact.error("addressType".to_owned(), Reason::Missing);
                return Some(compact);
            }
            other => {
                let reason = Reason::Unknown {
                    value: other.to_owned(),
                    expected: "IPv4, IPv6, FQDN",
                };
                compact.error("addressType".to_owned(), reason);
                return Some(compact);
            }
        };
        let Some(service) = label(LABEL_SERVICE_NAME).filter(|s| !s.is_empty()) else {
            compact.error(
                format!("metadata.labels[{LABEL_SERVICE_NAME}]"),
                Reason::Missing,
            );
            return Some(compact);
        };
        compact.service = Some(service.as_str().into());
        compact.read_ports(slice.ports.as_deref().unwrap_or_default());
        compact.read_endpoints(slice.endpoints.as_deref().unwrap_or_default(), family);
        Some(compact)
    }

    fn error(&mut self, field: String, reason: Reason) {
        self.errors.push(ObjectError { field, reason });
    }

    fn read_ports(&mut self, ports: &[api::EndpointPort]) {
        self.ports.reserve_exact(ports.len());
        for (i, port) in ports.iter().enumerate() {
            let field = |name: &str| format!("ports[{i}].{name}");
            let Some(number) = port.port else {
                self.error(field("port"), Reason::Missing);
                continue;
            };
            let Some(name) = &port.name else {
                self.error(field("name"), Reason::Missing);
                continue;
            };
            let Some(protocol) = parse_protocol(port.protocol.as_deref()) else {
                self.error(
                    field("protocol"),
                    unknown_protocol(port.protocol.as_deref()),
                );
                continue;
            };
            match u16::try_from(number) {
                Ok(port @ 1..) => self.ports.push(SlicePort {
                    name: name.as_str().into(),
                    protocol,
                    port,
                }),
                _ => self.error(field("port"), Reason::NotAPort(number)),
            }
        }
    }

    fn read_endpoints(&mut self, endpoints: &[api::Endpoint], family: Family) {
        self.endpoints.reserve_exact(endpoints.len());
        for (i, endpoint) in endpoints.iter().enumerate() {
            let field = || format!("endpoints[{i}].addresses[0]");
            let Some(text) = endpoint.addresses.first() else {
                self.error(format!("endpoints[{i}].addresses"), Reason::Missing);
                continue;
            };
            let Some(ip) = parse_ip(text) else {
                self.error(field(), Reason::NotAnAddress(text.clone()));
                continue;
            };
            if ip.is_unspecified() || ip.is_multicast() {
                self.error(field(), Reason::NotUnicast(ip));
                continue;
            }
            if Family::of(ip) != family {
                let reason = Reason::WrongFamily {
                    address: ip,
                    expected: family.as_str(),
                };
                self.error(field(), reason);
                continue;
            }
            let conditions = endpoint.conditions.as_ref();
            let node = endpoint.node_name.as_deref().filter(|n| !n.is_empty());
            let previous = self.endpoints.last();
            let entry = SliceEndpoint {
                ip,
                node: node.map(|n| shared_name(n, previous.and_then(|p| p.node.as_ref()))),
                conditions: Conditions {
                    ready: conditions.and_then(|c| c.ready).unwrap_or(true),
                    serving: conditions.and_then(|c| c.serving).unwrap_or(true),
                    terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                },
                hints: endpoint
                    .hints
                    .as_ref()
                    .and_then(|h| shared_hints(h, previous.and_then(|p| p.hints.as_ref()))),
            };
            self.endpoints.push(entry);
        }
    }
}

/// Neighbours in a slice are often alike: one allocation serves both.
fn shared_name(name: &str, previous: Option<&Arc<str>>) -> Arc<str> {
    match previous {
        Some(previous) if **previous == *name => previous.clone(),
        _ => name.into(),
    }
}

fn shared_hints(hints: &api::EndpointHints, previous: Option<&Arc<Hints>>) -> Option<Arc<Hints>> {
    let zones = hints.for_zones.iter().flatten().map(|z| z.name.clone());
    let nodes = hints.for_nodes.iter().flatten().map(|n| n.name.clone());
    let hints = Hints {
        zones: zones.collect(),
        nodes: nodes.collect(),
    };
    if hints == Hints::default() {
        return None;
    }
    match previous {
        Some(previous) if **previous == hints => Some(previous.clone()),
        _ => Some(Arc::new(hints)),
    }
}

#[cfg(test)]
mod tests;
