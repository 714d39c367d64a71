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
             default/{owner}, which is older or first by name"
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
