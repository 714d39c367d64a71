//! What goes into the index and what comes out beside changes: objects, their
//! keys and origins, and warnings about what makes no sense in them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::NodeNetwork;
use super::address::{parse_cidr, parse_ip};
use super::endpoint::EndpointSlice;
use super::namespace::Namespace;
use super::service_port::Service;

/// Kinds of object the index takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Namespace.
    Namespace,
}

impl ObjectKind {
    /// The kind as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
        }
    }
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace; empty for a Node and for a Namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// Both parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `namespace/name`, or `name` without a namespace.
impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: ObjectKind,
    /// Namespace and name.
    pub name: NamespacedName,
}

/// `Service namespace/name`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Where an object was read: travels with it, so that a warning can say it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Number of the document in the file, from 1.
    pub document: u32,
    /// Number of the object in the document, from 1, when that is a list.
    pub item: Option<u32>,
}

/// `services.yaml, document 2, item 17`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file.display(), self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        Ok(())
    }
}

/// The part of a Node that selection looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; the namespace is empty.
    pub name: NamespacedName,
    /// Label `topology.kubernetes.io/zone`; none when absent or empty.
    pub zone: Option<Arc<str>>,
    /// Its addresses and those of its pods.
    pub network: NodeNetwork,
}

impl Node {
    /// Takes what is needed from the API's object. `None` if it has no name.
    pub fn from_api(node: &k8s_openapi::api::core::v1::Node) -> Option<Self> {
        let name = node.metadata.name.as_deref().filter(|n| !n.is_empty())?;
        let labels = node.metadata.labels.as_ref();
        let zone = labels.and_then(|l| l.get("topology.kubernetes.io/zone"));
        Some(Self {
            name: NamespacedName::new("", name),
            zone: zone.filter(|z| !z.is_empty()).map(|z| z.as_str().into()),
            network: network(node),
        })
    }
}

/// The cluster autoscaler's mark on a node that it is going to delete, whatever its
/// value and effect (kubernetes `pkg/proxy/healthcheck/proxy_health.go`).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What cannot be read is left out.
fn network(node: &k8s_openapi::api::core::v1::Node) -> NodeNetwork {
    let spec = node.spec.as_ref();
    let status = node.status.as_ref();
    let mut cidrs: Vec<&str> = Vec::new();
    if let Some(spec) = spec {
        let several = spec.pod_cidrs.iter().flatten().map(String::as_str);
        cidrs.extend(several);
        if cidrs.is_empty() {
            cidrs.extend(spec.pod_cidr.as_deref());
        }
    }
    let addresses = status.and_then(|s| s.addresses.as_deref());
    let of_type = |kind: &str| -> Vec<_> {
        let all = addresses.unwrap_or_default().iter();
        let texts = all.filter(|a| a.type_ == kind).map(|a| &a.address);
        texts.filter_map(|text| parse_ip(text)).collect()
    };
    let mut addresses = of_type("InternalIP");
    if addresses.is_empty() {
        // Kubernetes' order of preference for a node's IP (`GetNodeHostIPs`).
        addresses = of_type("ExternalIP");
    }
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    NodeNetwork {
        pod_cidrs: cidrs.into_iter().filter_map(parse_cidr).collect(),
        addresses,
        leaving: node.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|taint| taint.key == TO_BE_DELETED),
    }
}

/// One object in compact form. Shared, so that a source that must remember what
/// it read and the index that serves it hold one copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node; the index looks at its own only.
    Node(Arc<Node>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        self.kind_and_name().0
    }

    /// Names the object.
    pub fn key(&self) -> ObjectKey {
        let (kind, name) = self.kind_and_name();
        ObjectKey {
            kind,
            name: name.clone(),
        }
    }

    /// Names the object, in the order of [`ObjectKey`].
    pub fn kind_and_name(&self) -> (ObjectKind, &NamespacedName) {
        match self {
            Self::Service(service) => (ObjectKind::Service, &service.name),
            Self::EndpointSlice(slice) => (ObjectKind::EndpointSlice, &slice.name),
            Self::Node(node) => (ObjectKind::Node, &node.name),
            Self::Namespace(namespace) => (ObjectKind::Namespace, &namespace.name),
        }
    }
}

/// One thing that happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It is now so, whether it existed or not.
    Apply {
        /// The object.
        object: Object,
        /// Where it stands, if in a file.
        origin: Option<Origin>,
    },
    /// It is gone.
    Delete(ObjectKey),
}

