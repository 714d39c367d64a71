//! Cases of kube-proxy's `TestCategorizeEndpoints` (v1.36), in the notation of
//! [`endpoint`], and some that it leaves out.

use super::*;
use crate::service::endpoint::Conditions;

/// One case. Endpoints are given and expected by the last part of the address.
struct Case {
    name: &'static str,
    /// Name and zone of this node.
    node: (&'static str, &'static str),
    /// Any of `iTP`, `eTP` (Local) and `NP` (has a node port).
    service: &'static str,
    endpoints: &'static [&'static str],
    /// `None`: the list is not used.
    cluster: Option<&'static [u16]>,
    local: Option<&'static [u16]>,
    reachable: &'static [u16],
    has_any: bool,
}

/// `"3 RSTL a/b 1/2"`: endpoint 3, ready, serving, terminating, local, with
/// hints for zones a and b and nodes 1 and 2; `-` stands for nothing.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let number: u8 = words.next().unwrap().parse().unwrap();
    let flags = words.next().unwrap();
    let mut hints = || -> Vec<String> {
        let list = words.next().unwrap_or("-").split('/');
        list.filter(|h| *h != "-").map(str::to_owned).collect()
    };
    let hints = Hints {
        zones: hints(),
        nodes: hints(),
    };
    Endpoint {
        address: ([10, 1, 2, number], 80).into(),
        local: flags.contains('L'),
        conditions: Conditions {
            ready: flags.contains('R'),
            serving: flags.contains('S'),
            terminating: flags.contains('T'),
        },
        hints: (hints != Hints::default()).then(|| Arc::new(hints)),
        node: None,
    }
}

fn number(endpoint: &Endpoint) -> u16 {
    match endpoint.address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3].into(),
        std::net::IpAddr::V6(ip) => ip.segments()[7],
    }
}

fn check(case: &Case) {
    let endpoints: Vec<_> = case.endpoints.iter().map(|e| endpoint(e)).collect();
    check_endpoints(case, &endpoints);
}

fn check_endpoints(case: &Case, endpoints: &[Endpoint]) {
    let name = case.name;
    let policy = Policy {
        internal_local: case.service.contains("iTP"),
        external_local: case.service.contains("eTP"),
        externally_accessible: case.service.contains("NP"),
    };
    let (node, zone) = case.node;
    let node = ThisNode {
        name: node.into(),
        zone: (!zone.is_empty()).then(|| zone.into()),
    };
    let result = categorize(endpoints, policy, &node);
    let list = |standings: &[Standing]| -> Vec<u16> {
        let all = endpoints.iter().zip(standings);
        all.filter(|(_, s)| s.is_in())
            .map(|(e, _)| number(e))
            .collect()
    };
    assert_eq!(
        policy.uses_cluster(),
        case.cluster.is_some(),
        "{name}: cluster used"
    );
    assert_eq!(
        policy.uses_local(),
        case.local.is_some(),
        "{name}: local used"
    );
    assert_eq!(
        list(&result.cluster),
        case.cluster.unwrap_or(&[]),
        "{name}: cluster"
    );
    assert_eq!(
        list(&result.local),
        case.local.unwrap_or(&[]),
        "{name}: local"
    );
    let reachable: Vec<_> = (0..endpoints.len())
        .filter(|&i| result.reachable(i))
        .map(|i| number(&endpoints[i]))
        .collect();
    assert_eq!(reachable, case.reachable, "{name}: reachable");
    assert_eq!(result.has_any, case.has_any, "{name}: has any");
}

macro_rules! cases {
    ($($name:literal: $node:expr, $service:literal, [$($endpoint:literal),*]
        => $cluster:tt, $local:tt, [$($reachable:literal),*], $has_any:literal;)*) => {
        &[$(Case {
            name: $name,
            node: $node,
            service: $service,
            endpoints: &[$($endpoint),*],
            cluster: cases!(@list $cluster),
            local: cases!(@list $local),
            reachable: &[$($reachable),*],
            has_any: $has_any,
        }),*]
    };
    (@list -) => { None };
    (@list [$($number:literal),*]) => { Some(&[$($number),*]) };
}

/// A node in that zone, without a name that hints could mean.
const fn zone(zone: &'static str) -> (&'static str, &'static str) {
    ("", zone)
}

