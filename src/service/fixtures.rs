//! Objects for tests, written as the API writes them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::NodeNetwork;
use super::endpoint::EndpointSlice;
use super::object::{Event, NamespacedName, Node, Object, ObjectKey, ObjectKind};
use super::service_port::Service;

/// A Service from metadata and spec.
pub(crate) fn service(metadata: Value, spec: Value) -> Service {
    service_with_status(metadata, spec, Value::Null)
}

pub(crate) fn service_with_status(metadata: Value, spec: Value, status: Value) -> Service {
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    Service::from_api(&serde_json::from_value(object).unwrap()).unwrap()
}

/// A Service `default/<name>` with ports `(name, number)` over TCP.
pub(crate) fn plain(name: &str, ip: &str, ports: &[(&str, i32)]) -> Service {
    let ports: Vec<_> = ports
        .iter()
        .map(|(n, p)| json!({"name": n, "port": p}))
        .collect();
    service(
        json!({"name": name}),
        json!({"clusterIP": ip, "ports": ports}),
    )
}

/// A slice `default/<name>` of a Service, from ports `(name, number)` and
/// endpoints in the notation of [`endpoint`].
pub(crate) fn slice(
    name: &str,
    service: &str,
    ports: &[(&str, i32)],
    endpoints: &[&str],
) -> EndpointSlice {
    slice_of("IPv4", name, service, ports, endpoints)
}

pub(crate) fn slice_of(
    address_type: &str,
    name: &str,
    service: &str,
    ports: &[(&str, i32)],
    endpoints: &[&str],
) -> EndpointSlice {
    let ports: Vec<_> = ports
        .iter()
        .map(|(n, p)| json!({"name": n, "port": p}))
        .collect();
    let endpoints: Vec<_> = endpoints.iter().map(|e| endpoint(e)).collect();
    slice_from(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": address_type,
        "ports": ports,
        "endpoints": endpoints,
    }))
}

pub(crate) fn slice_from(object: Value) -> EndpointSlice {
    EndpointSlice::from_api(&serde_json::from_value(object).unwrap()).unwrap()
}

/// `"10.0.0.1 node1 !R !S T"`: address, node (`-` for none) and conditions: `R`
/// ready, `S` serving, `T` terminating, with `!` for false; unset if absent.
fn endpoint(text: &str) -> Value {
    let mut words = text.split(' ');
    let address = words.next().unwrap();
    let node = words.next().filter(|n| *n != "-");
    let flags: Vec<_> = words.collect();
    let condition = |letter: &str| {
        let yes = flags.contains(&letter).then_some(true);
        yes.or_else(|| {
            flags
                .contains(&format!("!{letter}").as_str())
                .then_some(false)
        })
    };
    json!({
        "addresses": [address],
        "nodeName": node,
        "conditions": {
            "ready": condition("R"),
            "serving": condition("S"),
            "terminating": condition("T"),
        },
    })
}

/// A Node with or without a zone.
pub(crate) fn node(name: &str, zone: Option<&str>) -> Event {
    apply(Object::Node(Arc::new(Node {
        name: NamespacedName::new("", name),
        zone: zone.map(Into::into),
        network: NodeNetwork::default(),
    })))
}

pub(crate) fn apply(object: Object) -> Event {
    Event::Apply {
        object,
        origin: None,
    }
}

pub(crate) fn apply_service(service: Service) -> Event {
    apply(Object::Service(Arc::new(service)))
}

pub(crate) fn apply_slice(slice: EndpointSlice) -> Event {
    apply(Object::EndpointSlice(Arc::new(slice)))
}

/// Deletion of `default/<name>`.
pub(crate) fn delete(kind: ObjectKind, name: &str) -> Event {
    let namespace = if matches!(kind, ObjectKind::Node | ObjectKind::Namespace) {
        ""
    } else {
        "default"
    };
    Event::Delete(ObjectKey {
        kind,
        name: NamespacedName::new(namespace, name),
    })
}
