use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::ipvs::{Connection, RealServer};
use crate::service::WhenEmpty;

pub(super) const VIP: &str = "10.0.0.3:443";

fn at(protocol: Protocol, address: &str) -> VirtualAddress {
    let address: SocketAddr = address.parse().unwrap();
    VirtualAddress {
        ip: address.ip(),
        port: address.port(),
        protocol,
    }
}

pub(super) fn tcp(address: &str) -> VirtualAddress {
    at(Protocol::Tcp, address)
}

fn named(name: &str, port: &str) -> Arc<ServicePortName> {
    Arc::new(ServicePortName {
        namespace: "default".into(),
        name: name.into(),
        port: port.into(),
        protocol: Protocol::Tcp,
    })
}

/// 10.1.65.n:443 for each n.
pub(super) fn endpoints(hosts: &[u8]) -> Vec<SocketAddr> {
    hosts
        .iter()
        .map(|host| SocketAddr::from(([10, 1, 65, *host], 443)))
        .collect()
}

pub(super) fn spec(address: VirtualAddress, hosts: &[u8]) -> VirtualServerSpec {
    VirtualServerSpec {
        real_servers: endpoints(hosts),
        serving: endpoints(hosts),
        ..VirtualServerSpec::new(address, named("web", "https"))
    }
}

fn sticky(hosts: &[u8]) -> VirtualServerSpec {
    VirtualServerSpec {
        persistence: Some(Duration::from_secs(10_800)),
        ..spec(tcp(VIP), hosts)
    }
}

pub(super) fn table() -> Table {
    let table = Table::new(SchedulerKind::Rr);
    table.set_synced();
    table
}

pub(super) fn upsert(table: &Table, spec: VirtualServerSpec) {
    table.apply(&Change::Upsert(spec));
}

/// A table with [`VIP`] over these endpoints.
pub(super) fn serving(hosts: &[u8]) -> Table {
    let table = table();
    upsert(&table, spec(tcp(VIP), hosts));
    table
}

/// For a client from outside.
pub(super) fn verdict(table: &Table, address: VirtualAddress) -> Verdict {
    table.verdict(address, [203, 0, 113, 2].into(), || false)
}

#[track_caller]
pub(super) fn forward(table: &Table, address: VirtualAddress) -> Arc<VirtualServer> {
    match verdict(table, address) {
        Verdict::Forward(server) => server,
        refused @ (Verdict::Reject(_) | Verdict::Drop(_)) => panic!("{address}: {refused:?}"),
    }
}

pub(super) fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(_) => "forward",
        Verdict::Reject(reason) => reason.as_str(),
        Verdict::Drop(reason) => reason.as_str(),
    }
}

#[track_caller]
fn assert_verdict(table: &Table, address: VirtualAddress, expected: &str) {
    assert_eq!(word(&verdict(table, address)), expected, "{address}");
}

pub(super) fn host(server: &RealServer) -> u8 {
    match server.address {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(address) => panic!("{address}"),
    }
}

fn client(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 15, n], 40_000))
}

#[track_caller]
pub(super) fn pick(server: &VirtualServer) -> Arc<RealServer> {
    server.schedule(client(1), Instant::now(), &[]).unwrap()
}

fn picks(server: &VirtualServer, count: usize) -> Vec<u8> {
    (0..count).map(|_| host(&pick(server))).collect()
}

/// (host, weight, active, inactive) as `list` shows them.
pub(super) fn listed(table: &Table, address: VirtualAddress) -> Vec<(u8, u32, u32, u32)> {
    let snapshot = table.snapshot();
    let view = snapshot
        .iter()
        .find(|view| view.address == address)
        .unwrap();
    view.real_servers
        .iter()
        .map(|server| {
            let IpAddr::V4(ip) = server.address.ip() else {
                panic!("{}", server.address);
            };
            (
                ip.octets()[3],
                server.weight,
                server.active,
                server.inactive,
            )
        })
        .collect()
}

#[test]
fn a_verdict_depends_on_the_address_and_the_port() {
    let table = serving(&[5]);
    assert_verdict(&table, tcp(VIP), "forward");
    assert_verdict(&table, tcp("10.0.0.3:444"), "unknown_port");
    assert_verdict(&table, at(Protocol::Udp, VIP), "unknown_port");
    assert_verdict(&table, tcp("10.0.0.4:443"), "unknown_address");
    assert_verdict(&table, at(Protocol::Sctp, VIP), "sctp");
}