#[rustfmt::skip]
const KUBE_PROXY: &[Case] = cases! {
    // Topology.
    "hints for this zone on all endpoints": zone("a"), "",
        ["3 R a", "4 R b", "5 R c", "6 R a"] => [3, 6], -, [3, 6], true;
    "external policy Local: no topology for the local list": zone("a"), "eTP NP",
        ["3 RL a", "4 RL b", "5 R c", "6 R a"] => [3, 6], [3, 4], [3, 4, 6], true;
    "internal policy Local: no topology for the local list": zone("a"), "iTP NP",
        ["3 RL a", "4 RL b", "5 R c", "6 R a"] => [3, 6], [3, 4], [3, 4, 6], true;
    "node without labels": zone(""), "", ["3 R a"] => [3], -, [3], true;
    "node with an empty zone label": zone(""), "", ["3 R a"] => [3], -, [3], true;
    "node in a zone that nobody is meant for": zone("b"), "", ["3 R a"] => [3], -, [3], true;
    "an unready endpoint in this zone": zone("a"), "",
        ["3 R a", "4 R b", "5 R c", "6 - a"] => [3], -, [3], true;
    "only unready endpoints in this zone": zone("a"), "",
        ["3 - a", "4 R b", "5 R c", "6 - a"] => [4, 5], -, [4, 5], true;
    "one endpoint without a hint": zone("a"), "",
        ["3 R a", "4 R b", "5 R", "6 R a"] => [3, 4, 5, 6], -, [3, 4, 5, 6], true;
    "several zones for one endpoint": zone("c"), "",
        ["3 R a/b/c", "4 R b/c", "5 R b/d", "6 R c"] => [3, 4, 6], -, [3, 4, 6], true;
    // Upstream: gate PreferSameTrafficDistribution off, locked on since 1.35.
    // What is left of the case is a proxy that finds no hint for its name.
    "node hints are of no use": zone("a"), "",
        ["3 R a 1", "4 R b 2", "5 R c 3", "6 R a 4"] => [3, 6], -, [3, 6], true;
    "hints for this node": ("1", "a"), "",
        ["3 R a 1", "4 R b 2", "5 R c 3", "6 R a 4"] => [3], -, [3], true;
    "hints for this node, but one endpoint without any": ("1", "a"), "",
        ["3 R a 1", "4 R", "5 R c 3", "6 R a 4"] => [3, 4, 5, 6], -, [3, 4, 5, 6], true;
    "node hints, none for this node: the zone's": ("0", "a"), "",
        ["3 R a 1", "4 R b 2", "5 R c 3", "6 R a 4"] => [3, 6], -, [3, 6], true;
    "topology and locality differ": zone("a"), "eTP NP",
        ["0 RL a", "1 RL b", "2 R a", "3 R b"] => [0, 2], [0, 1], [0, 1, 2], true;
    // Internal policy Local.
    "iTP Local, no endpoints": zone(""), "iTP", [] => -, [], [], false;
    "iTP Local, all remote": zone(""), "iTP", ["0 R", "1 R"] => -, [], [], true;
    "iTP Local, all local": zone(""), "iTP", ["0 RL", "1 RL"] => -, [0, 1], [0, 1], true;
    "iTP Local, some local": zone(""), "iTP", ["0 RL", "1 R"] => -, [0], [0], true;
    // Policy Cluster.
    "Cluster, none ready": zone(""), "", ["0 -", "1 -"] => [], -, [], false;
    "Cluster, some ready": zone(""), "", ["0 -", "1 R"] => [1], -, [1], true;
    "Cluster, all terminating": zone(""), "", ["0 STL", "1 ST"] => [0, 1], -, [0, 1], true;
    // Both lists.
    "iTP Local, eTP Cluster, some local": zone(""), "iTP NP",
        ["0 RL", "1 R"] => [0, 1], [0], [0, 1], true;
    "iTP Cluster, eTP Local, some local": zone(""), "eTP NP",
        ["0 RL", "1 R"] => [0, 1], [0], [0, 1], true;
    "both Local, some local": zone(""), "iTP eTP NP",
        ["0 RL", "1 R"] => [0, 1], [0], [0, 1], true;
    "both Local, all remote": zone(""), "iTP eTP NP",
        ["0 R", "1 R"] => [0, 1], [], [0, 1], true;
    "both Local, all remote and terminating": zone(""), "iTP eTP NP",
        ["0 ST", "1 ST"] => [0, 1], [], [0, 1], true;
    "eTP Local, remote ready, local terminating": zone(""), "eTP NP",
        ["0 R", "1 L", "2 STL", "3 ST"] => [0], [2], [0, 2], true;
    "eTP Local without external access": zone(""), "eTP",
        ["0 R", "1 RL"] => [0, 1], -, [0, 1], true;
    "iTP Local without external access": zone(""), "iTP",
        ["0 R", "1 RL"] => -, [1], [1], true;
    "no endpoints": zone(""), "", [] => [], -, [], false;
    "one endpoint with no condition set": zone("a"), "", ["0 -"] => [], -, [], false;
};

