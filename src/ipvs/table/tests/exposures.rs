//! Virtual servers that give clients inside and outside other real servers,
//! source ranges, node ports, schedulers of their own.

use super::*;
use crate::service::Exposure;

const LB: &str = "5.6.7.8:80";
const NODE: &str = "192.168.0.2";
const POD: &str = "10.180.0.9";
const OUTSIDE: &str = "203.0.113.2";

fn node_network() -> Change {
    Change::Node(NodeNetwork {
        pod_cidrs: vec!["10.180.0.0/24".parse().unwrap()],
        addresses: vec![NODE.parse().unwrap()],
        leaving: false,
    })
}

/// A table of a node whose network is known.
fn on_a_node() -> Table {
    let table = table();
    table.apply(&node_network());
    table
}

/// A load balancer IP under policy Local: all endpoints inside, some outside.
fn local(inside: &[u8], outside: &[u8]) -> VirtualServerSpec {
    VirtualServerSpec {
        exposure: Exposure::LoadBalancerIp,
        external: Some(endpoints(outside)),
        external_when_empty: WhenEmpty::Drop,
        ..spec(tcp(LB), inside)
    }
}

fn restricted(ranges: &[&str]) -> VirtualServerSpec {
    let ranges = ranges.iter().map(|range| range.parse().unwrap());
    VirtualServerSpec {
        exposure: Exposure::LoadBalancerIp,
        source_ranges: Some(ranges.collect()),
        ..spec(tcp(LB), &[1])
    }
}

fn ask(table: &Table, client: &str) -> Verdict {
    table.verdict(tcp(LB), client.parse().unwrap(), || client == NODE)
}

#[track_caller]
fn server(table: &Table, client: &str) -> Arc<VirtualServer> {
    match ask(table, client) {
        Verdict::Forward(server) => server,
        refused @ (Verdict::Reject(_) | Verdict::Drop(_)) => panic!("{client}: {refused:?}"),
    }
}

#[test]
fn each_side_has_its_own_rotation_over_common_real_servers() {
    let table = on_a_node();
    upsert(&table, local(&[1, 2, 3], &[2, 4]));
    let (node, pod, outside) = (
        server(&table, NODE),
        server(&table, POD),
        server(&table, OUTSIDE),
    );
    assert_eq!(picks(&node, 2), [3, 2]);
    assert_eq!(picks(&pod, 2), [1, 3]);
    assert_eq!(picks(&outside, 3), [4, 2, 4]);
    // Two flows to one endpoint, one from each side: one row.
    let flows = [&node, &outside].map(|server| {
        let now = Instant::now();
        let tried = endpoints(&[1, 3, 4]);
        Connection::new(server.schedule(client(1), now, &tried).unwrap())
    });
    assert!(Arc::ptr_eq(flows[0].real_server(), flows[1].real_server()));
    assert_eq!(
        listed(&table, tcp(LB)),
        [(1, 1, 0, 0), (2, 1, 0, 2), (3, 1, 0, 0), (4, 1, 0, 0)]
    );
}

#[test]
fn without_the_networks_of_pods_they_are_outside() {
    let table = table();
    upsert(&table, local(&[1], &[2]));
    assert_eq!(picks(&server(&table, NODE), 1), [1]);
    assert_eq!(picks(&server(&table, POD), 1), [2]);
    table.apply(&node_network());
    assert_eq!(picks(&server(&table, POD), 1), [1]);
    table.apply(&Change::Node(NodeNetwork::default()));
    assert_eq!(picks(&server(&table, POD), 1), [2]);
}

#[test]
fn an_endpoint_drains_once_no_side_has_it() {
    let table = on_a_node();
    upsert(&table, local(&[1, 2], &[2]));
    let inside = server(&table, NODE);
    let flow = Connection::new(pick(&inside));
    assert_eq!(host(flow.real_server()), 2);
    upsert(&table, local(&[1], &[2]));
    assert!(flow.real_server().takes_new_flows(), "outside has it");
    assert_eq!(picks(&inside, 2), [1, 1]);
    let mut gone = local(&[1], &[]);
    gone.serving = endpoints(&[1]);
    upsert(&table, gone);
    assert!(!flow.real_server().takes_new_flows());
    assert!(flow.real_server().is_retired());
    assert_eq!(word(&ask(&table, OUTSIDE)), "no_local_endpoint");
    assert_eq!(listed(&table, tcp(LB)), [(1, 1, 0, 0), (2, 0, 0, 1)]);
    // It comes back on the other side, with its flow.
    upsert(&table, local(&[1], &[2]));
    let back = pick(&server(&table, OUTSIDE));
    assert!(Arc::ptr_eq(&back, flow.real_server()));
    assert!(!back.is_retired());
}

