//! By meaning: kube-proxy's `TestUpdateEndpointsMap` and the transitions of
//! `servicechangetracker_test.go`.

use super::*;

/// Slices as `(name, service, ports, endpoints)`.
type Slices = &'static [(
    &'static str,
    &'static str,
    &'static [(&'static str, i32)],
    &'static [&'static str],
)];

struct Transition {
    name: &'static str,
    before: Slices,
    after: Slices,
    /// What the change yields.
    changes: &'static [&'static str],
}

const UNNAMED: &[(&str, i32)] = &[("", 11)];
const P11: &[(&str, i32)] = &[("p11", 11)];
const P12: &[(&str, i32)] = &[("p12", 12)];
const P11_22: &[(&str, i32)] = &[("p11", 22)];
const P11_P12: &[(&str, i32)] = &[("p11", 11), ("p12", 12)];

/// Service `a` has ports p11, p12 and an unnamed one, `b` has p11.
#[rustfmt::skip]
const TRANSITIONS: &[Transition] = &[
    Transition { name: "nothing", before: &[], after: &[], changes: &[] },
    Transition {
        name: "no change, unnamed port",
        before: &[("1", "a", UNNAMED, &["1.1.1.1"])],
        after: &[("1", "a", UNNAMED, &["1.1.1.1"])],
        changes: &[],
    },
    Transition {
        name: "no change, named port, local",
        before: &[("1", "a", P11, &["1.1.1.1 n1"])],
        after: &[("1", "a", P11, &["1.1.1.1 n1"])],
        changes: &[],
    },
    Transition {
        name: "no change, several slices",
        before: &[("1", "a", P11, &["1.1.1.1"]), ("2", "a", P12, &["1.1.1.2"])],
        after: &[("1", "a", P11, &["1.1.1.1"]), ("2", "a", P12, &["1.1.1.2"])],
        changes: &[],
    },
    Transition {
        name: "no change, several slices and ports",
        before: &[("1", "a", P11_P12, &["1.1.1.1", "1.1.1.2 n1"]), ("2", "b", P11, &["1.1.1.3"])],
        after: &[("1", "a", P11_P12, &["1.1.1.1", "1.1.1.2 n1"]), ("2", "b", P11, &["1.1.1.3"])],
        changes: &[],
    },
    Transition {
        name: "a slice is added",
        before: &[],
        after: &[("1", "a", UNNAMED, &["1.1.1.1"])],
        changes: &["TCP 10.0.0.1:80 default/a -> 1.1.1.1:11"],
    },
    Transition {
        name: "a slice is removed",
        before: &[("1", "a", UNNAMED, &["1.1.1.1"])],
        after: &[],
        changes: &["TCP 10.0.0.1:80 default/a -> reject"],
    },
    Transition {
        name: "an address and a port are added",
        before: &[("1", "a", P11, &["1.1.1.1"])],
        after: &[("1", "a", P11_P12, &["1.1.1.1", "1.1.1.2"])],
        changes: &[
            "TCP 10.0.0.1:11 default/a:p11 -> 1.1.1.1:11 1.1.1.2:11",
            "TCP 10.0.0.1:12 default/a:p12 -> 1.1.1.1:12 1.1.1.2:12",
        ],
    },
    Transition {
        name: "an address and a port are removed",
        before: &[("1", "a", P11_P12, &["1.1.1.1", "1.1.1.2"])],
        after: &[("1", "a", P11, &["1.1.1.1"])],
        changes: &[
            "TCP 10.0.0.1:11 default/a:p11 -> 1.1.1.1:11",
            "TCP 10.0.0.1:12 default/a:p12 -> reject",
        ],
    },
    Transition {
        name: "a slice is added to another",
        before: &[("1", "a", P11, &["1.1.1.1"])],
        after: &[("1", "a", P11, &["1.1.1.1"]), ("2", "a", P12, &["1.1.1.2"])],
        changes: &["TCP 10.0.0.1:12 default/a:p12 -> 1.1.1.2:12"],
    },
    Transition {
        name: "a slice is removed from another",
        before: &[("1", "a", P11, &["1.1.1.1"]), ("2", "a", P12, &["1.1.1.2"])],
        after: &[("1", "a", P11, &["1.1.1.1"])],
        changes: &["TCP 10.0.0.1:12 default/a:p12 -> reject"],
    },
    Transition {
        name: "a port is renamed",
        before: &[("1", "a", P11, &["1.1.1.1"])],
        after: &[("1", "a", &[("p12", 11)], &["1.1.1.1"])],
        changes: &[
            "TCP 10.0.0.1:11 default/a:p11 -> reject",
            "TCP 10.0.0.1:12 default/a:p12 -> 1.1.1.1:11",
        ],
    },
    Transition {
        name: "a port is renumbered",
        before: &[("1", "a", P11, &["1.1.1.1"])],
        after: &[("1", "a", P11_22, &["1.1.1.1"])],
        changes: &["TCP 10.0.0.1:11 default/a:p11 -> 1.1.1.1:22"],
    },
    Transition {
        name: "much at once",
        before: &[
            ("1", "a", P11, &["1.1.1.1", "1.1.1.2"]),
            ("2", "b", P11, &["2.2.2.1 n1", "2.2.2.2"]),
            ("3", "b", P11_22, &["2.2.2.22"]),
        ],
        after: &[
            ("1", "a", P11, &["1.1.1.1", "1.1.1.11"]),
            ("4", "a", P12, &["1.1.1.2"]),
            ("3", "b", P11_22, &["2.2.2.22", "2.2.2.2"]),
        ],
        changes: &[
            "TCP 10.0.0.1:11 default/a:p11 -> 1.1.1.11:11 1.1.1.1:11",
            "TCP 10.0.0.1:12 default/a:p12 -> 1.1.1.2:12",
            "TCP 10.0.0.2:11 default/b:p11 -> 2.2.2.22:22 2.2.2.2:22",
        ],
    },
    Transition {
        name: "from no endpoint to an unnamed port",
        before: &[("1", "a", UNNAMED, &[])],
        after: &[("1", "a", UNNAMED, &["1.1.1.1"])],
        changes: &["TCP 10.0.0.1:80 default/a -> 1.1.1.1:11"],
    },
    Transition {
        name: "from ready to terminating: still the only one",
        before: &[("1", "b", P11, &["1.1.1.1"])],
        after: &[("1", "b", P11, &["1.1.1.1 - !R S T"])],
        changes: &[],
    },
    Transition {
        name: "from ready to terminating beside another",
        before: &[("1", "b", P11, &["1.1.1.1", "1.1.1.2"])],
        after: &[("1", "b", P11, &["1.1.1.1 - !R S T", "1.1.1.2"])],
        changes: &["TCP 10.0.0.2:11 default/b:p11 -> 1.1.1.2:11"],
    },
    Transition {
        name: "from terminating to nothing",
        before: &[("1", "b", P11, &["1.1.1.1 - !R S T"])],
        after: &[],
        changes: &["TCP 10.0.0.2:11 default/b:p11 -> reject"],
    },
];

