use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::*;
use crate::dataplane::dial::Dial;
use crate::dataplane::flow_table::tests::key;
use crate::dataplane::udp_flow::UdpFlow;
use crate::ipvs::{Connection, Protocol, SchedulerKind, ServicePortName, Table};
use crate::ipvs::{Verdict, VirtualAddress};
use crate::service::{Change, VirtualServerSpec};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A flow of UDP, or of something else that has carried so many bytes.
#[derive(Debug)]
enum Kind {
    Udp(UdpFlow),
    Other(u64),
}

impl Conversation for Kind {
    type Own = ();

    fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Udp(_) => (0, 0),
            Self::Other(bytes) => (*bytes, 0),
        }
    }

    fn standing(&self, _: &DataplaneConfig) -> (&'static str, Option<Instant>) {
        ("NONE", None)
    }

    fn dial(&mut self) -> Option<&mut Dial> {
        None
    }

    fn udp(&self) -> Option<&UdpFlow> {
        match self {
            Self::Udp(udp) => Some(udp),
            Self::Other(_) => None,
        }
    }
}

fn real_server() -> SocketAddr {
    (Ipv4Addr::new(10, 1, 65, 7), 443).into()
}

/// A virtual server with that real server, or with none.
fn upsert(table: &Table, served: bool) -> Arc<VirtualServer> {
    let key = key(0);
    let address = VirtualAddress {
        ip: key.virtual_server.ip(),
        port: key.virtual_server.port(),
        protocol: Protocol::Tcp,
    };
    let service = Arc::new(ServicePortName {
        namespace: "default".into(),
        name: "web".into(),
        port: "https".into(),
        protocol: Protocol::Tcp,
    });
    let other = (Ipv4Addr::new(10, 1, 65, 8), 443).into();
    let endpoints = vec![if served { real_server() } else { other }];
    table.apply(&Change::Upsert(VirtualServerSpec {
        real_servers: endpoints.clone(),
        serving: endpoints,
        ..VirtualServerSpec::new(address, service)
    }));
    let Verdict::Forward(server) = table.verdict(address, key.client.ip(), || false) else {
        panic!("the virtual server takes no flow");
    };
    server
}

fn table() -> Table {
    let table = Table::new(SchedulerKind::Rr);
    table.set_synced();
    table
}

fn udp(now: Instant) -> Kind {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    Kind::Udp(UdpFlow::new(socket, now))
}

#[test]
fn a_flow_has_one_turn_however_often_it_asks() {
    let (server, now) = (upsert(&table(), true), Instant::now());
    let mut flows = Flows::default();
    let [one, two] =
        [1, 2].map(|port| flows.insert(key(port), Kind::Other(0), (), Arc::clone(&server), now));
    for id in [two, one, two] {
        flows.mark(id);
    }
    assert!(flows.has_marked());
    assert_eq!(flows.take_marked(), [two, one]);
    assert!(!flows.has_marked());
    // It has not had its turn yet.
    flows.mark(one);
    assert!(!flows.has_marked());
    flows.get_mut(one).unwrap().dirty = false;
    flows.mark(one);
    assert_eq!(flows.take_marked(), [one]);
}

#[test]
fn the_earliest_time_that_was_armed_counts() {
    let (server, now) = (upsert(&table(), true), Instant::now());
    let mut flows = Flows::default();
    let id = flows.insert(key(1), Kind::Other(0), (), Arc::clone(&server), now);
    let gone = flows.insert(key(2), Kind::Other(0), (), server, now);
    let at = |seconds| now + Duration::from_secs(seconds);
    for seconds in [5, 3, 4] {
        flows.arm(id, at(seconds));
    }
    flows.arm(gone, at(1));
    flows.remove(gone, key(2), None).unwrap();
    assert_eq!(flows.due(at(2)), None);
    assert_eq!(flows.next_timer(), Some(at(3)));
    assert_eq!(flows.due(at(3)), Some(id));
    assert_eq!(flows.due(at(9)), None);
    flows.arm(id, at(9));
    assert_eq!(flows.due(at(9)), Some(id));
}

#[test]
fn timers_of_flows_that_are_over_do_not_pile_up() {
    let (server, now) = (upsert(&table(), true), Instant::now());
    let mut flows = Flows::default();
    let later = now + Duration::from_secs(900);
    for _ in 0..20_000 {
        let id = flows.insert(key(1), Kind::Other(0), (), Arc::clone(&server), now);
        flows.arm(id, later);
        flows.remove(id, key(1), None).unwrap();
    }
    let kept = std::iter::from_fn(|| flows.timers.due(later)).count();
    assert!(kept < 5_000, "{kept}");
}

#[test]
fn bytes_are_counted_once() {
    let (server, now) = (upsert(&table(), true), Instant::now());
    let mut flows = Flows::default();
    let id = flows.insert(key(1), Kind::Other(0), (), Arc::clone(&server), now);
    let chosen = server.schedule(key(1).client, now, &[]).unwrap();
    flows.get_mut(id).unwrap().connection = Some(Connection::new(chosen));
    flows.notice_bytes(id);
    assert!(!flows.has_unaccounted());
    for bytes in [7, 9] {
        flows.get_mut(id).unwrap().kind = Kind::Other(bytes);
        flows.notice_bytes(id);
    }
    assert_eq!(flows.unaccounted, [id]);
    flows.account();
    assert!(!flows.has_unaccounted());
    assert!(!flows.get(id).unwrap().is_unnoticed());
    flows.notice_bytes(id);
    assert!(!flows.has_unaccounted());
}

#[test]
fn only_udp_flows_to_a_real_server_that_retired_are_named() {
    let (table, now) = (table(), Instant::now());
    let server = upsert(&table, true);
    let mut flows = Flows::default();
    for (port, kind) in [(1, Kind::Other(0)), (2, udp(now))] {
        let id = flows.insert(key(port), kind, (), Arc::clone(&server), now);
        let chosen = server.schedule(key(port).client, now, &[]).unwrap();
        flows.get_mut(id).unwrap().connection = Some(Connection::new(chosen));
    }
    // Has no real server yet.
    flows.insert(key(3), udp(now), (), server, now);
    assert_eq!(flows.retired(), []);
    upsert(&table, false);
    let Some(Found::Flow(to_retired)) = flows.find(&key(2)) else {
        panic!("the flow is gone");
    };
    assert_eq!(flows.retired(), [to_retired]);
}

#[test]
fn silence_is_over_sooner_once_its_time_is_shorter() {
    let (server, now) = (upsert(&table(), true), Instant::now());
    let mut flows = Flows::default();
    let id = flows.insert(key(1), udp(now), (), Arc::clone(&server), now);
    let other = flows.insert(key(2), Kind::Other(0), (), server, now);
    assert!(!flows.is_silent(id, TIMEOUT, now));
    assert_eq!(flows.next_timer(), Some(now + TIMEOUT));
    let short = TIMEOUT / 2;
    flows.hasten_udp(short);
    assert_eq!(flows.due(now + short), Some(id));
    assert!(flows.is_silent(id, short, now + short));
    assert!(!flows.is_silent(other, short, now + short));
    // Settings that are longer give it time again, and all flows a turn.
    assert_eq!(flows.reconsider(TIMEOUT, now + short), []);
    assert_eq!(flows.take_marked(), [id, other]);
    assert_eq!(flows.due(now + TIMEOUT), Some(id));
    assert_eq!(flows.reconsider(short, now + TIMEOUT), [id]);
}