#[test]
fn a_policy_that_changes_moves_who_is_outside_and_keeps_the_rest() {
    let table = on_a_node();
    upsert(&table, local(&[1, 2], &[2]));
    let outside = server(&table, OUTSIDE);
    assert_eq!(picks(&server(&table, NODE), 1), [2]);
    // To Cluster: one rotation, which goes on; a worker that still holds the
    // other side meets it too.
    upsert(&table, spec(tcp(LB), &[1, 2]));
    assert_eq!(picks(&server(&table, OUTSIDE), 1), [1]);
    assert_eq!(picks(&outside, 1), [2]);
    // And back.
    upsert(&table, local(&[1, 2], &[2]));
    assert_eq!(picks(&server(&table, OUTSIDE), 2), [2, 2]);
    assert_eq!(picks(&server(&table, NODE), 1), [1]);
    assert_eq!(picks(&outside, 1), [2]);
    table.apply(&Change::Remove(tcp(LB)));
    assert_eq!(word(&outside.refusal()), "unknown_address");
    assert!(outside.schedule(client(1), Instant::now(), &[]).is_none());
}

#[test]
fn each_side_remembers_its_own_clients() {
    let table = on_a_node();
    let sticky = |inside: &[u8], outside: &[u8]| VirtualServerSpec {
        persistence: Some(Duration::from_secs(10)),
        ..local(inside, outside)
    };
    upsert(&table, sticky(&[1, 2, 3], &[1, 2]));
    let (inside, outside) = (server(&table, NODE), server(&table, OUTSIDE));
    assert_eq!(picks(&inside, 2), [3, 3]);
    assert_eq!(picks(&outside, 2), [2, 2]);
    // 2 is no longer local, but still there for those inside.
    upsert(&table, sticky(&[1, 2, 3], &[1]));
    assert_eq!(picks(&outside, 1), [1]);
    assert_eq!(picks(&inside, 1), [3]);
}

#[test]
fn source_ranges_let_in_whom_they_name() {
    let table = on_a_node();
    upsert(&table, restricted(&["203.0.113.0/25"]));
    assert_eq!(word(&ask(&table, "203.0.113.127")), "forward");
    assert_eq!(word(&ask(&table, "203.0.113.128")), "source_range");
    assert_eq!(word(&ask(&table, POD)), "source_range");
    assert_eq!(word(&ask(&table, NODE)), "source_range");
    assert_eq!(word(&ask(&table, "5.6.7.8")), "source_range");
    // A range with an address of the node lets all its own traffic in, from the
    // virtual IP and from any other address it has, but not that of pods.
    upsert(&table, restricted(&["192.168.0.0/24"]));
    assert_eq!(word(&ask(&table, NODE)), "forward");
    assert_eq!(word(&ask(&table, "5.6.7.8")), "forward");
    let tun = table.verdict(tcp(LB), [169, 254, 84, 78].into(), || true);
    assert_eq!(word(&tun), "forward");
    assert_eq!(word(&ask(&table, POD)), "source_range");
    // Nobody, and everybody.
    upsert(&table, restricted(&[]));
    assert_eq!(word(&ask(&table, NODE)), "source_range");
    upsert(&table, spec(tcp(LB), &[1]));
    assert_eq!(word(&ask(&table, POD)), "forward");
    // Nobody is there: said to all, as kube-proxy's iptables mode does.
    let mut empty = restricted(&["203.0.113.0/25"]);
    empty.real_servers.clear();
    upsert(&table, empty);
    assert_eq!(word(&ask(&table, POD)), "no_endpoints");
    assert_eq!(word(&ask(&table, OUTSIDE)), "no_endpoints");
}

#[test]
fn where_the_client_is_is_asked_only_where_it_matters() {
    let table = on_a_node();
    upsert(&table, spec(tcp(LB), &[1]));
    let never = || -> bool { panic!("nobody needs to know") };
    let outside = OUTSIDE.parse().unwrap();
    assert_eq!(word(&table.verdict(tcp(LB), outside, never)), "forward");
}