#[test]
fn an_empty_virtual_server_says_why() {
    let table = serving(&[]);
    assert_verdict(&table, tcp(VIP), "no_endpoints");
    let mut local = spec(tcp(VIP), &[]);
    local.when_empty = WhenEmpty::Drop;
    local.serving = endpoints(&[5]);
    upsert(&table, local);
    assert_verdict(&table, tcp(VIP), "no_local_endpoint");
    upsert(&table, spec(tcp(VIP), &[5]));
    assert_verdict(&table, tcp(VIP), "forward");
}

#[test]
fn nothing_is_served_before_the_first_full_state() {
    let table = Table::new(SchedulerKind::Rr);
    upsert(&table, spec(tcp(VIP), &[5]));
    assert!(!table.is_synced());
    assert_verdict(&table, tcp(VIP), "not_synced");
    assert_verdict(&table, tcp("10.0.0.4:443"), "not_synced");
    assert_eq!(
        table.echo(tcp(VIP).ip),
        EchoVerdict::Drop(DropReason::NotSynced)
    );
    table.set_synced();
    assert!(table.is_synced());
    assert_verdict(&table, tcp(VIP), "forward");
    assert_eq!(table.echo(tcp(VIP).ip), EchoVerdict::Answer);
}

#[test]
fn a_draining_table_takes_no_new_flows() {
    let table = serving(&[5]);
    table.set_draining(true);
    assert_verdict(&table, tcp(VIP), "draining");
    table.set_draining(false);
    assert_verdict(&table, tcp(VIP), "forward");
}

#[test]
fn an_address_answers_ping_while_any_service_port_has_it() {
    let table = serving(&[]);
    let ip = tcp(VIP).ip;
    upsert(&table, spec(at(Protocol::Udp, "10.0.0.3:53"), &[5]));
    upsert(&table, spec(tcp(VIP), &[5]));
    assert_eq!(table.echo(ip), EchoVerdict::Answer);
    table.apply(&Change::Remove(tcp(VIP)));
    table.apply(&Change::Remove(tcp(VIP)));
    assert_eq!(table.echo(ip), EchoVerdict::Answer);
    assert_verdict(&table, tcp(VIP), "unknown_port");
    table.apply(&Change::Remove(at(Protocol::Udp, "10.0.0.3:53")));
    let unknown = EchoVerdict::Drop(DropReason::UnknownAddress);
    assert_eq!(table.echo(ip), unknown);
    assert_verdict(&table, tcp(VIP), "unknown_address");
}

// kube-proxy adds before it removes (`syncEndpoint`), each at the head.
#[test]
fn the_rotation_survives_changes_of_the_set() {
    let table = serving(&[1, 2, 3]);
    let server = forward(&table, tcp(VIP));
    assert_eq!(picks(&server, 4), [3, 2, 1, 3]);
    upsert(&table, spec(tcp(VIP), &[1, 2, 3]));
    assert_eq!(picks(&server, 1), [2]);
    // The list is 5 4 3 2 1, then 5 4 3 1 with the pointer on 3.
    upsert(&table, spec(tcp(VIP), &[1, 3, 4, 5]));
    assert_eq!(picks(&server, 5), [1, 5, 4, 3, 1]);
    // Empty and back: the pointer is on the head.
    upsert(&table, spec(tcp(VIP), &[]));
    upsert(&table, spec(tcp(VIP), &[1, 3]));
    assert_eq!(picks(&server, 2), [3, 1]);
}

#[test]
fn each_virtual_server_has_its_own_rotation() {
    let table = serving(&[1, 2]);
    upsert(&table, spec(at(Protocol::Udp, VIP), &[1, 2]));
    let (tcp, udp) = (
        forward(&table, tcp(VIP)),
        forward(&table, at(Protocol::Udp, VIP)),
    );
    assert_eq!(picks(&tcp, 1), [2]);
    assert_eq!(picks(&udp, 2), [2, 1]);
    assert_eq!(picks(&tcp, 1), [1]);
}

#[test]
fn a_duplicate_endpoint_gets_one_share() {
    let table = serving(&[1, 2, 1]);
    assert_eq!(picks(&forward(&table, tcp(VIP)), 4), [2, 1, 2, 1]);
}

