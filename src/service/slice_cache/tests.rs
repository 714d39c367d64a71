//! By meaning: kube-proxy's `TestEndpointsMapFromESC`,
//! `TestEndpointInfoByServicePort` and `TestEndpointSliceCacheClearedCorrectly`.

use super::*;
use crate::service::Protocol;
use crate::service::fixtures::{slice, slice_from, slice_of};
use serde_json::json;

fn cache(slices: impl IntoIterator<Item = EndpointSlice>) -> SliceCache {
    let mut cache = SliceCache::default();
    for slice in slices {
        cache.apply(Arc::new(slice));
    }
    cache
}

fn port(namespace: &str, service: &str, port: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName {
        namespace: namespace.into(),
        name: service.into(),
        port: port.into(),
        protocol,
    }
}

/// Endpoints as `address` with the letters of what is set: Ready, Serving,
/// Terminating, Local (to node `n1`).
fn endpoints(cache: &SliceCache, service: &str, name: &str) -> Vec<String> {
    let port = port("default", service, name, Protocol::Tcp);
    describe(&cache.endpoints(&port, Family::V4, "n1"))
}

fn describe(endpoints: &[Endpoint]) -> Vec<String> {
    let letters = |e: &Endpoint| {
        let set = [
            ("R", e.conditions.ready),
            ("S", e.conditions.serving),
            ("T", e.conditions.terminating),
            ("L", e.local),
        ];
        set.map(|(letter, is)| if is { letter } else { "" })
            .concat()
    };
    endpoints
        .iter()
        .map(|e| format!("{} {}", e.address, letters(e)))
        .collect()
}

const BOTH: &[(&str, i32)] = &[("http", 80), ("https", 443)];
const HTTP: &[(&str, i32)] = &[("http", 80)];

#[test]
fn one_slice_two_hosts_two_ports() {
    let cache = cache([slice("a", "web", BOTH, &["10.0.1.1 n1", "10.0.1.2 n2"])]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        ["10.0.1.1:80 RSL", "10.0.1.2:80 RS"]
    );
    assert_eq!(
        endpoints(&cache, "web", "https"),
        ["10.0.1.1:443 RSL", "10.0.1.2:443 RS"]
    );
    assert!(endpoints(&cache, "web", "").is_empty());
}

#[test]
fn slices_are_united() {
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1", "10.0.1.2"]),
        slice("b", "web", HTTP, &["10.0.2.1", "10.0.2.2"]),
    ]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        [
            "10.0.1.1:80 RS",
            "10.0.1.2:80 RS",
            "10.0.2.1:80 RS",
            "10.0.2.2:80 RS"
        ]
    );
}

#[test]
fn overlapping_slices_have_no_duplicates() {
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1", "10.0.1.2"]),
        slice("b", "web", HTTP, &["10.0.1.2", "10.0.1.3"]),
    ]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        ["10.0.1.1:80 RS", "10.0.1.2:80 RS", "10.0.1.3:80 RS"]
    );
}

#[test]
fn a_slice_of_the_same_name_replaces() {
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1", "10.0.1.2", "10.0.1.3 - !R"]),
        slice("a", "web", HTTP, &["10.0.1.2 - !R", "10.0.1.4"]),
    ]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        ["10.0.1.2:80 S", "10.0.1.4:80 RS"]
    );
}

#[test]
fn conditions_are_kept() {
    let all = [
        "10.0.1.1 - R S !T",
        "10.0.1.2 - !R S T",
        "10.0.1.3 - !R !S T",
        "10.0.1.4 - !R !S",
    ];
    let cache = cache([slice("a", "web", HTTP, &all)]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        [
            "10.0.1.1:80 RS",
            "10.0.1.2:80 ST",
            "10.0.1.3:80 T",
            "10.0.1.4:80 "
        ]
    );
}

#[test]
fn services_and_namespaces_are_kept_apart() {
    let elsewhere = slice_from(json!({
        "metadata": {
            "name": "a",
            "namespace": "other",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"addresses": ["10.0.3.1"]}],
    }));
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1"]),
        slice("b", "db", HTTP, &["10.0.2.1"]),
        elsewhere,
    ]);
    assert_eq!(endpoints(&cache, "web", "http"), ["10.0.1.1:80 RS"]);
    assert_eq!(endpoints(&cache, "db", "http"), ["10.0.2.1:80 RS"]);
    let other = port("other", "web", "http", Protocol::Tcp);
    assert_eq!(
        describe(&cache.endpoints(&other, Family::V4, "n1")),
        ["10.0.3.1:80 RS"]
    );
}