/// Something in an object that makes no sense and is left out. The rest of the
/// object is in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ObjectError {
    /// Path of the field, as `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub reason: Reason,
}

impl ObjectError {
    /// Both parts.
    pub fn new(field: impl Into<String>, reason: Reason) -> Self {
        Self {
            field: field.into(),
            reason,
        }
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Required and absent or empty.
    #[error("is missing")]
    Missing,
    /// Not an IP address.
    #[error("{0:?} is not an IP address")]
    NotAnAddress(String),
    /// An address nothing can be sent to.
    #[error("{0} is not a unicast address")]
    NotUnicast(std::net::IpAddr),
    /// Not a CIDR.
    #[error("{0:?} is not a CIDR")]
    NotACidr(String),
    /// The address is not of the family the object says.
    #[error("{address} is not an {expected} address")]
    WrongFamily {
        /// The address.
        address: std::net::IpAddr,
        /// The family expected.
        expected: &'static str,
    },
    /// Outside 1 to 65535.
    #[error("{0} is not a port (1 to 65535)")]
    NotAPort(i32),
    /// Outside the range the API allows.
    #[error("{value} is not between {min} and {max}; {used} is used")]
    OutOfRange {
        /// The value.
        value: i32,
        /// Least allowed.
        min: i32,
        /// Most allowed.
        max: i32,
        /// What takes its place.
        used: i32,
    },
    /// Not one of the words the API knows.
    #[error("{value:?} is not one of {expected}")]
    Unknown {
        /// The value.
        value: String,
        /// The words.
        expected: &'static str,
    },
    /// Said before in the same object.
    #[error("{0} stands twice; the first is used")]
    Duplicate(String),
    /// Contradicts another field.
    #[error("{value} contradicts {other}")]
    Contradicts {
        /// The value.
        value: String,
        /// The other field and its value.
        other: String,
    },
    /// The address of a virtual server that belongs to another Service.
    #[error("{address} belongs to {owner}: a cluster IP comes first, then age, then name")]
    Taken {
        /// The address.
        address: super::VirtualAddress,
        /// The service port that has it.
        owner: Arc<super::ServicePortName>,
    },
}

/// An [`ObjectError`] with the object it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectWarning {
    /// The object.
    pub object: ObjectKey,
    /// Where it stands, if in a file.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub error: ObjectError,
}

/// `Service default/web (web.yaml, document 1): spec.ports[0].port: 0 is not a port …`.
impl fmt::Display for ObjectWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        write!(f, ": {}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value, addresses: Value) -> Node {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": spec,
            "status": {"addresses": addresses},
        }));
        Node::from_api(&node.unwrap()).unwrap()
    }

    #[test]
    fn a_node_and_its_networks() {
        let both = node(
            json!({"podCIDR": "10.1.15.0/24", "podCIDRs": ["10.1.15.0/24", "fd00:1:15::/64"]}),
            json!([
                {"type": "Hostname", "address": "10.9.9.9"},
                {"type": "InternalIP", "address": "172.100.101.191"},
                {"type": "ExternalIP", "address": "198.51.100.1"},
                {"type": "InternalIP", "address": "fd00::191"},
            ]),
        );
        assert_eq!(both.zone.as_deref(), Some("a"));
        let nets = |node: &Node| -> Vec<_> {
            node.network
                .pod_cidrs
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let addresses = |node: &Node| -> Vec<_> {
            node.network
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(nets(&both), ["10.1.15.0/24", "fd00:1:15::/64"]);
        assert_eq!(addresses(&both), ["172.100.101.191", "fd00::191"]);
        let old = node(
            json!({"podCIDR": "10.1.015.0/24"}),
            json!([{"type": "ExternalIP", "address": "198.51.100.1"}]),
        );
        assert_eq!(nets(&old), ["10.1.15.0/24"]);
        assert_eq!(addresses(&old), ["198.51.100.1"]);
        assert_eq!(node(json!({}), json!([])).network, NodeNetwork::default());
        let tainted = |key: &str| {
            let taint = json!({"key": key, "value": "1", "effect": "NoSchedule"});
            node(json!({"taints": [taint]}), json!([])).network.leaving
        };
        assert!(tainted("ToBeDeletedByClusterAutoscaler"));
        assert!(!tainted("node.kubernetes.io/unschedulable"));
        let going = json!({
            "metadata": {"name": "n1", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        });
        let going = Node::from_api(&serde_json::from_value(going).unwrap()).unwrap();
        assert!(going.network.leaving);
    }
}