#[test]
fn the_table_uses_the_scheduler_it_was_made_with() {
    for kind in SchedulerKind::ALL {
        let table = Table::new(*kind);
        table.set_synced();
        upsert(&table, spec(tcp(VIP), &[1, 2]));
        assert_eq!(table.snapshot()[0].scheduler, *kind);
        pick(&forward(&table, tcp(VIP)));
    }
    // dh: all to one; lc: to the one without a connection.
    let lc = Table::new(SchedulerKind::Lc);
    lc.set_synced();
    upsert(&lc, spec(tcp(VIP), &[1, 2]));
    let server = forward(&lc, tcp(VIP));
    let first = Connection::new(pick(&server));
    assert_eq!(host(first.real_server()), 2);
    assert_eq!(picks(&server, 2), [1, 1]);
    drop(first);
    assert_eq!(picks(&server, 1), [2]);
}

#[test]
fn an_endpoint_that_is_removed_drains() {
    let table = serving(&[1, 2]);
    let server = forward(&table, tcp(VIP));
    let mut flow = Connection::new(pick(&server));
    flow.established();
    flow.real_server().add_bytes_in(100);
    assert_eq!(host(flow.real_server()), 2);
    upsert(&table, spec(tcp(VIP), &[1]));
    assert_eq!(listed(&table, tcp(VIP)), [(1, 1, 0, 0), (2, 0, 1, 0)]);
    assert!(!flow.real_server().takes_new_flows());
    assert_eq!(picks(&server, 2), [1, 1]);

    // Back again while it drains: the flow is counted where it was.
    upsert(&table, spec(tcp(VIP), &[1, 2]));
    assert_eq!(listed(&table, tcp(VIP)), [(1, 1, 0, 0), (2, 1, 1, 0)]);
    assert!(!flow.real_server().is_retired());
    assert_eq!(server.real_servers()[1].bytes_in, 100);

    upsert(&table, spec(tcp(VIP), &[1]));
    drop(flow);
    assert_eq!(listed(&table, tcp(VIP)), [(1, 1, 0, 0)]);
    upsert(&table, spec(tcp(VIP), &[1, 2]));
    assert_eq!(server.real_servers()[1].bytes_in, 0, "a new life");
}

#[test]
fn a_real_server_is_retired_once_others_serve_and_it_does_not() {
    let table = serving(&[1, 2, 3]);
    let server = forward(&table, tcp(VIP));
    let [three, two, one] = [pick(&server), pick(&server), pick(&server)];
    // 1 is gone, 2 serves while it terminates, 3 is as it was.
    let mut terminating = spec(tcp(VIP), &[3]);
    terminating.serving = endpoints(&[2, 3]);
    upsert(&table, terminating);
    assert_eq!(
        [&one, &two, &three].map(|server| server.is_retired()),
        [true, false, false]
    );
    assert!(!two.takes_new_flows());
    // Nothing serves any more: nothing is retired by that.
    upsert(&table, spec(tcp(VIP), &[]));
    assert_eq!([&two, &three].map(|s| s.is_retired()), [false, false]);
    // But by the one that serves next.
    upsert(&table, spec(tcp(VIP), &[4]));
    assert_eq!([&two, &three].map(|s| s.is_retired()), [true, true]);
    // And back.
    upsert(&table, spec(tcp(VIP), &[3]));
    assert!(!three.is_retired());
}

#[test]
fn a_removed_virtual_server_retires_all_and_gives_nobody() {
    let table = serving(&[1, 2]);
    let server = forward(&table, tcp(VIP));
    let two = pick(&server);
    // 2 drains before the service goes: it is retired all the same.
    upsert(&table, spec(tcp(VIP), &[1]));
    let one = pick(&server);
    table.apply(&Change::Remove(tcp(VIP)));
    assert!(one.is_retired() && two.is_retired());
    assert!(server.schedule(client(1), Instant::now(), &[]).is_none());
    assert_eq!(word(&server.refusal()), "unknown_address");
    assert_eq!(table.snapshot(), []);
}

#[test]
fn who_lost_the_race_with_an_update_is_told_why() {
    let table = serving(&[1]);
    let server = forward(&table, tcp(VIP));
    upsert(&table, spec(tcp(VIP), &[]));
    assert!(server.schedule(client(1), Instant::now(), &[]).is_none());
    assert_eq!(word(&server.refusal()), "no_endpoints");
    let mut local = spec(tcp(VIP), &[]);
    local.when_empty = WhenEmpty::Drop;
    upsert(&table, local);
    assert_eq!(word(&server.refusal()), "no_local_endpoint");
}

