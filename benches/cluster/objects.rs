//! Services and EndpointSlices in JSON, as `kubectl get -o json` gives them.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

/// A Service with a TCP and a UDP port of the same number.
pub(crate) fn service(name: &str, vip: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "bench",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name},
            "resourceVersion": "1234567",
            "uid": "6f1c1d7e-0f54-4d6c-9d0e-3f0f3a3f9a01",
        },
        "spec": {
            "clusterIP": vip,
            "clusterIPs": [vip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [
                {"name": "tcp", "port": port, "protocol": "TCP", "targetPort": port},
                {"name": "udp", "port": port, "protocol": "UDP", "targetPort": port},
            ],
            "selector": {"app": name},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    })
}

/// The EndpointSlice of a Service; all its endpoints are ready.
pub(crate) fn endpoint_slice(service: &str, endpoints: &[IpAddr], port: u16) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .enumerate()
        .map(|(index, address)| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node2",
                "targetRef": {
                    "kind": "Pod",
                    "name": format!("{service}-7d4b9c6f5-{index:05}"),
                    "namespace": "bench",
                    "uid": "0b7c5e1c-6f0e-4f0e-8f0e-2b6f1f3f4a11",
                },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-x7k2p"),
            "generateName": format!("{service}-"),
            "namespace": "bench",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 7,
            "labels": {
                "app": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "Service",
                "name": service,
                "uid": "6f1c1d7e-0f54-4d6c-9d0e-3f0f3a3f9a01",
            }],
            "resourceVersion": "2345678",
            "uid": "a9d7c1fe-9f0a-4a53-8a51-6dd0c1b0f0c2",
        },
        "ports": [
            {"name": "tcp", "port": port, "protocol": "TCP"},
            {"name": "udp", "port": port, "protocol": "UDP"},
        ],
        "endpoints": endpoints,
    })
}

/// Several objects as one text.
pub(crate) fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