#[rustfmt::skip]
const OURS: &[Case] = cases! {
    "this node's endpoint is unready: the zone's": ("1", "a"), "",
        ["1 - a 1", "2 R a 2", "3 R b 3"] => [2], -, [2], true;
    "hints on unready endpoints only": ("1", "a"), "",
        ["1 - a 1", "2 R", "3 R"] => [2, 3], -, [2, 3], true;
    "unready endpoints without hints do not switch topology off": ("1", "a"), "",
        ["1 R a 1", "2 -", "3 R b 2"] => [1], -, [1], true;
    "zone hints without node hints on one: zone": ("1", "a"), "",
        ["1 R a 1", "2 R a", "3 R b 2"] => [1, 2], -, [1, 2], true;
    "node hints without zone hints, none for this node: all": ("9", "a"), "",
        ["1 R - 1", "2 R - 2"] => [1, 2], -, [1, 2], true;
    "the last resort knows no topology": ("1", "a"), "",
        ["1 ST a 1", "2 ST b 2", "3 - a 1"] => [1, 2], -, [1, 2], true;
    "terminating ones in this zone do not count while others are ready": ("1", "a"), "",
        ["1 ST a 1", "2 R b 2"] => [2], -, [2], true;
    "ready and terminating counts as ready": zone(""), "",
        ["1 RST", "2 ST"] => [1], -, [1], true;
    "serving but not ready and not terminating is out": zone(""), "",
        ["1 S", "2 R"] => [2], -, [2], true;
    "serving alone is no last resort": zone(""), "iTP", ["1 SL"] => -, [], [], false;
    "terminating alone is no last resort": zone(""), "", ["1 T"] => [], -, [], false;
    "iTP Local, local one unready, remote one ready": zone(""), "iTP",
        ["1 -L", "2 R"] => -, [], [], true;
    "iTP Local, remote one terminating": zone(""), "iTP", ["1 ST"] => -, [], [], true;
    "local last resort beside a remote ready one": zone(""), "iTP",
        ["1 STL", "2 R"] => -, [1], [1], true;
};

#[test]
fn cases_of_kube_proxy() {
    assert_eq!(KUBE_PROXY.len(), 32);
    KUBE_PROXY.iter().for_each(check);
}

#[test]
fn cases_of_our_own() {
    OURS.iter().for_each(check);
}

/// Selection knows nothing of families.
#[test]
fn ipv6_is_no_different() {
    for case in KUBE_PROXY.iter().chain(OURS) {
        let ipv6 = |text: &&str| {
            let mut endpoint = endpoint(text);
            let ip = [0xfd00, 0, 0, 0, 0, 0, 0, number(&endpoint)];
            endpoint.address = (ip, 80).into();
            endpoint
        };
        let endpoints: Vec<_> = case.endpoints.iter().map(ipv6).collect();
        check_endpoints(case, &endpoints);
    }
}

#[test]
fn every_endpoint_has_a_reason() {
    let node = ThisNode {
        name: "1".into(),
        zone: Some("a".into()),
    };
    let both = Policy {
        internal_local: true,
        externally_accessible: true,
        ..Policy::default()
    };
    let endpoints = ["1 RL a", "2 R b", "3 ST a", "4 STL a", "5 -L a", "6 - b"];
    let endpoints = endpoints.map(endpoint);
    let result = categorize(&endpoints, both, &node);
    assert_eq!(result.topology, Topology::SameZone);
    use Standing::{NotReady, OtherZone, Ready, Remote, Terminating};
    assert_eq!(
        result.cluster,
        [
            Ready,
            OtherZone,
            Terminating,
            Terminating,
            NotReady,
            NotReady
        ]
    );
    assert_eq!(
        result.local,
        [Ready, Remote, Remote, Terminating, NotReady, Remote]
    );
    let hinted = ["1 RL a 1", "2 R a 2"].map(endpoint);
    let result = categorize(&hinted, Policy::default(), &node);
    assert_eq!(result.cluster, [Ready, Standing::OtherNode]);
    assert_eq!(result.local, [Standing::Unused, Standing::Unused]);
}
