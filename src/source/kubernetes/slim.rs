//! Services and EndpointSlices as the API's types, but with no more read of them than
//! is used.
//!
//! Most of an object's text says who manages which field (`managedFields`), what
//! `kubectl apply` last sent, and which pods are behind the endpoints. The API's own
//! types read all of that, the first into a tree. Here it is passed over, so that a
//! list of a large cluster costs less than half of the time.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Service, ServiceSpec, ServiceStatus};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};

/// Annotations that are read begin so.
const ANNOTATIONS: [&str; 2] = ["kube-tun-proxy.io/", "endpoints.kubernetes.io/"];

/// A Service without most of its metadata.
#[derive(Deserialize)]
pub(super) struct SlimService {
    metadata: Option<SlimMeta>,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

/// A slice without most of its metadata, and without whose endpoints they are.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SlimSlice {
    metadata: Option<SlimMeta>,
    address_type: Option<String>,
    endpoints: Option<Vec<SlimEndpoint>>,
    ports: Option<Vec<EndpointPort>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimMeta {
    name: Option<String>,
    namespace: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<EndpointConditions>,
    hints: Option<EndpointHints>,
    node_name: Option<String>,
}

/// Those that are read; of the rest not even the text is kept.
struct Annotations(BTreeMap<String, String>);

impl From<SlimService> for Service {
    fn from(slim: SlimService) -> Self {
        Self {
            metadata: slim.metadata.unwrap_or_default().into(),
            spec: slim.spec,
            status: slim.status,
        }
    }
}

impl From<SlimSlice> for EndpointSlice {
    fn from(slim: SlimSlice) -> Self {
        let endpoints = slim.endpoints;
        Self {
            metadata: slim.metadata.unwrap_or_default().into(),
            address_type: slim.address_type.unwrap_or_default(),
            endpoints: endpoints.map(|all| all.into_iter().map(Endpoint::from).collect()),
            ports: slim.ports,
        }
    }
}

impl From<SlimMeta> for ObjectMeta {
    fn from(slim: SlimMeta) -> Self {
        Self {
            name: slim.name,
            namespace: slim.namespace,
            creation_timestamp: slim.creation_timestamp,
            labels: slim.labels,
            annotations: slim.annotations.map(|annotations| annotations.0),
            ..Self::default()
        }
    }
}

impl From<SlimEndpoint> for Endpoint {
    fn from(slim: SlimEndpoint) -> Self {
        Self {
            addresses: slim.addresses.unwrap_or_default(),
            conditions: slim.conditions,
            hints: slim.hints,
            node_name: slim.node_name,
            ..Self::default()
        }
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Chosen;

        impl<'de> Visitor<'de> for Chosen {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Annotations, M::Error> {
                let mut chosen = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix)) {
                        let value: String = map.next_value().map_err(de::Error::custom)?;
                        chosen.insert(name, value);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(chosen))
            }
        }

        deserializer.deserialize_map(Chosen)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<Slim: de::DeserializeOwned>(value: &Value) -> Slim {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// What is used of an object is the same as with the API's own types.
    #[test]
    fn nothing_that_is_used_is_lost() {
        let metadata = json!({
            "name": "web",
            "namespace": "shop",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/service-name": "web", "app": "web"},
            "annotations": {
                "kube-tun-proxy.io/scheduler": "lc",
                "kube-tun-proxy.io/proxy-protocol": "v1",
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
                "kubectl.kubernetes.io/last-applied-configuration": "{\"a\": \"b\"}",
            },
            "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {}}}],
        });
        let service = json!({
            "metadata": metadata,
            "spec": {
                "type": "LoadBalancer",
                "clusterIPs": ["10.0.0.3"],
                "ports": [{"name": "a", "port": 80, "nodePort": 30080}],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}},
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31000,
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4", "ipMode": "VIP"}]}},
        });
        use crate::service::service_port::Service as Compact;
        let whole = Compact::from_api(&read(&service));
        let slim: SlimService = read(&service);
        assert!(whole.is_some());
        assert_eq!(Compact::from_api(&slim.into()), whole);

        let slice = json!({
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": [{"name": "a", "port": 80, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["10.1.0.1"],
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "nodeName": "n1",
                "zone": "z",
                "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n1"}]},
                "targetRef": {"kind": "Pod", "name": "p"},
            }, {"addresses": null}],
        });
        use crate::service::endpoint::EndpointSlice as CompactSlice;
        let whole: EndpointSlice = read(&slice);
        let slim: SlimSlice = read(&slice);
        let slim: EndpointSlice = slim.into();
        assert_eq!(
            CompactSlice::from_api(&slim),
            CompactSlice::from_api(&whole)
        );
        let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
        let annotations = slim.metadata.annotations.unwrap();
        assert_eq!(annotations[trigger], "2026-01-01T00:00:00Z");
        assert_eq!(annotations.len(), 3);
    }

    #[test]
    fn what_is_missing_or_null_is_nothing() {
        for text in [
            "{}",
            r#"{"metadata": null, "spec": null, "status": null, "endpoints": null,
                "ports": null, "addressType": null}"#,
            r#"{"metadata": {"labels": null, "annotations": null}}"#,
        ] {
            let service: SlimService = serde_json::from_str(text).unwrap();
            assert_eq!(Service::from(service).spec, None);
            let slice: SlimSlice = serde_json::from_str(text).unwrap();
            assert_eq!(EndpointSlice::from(slice).endpoints, None);
        }
    }
}
