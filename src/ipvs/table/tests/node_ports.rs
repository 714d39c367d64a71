//! Node ports: at each address of the node a virtual server of its own.

use super::*;
use crate::ipvs::state::MAX_PLACES;
use crate::service::Exposure;

const PORT: u16 = 30_080;
const OUTSIDE: &str = "203.0.113.2";

fn address() -> VirtualAddress {
    VirtualAddress::node_port(Family::V4, PORT, Protocol::Tcp)
}

fn node_port(hosts: &[u8], persistence: Option<u64>) -> VirtualServerSpec {
    VirtualServerSpec {
        exposure: Exposure::NodePort,
        persistence: persistence.map(Duration::from_secs),
        ..spec(address(), hosts)
    }
}

#[track_caller]
fn met(table: &Table, place: &str) -> Arc<VirtualServer> {
    let local = SocketAddr::new(place.parse().unwrap(), PORT);
    match table.node_port(local, Protocol::Tcp, OUTSIDE.parse().unwrap(), || false) {
        Verdict::Forward(server) => server,
        refused @ (Verdict::Reject(_) | Verdict::Drop(_)) => panic!("{place}: {refused:?}"),
    }
}

fn chosen(table: &Table, place: &str, count: usize) -> Vec<u8> {
    (0..count)
        .map(|_| host(&pick(&met(table, place))))
        .collect()
}

#[test]
fn each_address_of_the_node_has_a_rotation_of_its_own() {
    let table = table();
    upsert(&table, node_port(&[1, 2, 3], None));
    assert_eq!(chosen(&table, "192.168.0.2", 2), [3, 2]);
    assert_eq!(chosen(&table, "10.1.15.1", 1), [3]);
    assert_eq!(chosen(&table, "192.168.0.2", 2), [1, 3]);
    // A change of endpoints moves neither back to its beginning.
    upsert(&table, node_port(&[1, 2, 3, 4], None));
    assert_eq!(chosen(&table, "192.168.0.2", 2), [2, 1]);
    assert_eq!(chosen(&table, "10.1.15.1", 1), [2]);
    // One that is asked for the first time begins where any new one does.
    assert_eq!(chosen(&table, "10.1.15.0", 1), [4]);
    // Whichever of 127.0.0.0/8 was asked, it is one.
    assert_eq!(chosen(&table, "127.0.0.1", 1), [4]);
    assert_eq!(chosen(&table, "127.9.9.9", 1), [3]);
}

#[test]
fn each_address_of_the_node_remembers_its_own_clients() {
    let table = table();
    upsert(&table, node_port(&[1, 2, 3], Some(10_800)));
    let start = Instant::now();
    let at = |place: &str, n: u8| {
        let server = met(&table, place);
        let chosen = server.schedule(client(n), start, &[]).unwrap();
        let mut connection = Connection::new(chosen);
        server.connected(client(n).ip(), &mut connection, start);
        host(connection.real_server())
    };
    assert_eq!([at("192.168.0.2", 1), at("192.168.0.2", 1)], [3, 3]);
    assert_eq!([at("10.1.15.1", 9), at("10.1.15.1", 1)], [3, 2]);
    assert_eq!([at("192.168.0.2", 1), at("10.1.15.1", 1)], [3, 2]);
    let persistent = |place: &str| {
        met(&table, place)
            .forecast(Some(client(1)), start)
            .persistent
    };
    assert_eq!(
        persistent("10.1.15.1").unwrap().0,
        "10.1.65.2:443".parse().unwrap()
    );
    assert_eq!(persistent("10.1.15.9"), None, "nobody asked there");
    // An endpoint that goes is forgotten at each.
    upsert(&table, node_port(&[1, 3], Some(10_800)));
    assert_eq!([at("192.168.0.2", 1), at("10.1.15.1", 1)], [3, 1]);
}