#[test]
fn a_node_port_is_no_virtual_ip() {
    let table = on_a_node();
    let address = VirtualAddress::node_port(Family::V4, 30_080, Protocol::Tcp);
    let node_port = VirtualServerSpec {
        exposure: Exposure::NodePort,
        address,
        ..local(&[1, 2], &[2])
    };
    upsert(&table, node_port);
    let at = |local: &str, client: &str| {
        let local = local.parse().unwrap();
        table.node_port(local, Protocol::Tcp, client.parse().unwrap(), || {
            client.starts_with("127.")
        })
    };
    let served = |verdict: Verdict| match verdict {
        Verdict::Forward(server) => picks(&server, 2),
        Verdict::Reject(_) | Verdict::Drop(_) => panic!("{verdict:?}"),
    };
    assert_eq!(served(at("192.168.0.2:30080", OUTSIDE)), [2, 2]);
    assert_eq!(served(at("192.168.0.2:30080", POD)), [2, 1]);
    assert_eq!(served(at("127.0.0.1:30080", "127.0.0.1")), [2, 1]);
    assert_eq!(served(at("192.168.0.2:30080", "192.168.0.2")), [2, 1]);
    assert_eq!(word(&at("192.168.0.2:30081", POD)), "unknown_address");
    assert_eq!(word(&at("[fd00::2]:30080", "fd00::9")), "unknown_address");
    // Neither for packets nor for ping.
    assert_verdict(&table, address, "unknown_address");
    let unknown = EchoVerdict::Drop(DropReason::UnknownAddress);
    assert_eq!(table.echo(address.ip), unknown);
    assert_eq!(table.snapshot()[0].exposure, Exposure::NodePort);
    table.apply(&Change::Remove(address));
    assert_eq!(word(&at("192.168.0.2:30080", POD)), "unknown_address");
}

#[test]
fn a_service_may_have_its_own_scheduler() {
    let table = table();
    let with = |scheduler| VirtualServerSpec {
        scheduler,
        ..sticky(&[1, 2, 3])
    };
    upsert(&table, with(None));
    let scheduler = |table: &Table| table.snapshot()[0].scheduler;
    assert_eq!(scheduler(&table), SchedulerKind::Rr);
    assert_eq!(picks(&forward(&table, tcp(VIP)), 1), [3]);
    upsert(&table, with(Some(SchedulerKind::Lc)));
    assert_eq!(scheduler(&table), SchedulerKind::Lc);
    let server = forward(&table, tcp(VIP));
    assert_eq!(server.scheduler(), SchedulerKind::Lc);
    assert_eq!(picks(&server, 1), [3], "clients stay");
    let flow = Connection::new(server.schedule(client(9), Instant::now(), &[]).unwrap());
    let second = server.schedule(client(8), Instant::now(), &[]).unwrap();
    assert_eq!(host(flow.real_server()), 3);
    assert_eq!(host(&second), 2, "the least connected");
    upsert(&table, with(None));
    assert_eq!(scheduler(&table), SchedulerKind::Rr);
}

#[test]
fn a_forecast_moves_nothing() {
    let table = table();
    upsert(&table, sticky(&[1, 2, 3]));
    let server = forward(&table, tcp(VIP));
    let start = Instant::now();
    let next = |client| server.forecast(client, start).next.unwrap().to_string();
    assert_eq!(next(None), "10.1.65.3:443");
    assert_eq!(next(Some(client(1))), "10.1.65.3:443");
    assert_eq!(server.forecast(Some(client(1)), start).persistent, None);
    let mut flow = Connection::new(server.schedule(client(1), start, &[]).unwrap());
    server.connected(client(1).ip(), &mut flow, start);
    let forecast = server.forecast(Some(client(1)), start + Duration::from_secs(800));
    let stays = (
        "10.1.65.3:443".parse().unwrap(),
        Duration::from_secs(10_000),
    );
    assert_eq!(forecast.persistent, Some(stays));
    assert_eq!(forecast.next.unwrap().to_string(), "10.1.65.2:443");
    for kind in SchedulerKind::ALL {
        upsert(
            &table,
            VirtualServerSpec {
                scheduler: Some(*kind),
                ..spec(tcp(VIP), &[1, 2, 3])
            },
        );
        let server = forward(&table, tcp(VIP));
        for _ in 0..4 {
            let next = server.forecast(Some(client(7)), start).next;
            assert_eq!(next, server.forecast(Some(client(7)), start).next);
            let picked = server.schedule(client(7), start, &[]).unwrap();
            assert_eq!(next, Some(picked.address), "{kind}");
        }
    }
}

/// The node itself is asked about before.
#[test]
fn who_counts_as_a_pod() {
    let table = on_a_node();
    let counts = |client: &str, exposure| table.counts_as_pod(client.parse().unwrap(), exposure);
    for exposure in [
        Exposure::LoadBalancerIp,
        Exposure::ExternalIp,
        Exposure::NodePort,
    ] {
        assert!(counts(POD, exposure), "{exposure}");
        assert!(!counts(OUTSIDE, exposure), "{exposure}");
        // Of this family no network is known.
        assert!(counts("2001:db8::1", exposure), "{exposure}");
    }
    assert!(counts(POD, Exposure::ClusterIp));
    assert!(counts(OUTSIDE, Exposure::ClusterIp));
    table.apply(&Change::Node(NodeNetwork::default()));
    let counts = |client: &str| table.counts_as_pod(client.parse().unwrap(), Exposure::ExternalIp);
    assert!(counts(POD) && counts(OUTSIDE));
}
