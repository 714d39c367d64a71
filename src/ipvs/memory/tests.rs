use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::ipvs::{Protocol, SchedulerKind, ServicePortName, Table, Verdict, VirtualServer};
use crate::service::{Change, VirtualServerSpec};

const CLIENT: &str = "10.1.15.7:40000";

fn address() -> VirtualAddress {
    VirtualAddress {
        ip: [10, 0, 0, 3].into(),
        port: 443,
        protocol: Protocol::Tcp,
    }
}

fn table(kind: SchedulerKind, hosts: &[u8], persistence: bool) -> Table {
    let table = Table::new(kind);
    program(&table, hosts, persistence);
    table.set_synced();
    table
}

fn program(table: &Table, hosts: &[u8], persistence: bool) {
    let service = ServicePortName {
        namespace: "default".into(),
        name: "web".into(),
        port: "https".into(),
        protocol: Protocol::Tcp,
    };
    let servers: Vec<SocketAddr> = hosts
        .iter()
        .map(|host| SocketAddr::from(([10, 1, 65, *host], 443)))
        .collect();
    table.apply(&Change::Upsert(VirtualServerSpec {
        real_servers: servers.clone(),
        serving: servers,
        persistence: persistence.then_some(Duration::from_secs(100)),
        ..VirtualServerSpec::new(address(), Arc::new(service))
    }));
}

/// The last byte of the real server chosen.
fn pick(table: &Table, client: &str, now: Instant) -> u8 {
    let client: SocketAddr = client.parse().unwrap();
    let Verdict::Forward(server) = table.verdict(address(), client.ip(), || false) else {
        panic!("not served");
    };
    let chosen = server.schedule(client, now, &[]).unwrap().address;
    match chosen.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("{chosen}"),
    }
}

fn server_of(table: &Table) -> Arc<VirtualServer> {
    match table.verdict(address(), [10, 1, 15, 7].into(), || false) {
        Verdict::Forward(server) => server,
        other @ (Verdict::Reject(_) | Verdict::Drop(_)) => panic!("{other:?}"),
    }
}

/// What the successor remembers when it is told through text.
fn passed_on(from: &Table, to: &Table, now: Instant) {
    let text = serde_json::to_string(&from.memory(now)).unwrap();
    let memory: Vec<ServerMemory> = serde_json::from_str(&text).unwrap();
    to.recall(&memory, now);
}

#[test]
fn the_rotation_goes_on_in_the_order_it_had() {
    let now = Instant::now();
    for kind in [SchedulerKind::Rr, SchedulerKind::Wrr] {
        // Grown one by one, so that its order is not that of a new table.
        let old = table(kind, &[5], false);
        program(&old, &[5, 6], false);
        program(&old, &[5, 6, 7, 8], false);
        for _ in 0..3 {
            pick(&old, CLIENT, now);
        }
        let new = table(kind, &[5, 6, 7, 8], false);
        passed_on(&old, &new, now);
        let picks = |table: &Table| [(); 9].map(|()| pick(table, CLIENT, now));
        assert_eq!(picks(&new), picks(&old), "{kind}");
    }
}

#[test]
fn another_list_goes_on_after_the_last_choice() {
    let now = Instant::now();
    let old = table(SchedulerKind::Rr, &[5, 6, 7], false);
    let last = pick(&old, CLIENT, now);
    let new = table(SchedulerKind::Rr, &[5, 6, 7, 8], false);
    passed_on(&old, &new, now);
    assert_ne!(pick(&new, CLIENT, now), last);
}

#[test]
fn clients_stay_with_their_real_server_for_the_time_they_had_left() {
    let now = Instant::now();
    let old = table(SchedulerKind::Rr, &[5, 6, 7], true);
    let client: SocketAddr = CLIENT.parse().unwrap();
    pick(&old, "10.1.15.8:1", now);
    let mine = pick(&old, CLIENT, now);
    let server = server_of(&old);
    let chosen: SocketAddr = ([10, 1, 65, mine], 443).into();
    let mut connection = server.adopt(chosen, true).unwrap();
    server.connected(client.ip(), &mut connection, now);
    drop(connection);
    let later = now + Duration::from_secs(60);
    let new = table(SchedulerKind::Rr, &[5, 6, 7], true);
    passed_on(&old, &new, later);
    for _ in 0..5 {
        assert_eq!(pick(&new, CLIENT, later), mine);
    }
    let view = |at| {
        let forecast = server_of(&new).forecast(Some(client), at);
        forecast.persistent.map(|(address, _)| address)
    };
    assert_eq!(view(now + Duration::from_secs(99)), Some(chosen));
    assert_eq!(view(now + Duration::from_secs(101)), None);
}

#[test]
fn flows_of_another_process_are_not_stale_while_nobody_serves() {
    let gone: SocketAddr = ([10, 1, 65, 5], 443).into();
    let new = table(SchedulerKind::Rr, &[], false);
    let server = new
        .listened(([10, 0, 0, 3], 443).into(), Protocol::Tcp)
        .unwrap();
    let first = server.adopt_left(gone).unwrap();
    let second = server.adopt_left(gone).unwrap();
    assert!(Arc::ptr_eq(first.real_server(), second.real_server()));
    program(&new, &[], false);
    assert!(!first.real_server().is_retired());
    // Another serves, and then it is.
    program(&new, &[6], false);
    assert!(first.real_server().is_retired());
    assert!(server_of(&new).adopt_left(gone).is_none());
    // It comes back with the flows it has.
    program(&new, &[5], false);
    assert!(!first.real_server().is_retired());
    let view = &server_of(&new).real_servers()[0];
    assert_eq!((view.weight, view.inactive), (1, 2));
    let elsewhere = new.listened(([10, 0, 0, 4], 443).into(), Protocol::Tcp);
    assert!(elsewhere.is_none());
}

#[test]
fn flows_of_another_process_count_for_least_connection() {
    let now = Instant::now();
    let new = table(SchedulerKind::Lc, &[5, 6], false);
    let busy = pick(&new, CLIENT, now);
    let held = new.adopt(address(), ([10, 1, 65, busy], 443).into(), true);
    assert!(held.is_some());
    assert_ne!(pick(&new, CLIENT, now), busy);
    drop(held);
    assert_eq!(pick(&new, CLIENT, now), busy);
    assert!(
        new.adopt(address(), ([10, 9, 9, 9], 443).into(), true)
            .is_none()
    );
}