#[test]
fn its_addresses_share_real_servers_and_their_counts() {
    let table = table();
    let mut least = node_port(&[1, 2], None);
    least.scheduler = Some(SchedulerKind::Lc);
    upsert(&table, least.clone());
    let flow = Connection::new(pick(&met(&table, "192.168.0.2")));
    let other = Connection::new(pick(&met(&table, "10.1.15.1")));
    assert_ne!(host(flow.real_server()), host(other.real_server()));
    assert_eq!(
        listed(&table, address()),
        [(1, 1, 0, 1), (2, 1, 0, 1)],
        "one row each"
    );
    // Both drain, and what drains is no flow's at any address any more.
    least.real_servers = endpoints(&[3]);
    least.serving = endpoints(&[3]);
    upsert(&table, least);
    for place in ["192.168.0.2", "10.1.15.1"] {
        assert_eq!(chosen(&table, place, 2), [3, 3], "{place}");
    }
    assert!(flow.real_server().is_retired() && other.real_server().is_retired());
    table.apply(&Change::Remove(address()));
    assert!(table.is_empty());
}

#[test]
fn policies_hold_at_each_address() {
    let table = table();
    let local = |inside: &[u8], outside: &[u8]| VirtualServerSpec {
        external: Some(endpoints(outside)),
        external_when_empty: WhenEmpty::Drop,
        ..node_port(inside, None)
    };
    upsert(&table, local(&[1, 2], &[2]));
    assert_eq!(chosen(&table, "192.168.0.2", 2), [2, 2]);
    // To Cluster and back: the second rotation comes and goes at each.
    upsert(&table, node_port(&[1, 2], None));
    assert_eq!(chosen(&table, "192.168.0.2", 2), [2, 1]);
    upsert(&table, local(&[1, 2], &[1]));
    assert_eq!(chosen(&table, "192.168.0.2", 2), [1, 1]);
    assert_eq!(chosen(&table, "10.1.15.1", 2), [1, 1]);
}

#[test]
fn a_successor_goes_on_at_each_address() {
    let now = Instant::now();
    let old = table();
    upsert(&old, node_port(&[1, 2, 3], None));
    assert_eq!(chosen(&old, "192.168.0.2", 2), [3, 2]);
    assert_eq!(chosen(&old, "10.1.15.1", 1), [3]);
    let text = serde_json::to_string(&old.memory(now)).unwrap();
    let new = table();
    upsert(&new, node_port(&[1, 2, 3], None));
    let memory: Vec<ServerMemory> = serde_json::from_str(&text).unwrap();
    new.recall(&memory, now);
    assert_eq!(chosen(&new, "192.168.0.2", 1), [1]);
    assert_eq!(chosen(&new, "10.1.15.1", 1), [2]);
    assert_eq!(chosen(&new, "10.1.15.0", 1), [3]);
}

#[test]
fn an_address_that_the_node_has_lost_is_forgotten() {
    let table = table();
    upsert(&table, node_port(&[1, 2, 3], None));
    let places = ["192.168.0.2", "10.1.15.1"];
    for place in places {
        assert_eq!(chosen(&table, place, 1), [3]);
    }
    table.retain_node_addresses(|ip| ip.to_string() == places[0]);
    assert_eq!(chosen(&table, places[0], 1), [2], "it goes on");
    assert_eq!(chosen(&table, places[1], 1), [3], "it begins anew");
}

#[test]
fn addresses_without_number_share_a_rotation() {
    let table = table();
    upsert(&table, node_port(&[1, 2, 3], None));
    let place = |n: usize| format!("10.7.{}.{}", n / 250, n % 250 + 1);
    for n in 0..MAX_PLACES {
        assert_eq!(chosen(&table, &place(n), 1), [3], "{n}");
    }
    for (n, expected) in (MAX_PLACES..).zip([3, 2, 1]) {
        assert_eq!(chosen(&table, &place(n), 1), [expected], "{n}");
    }
    assert_eq!(chosen(&table, &place(0), 1), [2]);
}