#[test]
fn a_port_without_number_breaks_nothing() {
    let nil = slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http"}, {"name": "https", "port": 443}],
        "endpoints": [{"addresses": ["10.0.1.1"]}],
    }));
    let cache = cache([nil]);
    assert!(endpoints(&cache, "web", "http").is_empty());
    assert_eq!(endpoints(&cache, "web", "https"), ["10.0.1.1:443 RS"]);
}

#[test]
fn one_address_on_several_ports_is_several_endpoints() {
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1"]),
        slice("b", "web", &[("http", 8080)], &["10.0.1.1"]),
    ]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        ["10.0.1.1:80 RS", "10.0.1.1:8080 RS"]
    );
}

#[test]
fn of_duplicates_the_one_that_does_not_terminate_is_kept() {
    let terminating = "10.0.1.1 - !R S T";
    let ready = "10.0.1.1 - R";
    let not_serving = "10.0.1.1 - !R !S T";
    for order in [
        [terminating, ready, not_serving],
        [ready, not_serving, terminating],
        [not_serving, terminating, ready],
    ] {
        // In one slice, and in a slice each.
        let one = cache([slice("a", "web", HTTP, &order)]);
        assert_eq!(endpoints(&one, "web", "http"), ["10.0.1.1:80 RS"]);
        let names = ["a", "b", "c"].into_iter().zip(order);
        let three = cache(names.map(|(name, e)| slice(name, "web", HTTP, &[e])));
        assert_eq!(endpoints(&three, "web", "http"), ["10.0.1.1:80 RS"]);
    }
    // Of those that terminate the first; of those that do not the last.
    let one = cache([slice("a", "web", HTTP, &[not_serving, terminating])]);
    assert_eq!(endpoints(&one, "web", "http"), ["10.0.1.1:80 T"]);
    let one = cache([slice("a", "web", HTTP, &[ready, "10.0.1.1 - !R"])]);
    assert_eq!(endpoints(&one, "web", "http"), ["10.0.1.1:80 S"]);
}

#[test]
fn sorted_by_endpoint_string() {
    let cache = cache([slice(
        "a",
        "web",
        HTTP,
        &["10.0.0.2", "9.0.0.1", "10.0.0.10"],
    )]);
    assert_eq!(
        endpoints(&cache, "web", "http"),
        ["10.0.0.10:80 RS", "10.0.0.2:80 RS", "9.0.0.1:80 RS"]
    );
}

#[test]
fn families_and_protocols_are_kept_apart() {
    let udp = slice_from(json!({
        "metadata": {"name": "u", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 53, "protocol": "UDP"}],
        "endpoints": [{"addresses": ["10.0.1.9"]}],
    }));
    let cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1"]),
        slice_of("IPv6", "b", "web", HTTP, &["fd00::1"]),
        udp,
    ]);
    assert_eq!(endpoints(&cache, "web", "http"), ["10.0.1.1:80 RS"]);
    let tcp = port("default", "web", "http", Protocol::Tcp);
    assert_eq!(
        describe(&cache.endpoints(&tcp, Family::V6, "n1")),
        ["[fd00::1]:80 RS"]
    );
    let udp = port("default", "web", "http", Protocol::Udp);
    assert_eq!(
        describe(&cache.endpoints(&udp, Family::V4, "n1")),
        ["10.0.1.9:53 RS"]
    );
}

#[test]
fn nothing_is_left_of_what_is_removed() {
    let mut cache = cache([
        slice("a", "web", HTTP, &["10.0.1.1"]),
        slice("b", "web", HTTP, &["10.0.1.2"]),
        slice("c", "db", HTTP, &["10.0.1.3"]),
    ]);
    let name = |name: &str| NamespacedName::new("default", name);
    assert_eq!(cache.remove(&name("a")), Some(name("web")));
    assert_eq!(endpoints(&cache, "web", "http"), ["10.0.1.2:80 RS"]);
    assert_eq!(cache.remove(&name("a")), None);
    assert_eq!(cache.remove(&name("b")), Some(name("web")));
    assert_eq!(cache.remove(&name("c")), Some(name("db")));
    assert!(cache.is_empty());
}

#[test]
fn a_relabelled_slice_moves() {
    let mut cache = cache([slice("a", "web", HTTP, &["10.0.1.1"])]);
    let touched = cache.apply(Arc::new(slice("a", "db", HTTP, &["10.0.1.1"])));
    let name = |name: &str| NamespacedName::new("default", name);
    assert_eq!(
        (touched.before, touched.after),
        (Some(name("web")), name("db"))
    );
    assert!(endpoints(&cache, "web", "http").is_empty());
    assert_eq!(endpoints(&cache, "db", "http"), ["10.0.1.1:80 RS"]);
}
