use serde_json::json;

use super::*;
use crate::service::fixtures::{slice, slice_from, slice_of};

fn errors(slice: &EndpointSlice) -> Vec<String> {
    slice.errors.iter().map(ToString::to_string).collect()
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().map(|e| e.ip.to_string()).collect()
}

#[test]
fn unset_conditions() {
    let slice = slice(
        "a",
        "web",
        &[("", 80)],
        &["10.0.0.1", "10.0.0.2 - !R", "10.0.0.3 - !R !S T"],
    );
    let conditions: Vec<_> = slice.endpoints.iter().map(|e| e.conditions).collect();
    let of = |ready, serving, terminating| Conditions {
        ready,
        serving,
        terminating,
    };
    assert_eq!(
        conditions,
        [
            of(true, true, false),
            of(false, true, false),
            of(false, false, true)
        ]
    );
    let none = slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }));
    assert_eq!(none.endpoints[0].conditions, of(true, true, false));
}

#[test]
fn only_the_first_address_counts() {
    let slice = slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}, {"addresses": []}],
    }));
    assert_eq!(addresses(&slice), ["10.0.0.1"]);
    assert_eq!(errors(&slice), ["endpoints[1].addresses: is missing"]);
}

#[test]
fn bad_addresses_are_named_and_left_out() {
    let slice = slice(
        "a",
        "web",
        &[("", 80)],
        &["10.180.00.001", "fd00::1", "pod-1", "0.0.0.0", "10.0.0.9"],
    );
    assert_eq!(addresses(&slice), ["10.180.0.1", "10.0.0.9"]);
    assert_eq!(
        errors(&slice),
        [
            "endpoints[1].addresses[0]: fd00::1 is not an IPv4 address",
            "endpoints[2].addresses[0]: \"pod-1\" is not an IP address",
            "endpoints[3].addresses[0]: 0.0.0.0 is not a unicast address",
        ]
    );
    let slice = slice_of("IPv6", "a", "web", &[("", 80)], &["10.0.0.1", "fd00::1"]);
    assert_eq!(addresses(&slice), ["fd00::1"]);
}

#[test]
fn ports_need_a_number_and_a_name() {
    let slice = slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [
            {"name": "a", "port": 80},
            {"name": "b"},
            {"port": 81},
            {"name": "c", "port": 0},
            {"name": "d", "port": 82, "protocol": "tcp"},
            {"name": "", "port": 83, "protocol": "UDP"},
        ],
        "endpoints": [],
    }));
    let kept: Vec<_> = slice
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port))
        .collect();
    assert_eq!(kept, [("a", Protocol::Tcp, 80), ("", Protocol::Udp, 83)]);
    assert_eq!(
        errors(&slice),
        [
            "ports[1].port: is missing",
            "ports[2].name: is missing",
            "ports[3].port: 0 is not a port (1 to 65535)",
            "ports[4].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
        ]
    );
}

#[test]
fn slices_that_are_not_ours_are_ignored() {
    let with = |labels: serde_json::Value, address_type: &str| {
        slice_from(json!({
            "metadata": {"name": "a", "labels": labels},
            "addressType": address_type,
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        }))
    };
    let ours = json!({"kubernetes.io/service-name": "web"});
    assert!(with(ours.clone(), "IPv4").service.is_some());
    let headless = json!({"kubernetes.io/service-name": "web", LABEL_HEADLESS: ""});
    for (slice, expected) in [
        (with(headless, "IPv4"), vec![]),
        (with(ours.clone(), "FQDN"), vec![]),
        (
            with(ours.clone(), "ipv4"),
            vec!["addressType: \"ipv4\" is not one of IPv4, IPv6, FQDN"],
        ),
        (with(ours, ""), vec!["addressType: is missing"]),
        (
            with(json!({}), "IPv4"),
            vec!["metadata.labels[kubernetes.io/service-name]: is missing"],
        ),
    ] {
        assert_eq!(slice.service, None);
        assert!(slice.endpoints.is_empty());
        assert_eq!(errors(&slice), expected);
    }
}

#[test]
fn hints_and_nodes_are_kept_and_shared() {
    let hints = json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}, {"name": "n2"}]});
    let slice = slice_from(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "hints": hints},
            {"addresses": ["10.0.0.2"], "nodeName": "n1", "hints": hints},
            {"addresses": ["10.0.0.3"], "nodeName": "", "hints": {}},
        ],
    }));
    let [first, second, third] = slice.endpoints.as_slice() else {
        panic!("three endpoints");
    };
    let hints = first.hints.as_ref().unwrap();
    assert_eq!(
        (&*hints.zones, &*hints.nodes),
        (
            &["a".to_owned()][..],
            &["n1".to_owned(), "n2".to_owned()][..]
        )
    );
    assert!(Arc::ptr_eq(hints, second.hints.as_ref().unwrap()));
    assert!(Arc::ptr_eq(
        first.node.as_ref().unwrap(),
        second.node.as_ref().unwrap()
    ));
    assert_eq!((&third.hints, &third.node), (&None, &None));
}