#[test]
fn endpoints() {
    for case in TRANSITIONS {
        let services = || {
            [
                apply_service(plain(
                    "a",
                    "10.0.0.1",
                    &[("p11", 11), ("p12", 12), ("", 80)],
                )),
                apply_service(plain("b", "10.0.0.2", &[("p11", 11)])),
            ]
        };
        let slices = |slices: Slices| {
            let make = |&(name, service, ports, endpoints)| {
                apply_slice(slice(name, service, ports, endpoints))
            };
            slices.iter().map(make).collect::<Vec<_>>()
        };
        let mut changing = index(services().into_iter().chain(slices(case.before)));
        let gone = case
            .before
            .iter()
            .filter(|b| case.after.iter().all(|a| a.0 != b.0));
        let gone = gone.map(|b| delete(Slice, b.0)).collect::<Vec<_>>();
        let outcome = changing.apply_all(gone.into_iter().chain(slices(case.after)));
        assert_eq!(changes(&outcome), case.changes, "{}", case.name);
        let fresh = index(services().into_iter().chain(slices(case.after)));
        assert_eq!(table(&changing), table(&fresh), "{}", case.name);
    }
}

#[test]
fn services() {
    let mut index = index([apply_slice(slice("1", "a", P11_P12, &["1.1.1.1"]))]);
    let mut after = |event| changes(&index.apply(event));
    let typed = |spec: serde_json::Value| apply_service(service(json!({"name": "a"}), spec));
    let cluster = |ports: &[(&str, i32)]| apply_service(plain("a", "10.0.0.1", ports));
    let p11 = "TCP 10.0.0.1:11 default/a:p11 -> 1.1.1.1:11";
    let p12 = "TCP 10.0.0.1:12 default/a:p12 -> 1.1.1.1:12";
    let removed = |address: &str| format!("TCP {address} removed");

    assert_eq!(after(cluster(P11)), [p11]);
    assert_eq!(after(cluster(P11_P12)), [p12]);
    assert_eq!(after(cluster(P12)), [removed("10.0.0.1:11")]);
    // The same number under another name.
    assert_eq!(
        after(cluster(&[("p11", 12)])),
        ["TCP 10.0.0.1:12 default/a:p11 -> 1.1.1.1:11"]
    );
    assert_eq!(
        after(cluster(P11)),
        [p11.to_owned(), removed("10.0.0.1:12")]
    );
    // ClusterIP to ExternalName, to headless, and back.
    let external = json!({"type": "ExternalName", "externalName": "example.org"});
    assert_eq!(after(typed(external.clone())), [removed("10.0.0.1:11")]);
    assert_eq!(after(cluster(P11)), [p11]);
    let headless = json!({"clusterIP": "None", "ports": [{"name": "p11", "port": 11}]});
    assert_eq!(after(typed(headless.clone())), [removed("10.0.0.1:11")]);
    assert_eq!(after(typed(external)), [""; 0]);
    assert_eq!(after(typed(headless)), [""; 0]);
    assert_eq!(after(cluster(P11)), [p11]);
    // Another address.
    assert_eq!(
        after(apply_service(plain("a", "10.0.0.9", P11))),
        [
            removed("10.0.0.1:11"),
            "TCP 10.0.0.9:11 default/a:p11 -> 1.1.1.1:11".to_owned()
        ]
    );
    // Handed to another proxy, and taken back.
    let labels = json!({"service.kubernetes.io/service-proxy-name": "other"});
    let foreign = service(
        json!({"name": "a", "labels": labels}),
        json!({"clusterIP": "10.0.0.9"}),
    );
    assert_eq!(after(apply_service(foreign)), [removed("10.0.0.9:11")]);
    assert_eq!(after(cluster(P11)), [p11]);
    assert_eq!(after(delete(Svc, "a")), [removed("10.0.0.1:11")]);
    assert_eq!(after(delete(Slice, "1")), [""; 0]);
    assert!(index.is_empty());
}
