//! The resources that are followed, and the requests for them: selectors as
//! kube-proxy's informers have them (kubernetes `cmd/kube-proxy/app/server.go`).

use std::time::Duration;

use hyper::Request;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request;

use super::machine::Ask;

/// Objects of a list page, as client-go's pager asks for.
const PAGE: u32 = 500;

/// A followed resource.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// In messages.
    pub(super) name: &'static str,
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
    /// Only that there is something is asked for, not what: one object, of which
    /// the metadata.
    pub(super) existence: bool,
    /// What is given up where it is forbidden or missing; `None` if nothing can
    /// be done without it.
    pub(super) without: Option<&'static str>,
}

impl Resource {
    /// Services, without those of other proxies and headless ones.
    pub(super) fn services() -> Self {
        Self {
            name: "services",
            path: "/api/v1/services",
            labels: Some("!service.kubernetes.io/service-proxy-name"),
            fields: Some("spec.clusterIP!=None".to_owned()),
            existence: false,
            without: None,
        }
    }

    /// EndpointSlices, without those of headless Services.
    pub(super) fn endpoint_slices() -> Self {
        Self {
            name: "endpointslices",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            labels: Some("!service.kubernetes.io/headless"),
            fields: None,
            existence: false,
            without: None,
        }
    }

    /// The Node of this name.
    pub(super) fn node(name: &str) -> Self {
        Self {
            name: "nodes",
            path: "/api/v1/nodes",
            labels: None,
            fields: Some(format!("metadata.name={name}")),
            existence: false,
            without: Some("this node's zone is not known: zone hints are not followed"),
        }
    }

    /// Namespaces.
    pub(super) fn namespaces() -> Self {
        Self {
            name: "namespaces",
            path: "/api/v1/namespaces",
            labels: None,
            fields: None,
            existence: false,
            without: Some("the access log is not switched by annotations of Namespaces"),
        }
    }

    /// ServiceCIDRs.
    pub(super) fn service_cidrs() -> Self {
        Self {
            name: "servicecidrs",
            path: "/apis/networking.k8s.io/v1/servicecidrs",
            labels: None,
            fields: None,
            existence: false,
            without: Some("each service address gets a route of its own"),
        }
    }

    /// Whether there are NetworkPolicies.
    pub(super) fn network_policies() -> Self {
        Self {
            name: "networkpolicies",
            path: "/apis/networking.k8s.io/v1/networkpolicies",
            labels: None,
            fields: None,
            existence: true,
            without: Some(
                "pods are served as if there were none; --pod-traffic never does not serve them",
            ),
        }
    }

    /// Its API group; empty for the core.
    pub(super) fn group(&self) -> &'static str {
        let group = self.path.strip_prefix("/apis/");
        group
            .and_then(|rest| rest.split('/').next())
            .unwrap_or_default()
    }

    /// The request for a list page, which begins at `next`.
    pub(super) fn list(&self, paged: bool, next: Option<&str>) -> Option<Request<Vec<u8>>> {
        let limit = match (self.existence, paged) {
            (true, _) => Some(1),
            (false, true) => Some(PAGE),
            (false, false) => None,
        };
        self.list_request(limit, next)
    }

    /// The request for the server's version.
    pub(super) fn newest(&self) -> Option<Request<Vec<u8>>> {
        self.list_request(Some(1), None)
    }

    /// The request for a watch or a streaming list that lasts at most `seconds`.
    /// `None` for other asks, and if it cannot be written.
    pub(super) fn watch(&self, ask: &Ask, lasts: Duration) -> Option<Request<Vec<u8>>> {
        let (from, stream) = match ask {
            Ask::Watch { from } => (from.as_str(), false),
            // No version: everything, as of now.
            Ask::Stream => ("", true),
            Ask::List { .. } | Ask::Newest => return None,
        };
        let parameters = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX)),
            bookmarks: true,
            send_initial_events: stream,
        };
        let request = request::Request::new(self.path);
        let request = if self.existence {
            request.watch_metadata(&parameters, from)
        } else {
            request.watch(&parameters, from)
        };
        request.ok()
    }

    fn list_request(&self, limit: Option<u32>, next: Option<&str>) -> Option<Request<Vec<u8>>> {
        let parameters = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit,
            continue_token: next.map(str::to_owned),
            ..ListParams::default()
        };
        let request = request::Request::new(self.path);
        let request = if self.existence {
            request.list_metadata(&parameters)
        } else {
            request.list(&parameters)
        };
        request.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(request: Option<Request<Vec<u8>>>) -> String {
        request.unwrap().uri().to_string()
    }

    #[test]
    fn requests_select_as_kube_proxy_does() {
        let services = Resource::services();
        assert_eq!(
            uri(services.list(true, None)),
            "/api/v1/services?&fieldSelector=spec.clusterIP%21%3DNone\
             &labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&limit=500"
        );
        assert!(
            uri(services.list(true, Some("a+b=="))).ends_with("&limit=500&continue=a%2Bb%3D%3D")
        );
        assert!(!uri(services.list(false, None)).contains("limit"));
        assert!(uri(services.newest()).ends_with("&limit=1"));
        assert_eq!(
            uri(Resource::node("master").list(true, None)),
            "/api/v1/nodes?&fieldSelector=metadata.name%3Dmaster&limit=500"
        );
    }

    #[test]
    fn a_stream_asks_for_what_there_is_and_a_watch_for_what_comes() {
        let slices = Resource::endpoint_slices();
        let lasts = Duration::from_secs(301);
        let stream = uri(slices.watch(&Ask::Stream, lasts));
        for part in [
            "/apis/discovery.k8s.io/v1/endpointslices?",
            "watch=true",
            "timeoutSeconds=301",
            "labelSelector=%21service.kubernetes.io%2Fheadless",
            "allowWatchBookmarks=true",
            "sendInitialEvents=true",
            "resourceVersionMatch=NotOlderThan",
        ] {
            assert!(stream.contains(part), "{stream} lacks {part}");
        }
        let from = "241".to_owned();
        let watch = uri(slices.watch(&Ask::Watch { from }, lasts));
        assert!(watch.contains("resourceVersion=241"), "{watch}");
        assert!(watch.contains("allowWatchBookmarks=true"), "{watch}");
        assert!(!watch.contains("sendInitialEvents"), "{watch}");
    }

    #[test]
    fn of_what_need_only_exist_metadata_are_asked_for() {
        let request = Resource::network_policies().list(true, None).unwrap();
        assert!(request.uri().to_string().ends_with("limit=1"));
        let accept = request.headers()["accept"].to_str().unwrap();
        assert!(accept.contains("as=PartialObjectMetadataList"), "{accept}");
    }
}