#[test]
fn a_renamed_port_goes_on_and_another_service_starts_anew() {
    let table = serving(&[1, 2, 3]);
    let flow = Connection::new(pick(&forward(&table, tcp(VIP))));
    let mut renamed = spec(tcp(VIP), &[1, 2, 3]);
    renamed.service = named("web", "tls");
    upsert(&table, renamed);
    let server = forward(&table, tcp(VIP));
    assert_eq!(server.service.to_string(), "default/web:tls");
    assert_eq!(picks(&server, 1), [2]);
    assert!(!flow.real_server().is_retired());
    assert_eq!(listed(&table, tcp(VIP))[2], (3, 1, 0, 1));

    let mut other = spec(tcp(VIP), &[1, 2, 3]);
    other.service = named("shop", "https");
    upsert(&table, other);
    assert!(flow.real_server().is_retired());
    assert_eq!(picks(&forward(&table, tcp(VIP)), 1), [3]);
    assert_eq!(listed(&table, tcp(VIP))[2], (3, 1, 0, 0));
    // The address is still counted once.
    table.apply(&Change::Remove(tcp(VIP)));
    assert_verdict(&table, tcp(VIP), "unknown_address");
}

#[test]
fn a_client_stays_with_its_real_server() {
    let table = table();
    upsert(&table, sticky(&[1, 2, 3]));
    let server = forward(&table, tcp(VIP));
    let now = Instant::now();
    let next = |n: u8, tried: &[SocketAddr]| server.schedule(client(n), now, tried).unwrap();
    // Two connections at once, before either has succeeded.
    assert_eq!([host(&next(1, &[])), host(&next(1, &[]))], [3, 3]);
    // Another client takes the next in the rotation, whatever port it uses.
    assert_eq!(host(&next(2, &[])), 2);
    let other_port = SocketAddr::new(client(2).ip(), 50_000);
    assert_eq!(host(&server.schedule(other_port, now, &[]).unwrap()), 2);

    // 3 fails for client 1; as long as nothing succeeded it is still tried first.
    let tried = endpoints(&[3]);
    let second = next(1, &tried);
    assert_eq!(host(&second), 1);
    assert_eq!(host(&next(1, &[])), 3);
    let mut flow = Connection::new(second);
    server.connected(client(1).ip(), &mut flow, now);
    assert_eq!(host(&next(1, &[])), 1);
    // The open flow keeps the entry beyond its timeout.
    let later = now + Duration::from_secs(20_000);
    assert_eq!(host(&server.schedule(client(1), later, &[]).unwrap()), 1);

    // Gone with its endpoint, even for a flow that was being dialled to it.
    upsert(&table, sticky(&[2, 3]));
    server.connected(client(1).ip(), &mut flow, now);
    assert_ne!(host(&next(1, &[])), 1);
}

#[test]
fn persistence_survives_an_update_and_ends_with_affinity() {
    let table = table();
    upsert(&table, sticky(&[1, 2]));
    let server = forward(&table, tcp(VIP));
    assert_eq!(picks(&server, 2), [2, 2]);
    let timeout = |table: &Table| table.snapshot()[0].persistence;
    assert_eq!(timeout(&table), Some(Duration::from_secs(10_800)));
    upsert(&table, sticky(&[1, 2, 3, 4]));
    assert_eq!(picks(&server, 2), [2, 2]);
    upsert(&table, spec(tcp(VIP), &[1, 2]));
    assert_eq!(timeout(&table), None);
    assert_eq!(picks(&server, 2), [1, 2]);
}

#[test]
fn the_snapshot_is_sorted() {
    let table = table();
    for address in [
        "10.0.0.10:80",
        "10.0.0.3:8443",
        "10.0.0.3:443",
        "[fd00::3]:80",
    ] {
        upsert(&table, spec(at(Protocol::Udp, address), &[12, 5]));
        upsert(&table, spec(tcp(address), &[12, 5]));
    }
    let snapshot = table.snapshot();
    let addresses: Vec<_> = snapshot
        .iter()
        .map(|view| view.address.to_string())
        .collect();
    assert_eq!(
        addresses,
        [
            "TCP 10.0.0.3:443",
            "TCP 10.0.0.3:8443",
            "TCP 10.0.0.10:80",
            "TCP [fd00::3]:80",
            "UDP 10.0.0.3:443",
            "UDP 10.0.0.3:8443",
            "UDP 10.0.0.10:80",
            "UDP [fd00::3]:80",
        ]
    );
    assert_eq!(listed(&table, tcp(VIP)), [(5, 1, 0, 0), (12, 1, 0, 0)]);
}

mod exposures;
mod node_ports;
mod packet_flows;
mod policies;
mod services;
