//! Several Services that claim one address.

use super::*;

fn claimant(name: &str, created: Option<&str>) -> Event {
    apply_service(service(
        json!({"name": name, "creationTimestamp": created}),
        json!({"clusterIP": "10.0.0.3", "ports": [{"port": 80}]}),
    ))
}

fn backed(name: &str, endpoint: &str) -> Event {
    apply_slice(slice(name, name, &[("", 80)], &[endpoint]))
}

const OLD: Option<&str> = Some("2020-01-01T00:00:00Z");
const NEW: Option<&str> = Some("2024-01-01T00:00:00Z");

#[test]
fn the_oldest_wins_then_the_first_by_name() {
    for (first, second, winner) in [
        (("a", NEW), ("b", OLD), "b"),
        (("a", OLD), ("b", OLD), "a"),
        (("a", None), ("b", None), "a"),
        (("a", None), ("b", NEW), "b"),
    ] {
        let one = claimant(first.0, first.1);
        let other = claimant(second.0, second.1);
        let expected = [format!("TCP 10.0.0.3:80 default/{winner} -> reject")];
        assert_eq!(table(&index([one.clone(), other.clone()])), expected);
        assert_eq!(table(&index([other, one])), expected);
    }
}

#[test]
fn the_other_is_told_once_and_takes_over() {
    let mut index = index([backed("a", "10.1.1.1"), backed("b", "10.1.1.2")]);
    let lost = |loser: &str, owner: &str| {
        format!(
            "Service default/{loser}: spec.ports[0].port: TCP 10.0.0.3:80 belongs to \
             default/{owner}: a cluster IP comes first, then age, then name"
        )
    };
    let first = index.apply(claimant("a", OLD));
    assert_eq!(warnings(&first), [""; 0]);
    let second = index.apply(claimant("b", NEW));
    assert_eq!(warnings(&second), [lost("b", "a")]);
    assert_eq!(second.changes, []);
    // News of either do not repeat it, and the loser's endpoints change nothing.
    let again = index.apply_all([backed("a", "10.1.1.3"), backed("b", "10.1.1.4")]);
    assert_eq!(
        changes(&again),
        ["TCP 10.0.0.3:80 default/a -> 10.1.1.3:80"]
    );
    assert_eq!(warnings(&again), [""; 0]);
    // A third that is older than both.
    let third = index.apply(claimant("c", Some("2019-01-01T00:00:00Z")));
    assert_eq!(changes(&third), ["TCP 10.0.0.3:80 default/c -> reject"]);
    assert_eq!(warnings(&third), [lost("a", "c"), lost("b", "c")]);
    // One by one they go.
    let take_over = index.apply(delete(Svc, "c"));
    assert_eq!(
        changes(&take_over),
        ["TCP 10.0.0.3:80 default/a -> 10.1.1.3:80"]
    );
    assert_eq!(warnings(&take_over), [lost("b", "a")]);
    let last = index.apply(delete(Svc, "a"));
    assert_eq!(changes(&last), ["TCP 10.0.0.3:80 default/b -> 10.1.1.4:80"]);
    assert_eq!(
        changes(&index.apply(delete(Svc, "b"))),
        ["TCP 10.0.0.3:80 removed"]
    );
    index.apply_all([delete(Slice, "a"), delete(Slice, "b")]);
    assert!(index.is_empty());
}

#[test]
fn an_address_that_moves_within_a_batch_is_one_change() {
    let mut index = index([claimant("z", OLD)]);
    let moved = index.apply_all([delete(Svc, "z"), claimant("a", NEW)]);
    assert_eq!(changes(&moved), ["TCP 10.0.0.3:80 default/a -> reject"]);
    assert_eq!(warnings(&moved), [""; 0]);
    let order = index.apply_all([claimant("b", OLD), delete(Svc, "a")]);
    assert_eq!(changes(&order), ["TCP 10.0.0.3:80 default/b -> reject"]);
    assert_eq!(warnings(&order), [""; 0]);
}

#[test]
fn several_services_share_an_external_ip_on_ports_of_their_own() {
    let with = |name: &str, cluster_ip: &str, port: i32| {
        apply_service(service(
            json!({"name": name, "creationTimestamp": if name == "a" { OLD } else { NEW }}),
            json!({"clusterIP": cluster_ip, "externalIPs": ["1.2.3.4"], "ports": [{"port": port}]}),
        ))
    };
    let mut index = index([with("a", "10.0.0.1", 80), with("b", "10.0.0.2", 81)]);
    assert_eq!(
        table(&index),
        [
            "TCP 1.2.3.4:80 default/a -> reject",
            "TCP 1.2.3.4:81 default/b -> reject",
            "TCP 10.0.0.1:80 default/a -> reject",
            "TCP 10.0.0.2:81 default/b -> reject",
        ]
    );
    let taken = index.apply(with("b", "10.0.0.2", 80));
    assert_eq!(
        changes(&taken),
        [
            "TCP 1.2.3.4:81 removed",
            "TCP 10.0.0.2:80 default/b -> reject",
            "TCP 10.0.0.2:81 removed",
        ]
    );
    assert_eq!(
        warnings(&taken),
        [
            "Service default/b: spec.ports[0].port: TCP 1.2.3.4:80 belongs to default/a: \
          a cluster IP comes first, then age, then name"
        ]
    );
    let free = index.apply(delete(Svc, "a"));
    assert_eq!(
        changes(&free),
        [
            "TCP 1.2.3.4:80 default/b -> reject",
            "TCP 10.0.0.1:80 removed"
        ]
    );
}

/// CVE-2020-8554: nobody takes over another Service's cluster IP.
#[test]
fn an_external_ip_does_not_take_a_cluster_ip() {
    let thief = service(
        json!({"name": "a", "creationTimestamp": "2000-01-01T00:00:00Z"}),
        json!({"clusterIP": "10.0.0.9", "externalIPs": ["10.0.0.3"], "ports": [{"port": 80}]}),
    );
    let mut index = index([apply_service(thief)]);
    assert_eq!(
        changes(&index.apply(claimant("b", NEW))),
        ["TCP 10.0.0.3:80 default/b -> reject"]
    );
    // As long as no Service has it, it is an address like any other.
    assert_eq!(
        changes(&index.apply(delete(Svc, "b"))),
        ["TCP 10.0.0.3:80 default/a -> reject"]
    );
}

#[test]
fn a_node_port_belongs_to_one_service() {
    let with = |name: &str, cluster_ip: &str| {
        apply_service(service(
            json!({"name": name}),
            json!({
                "clusterIP": cluster_ip, "type": "NodePort",
                "ports": [{"port": 80, "nodePort": 30080}],
            }),
        ))
    };
    let mut index = index([with("a", "10.0.0.1")]);
    let second = index.apply(with("b", "10.0.0.2"));
    assert_eq!(changes(&second), ["TCP 10.0.0.2:80 default/b -> reject"]);
    assert_eq!(
        warnings(&second),
        [
            "Service default/b: spec.ports[0].nodePort: TCP 0.0.0.0:30080 belongs to default/a: \
          a cluster IP comes first, then age, then name"
        ]
    );
}
