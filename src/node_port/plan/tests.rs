use super::*;
use crate::service::address::Family;
use crate::service::{NodeNetwork, ProxyProtocol};

const NODE: &str = "192.168.0.2";
const NODE6: &str = "fd00::2";
const EXTERNAL: &str = "198.51.100.7";

fn addresses(all: &[&str]) -> NodeAddresses {
    NodeAddresses {
        all: all.iter().map(|text| text.parse().unwrap()).collect(),
        primary: Vec::new(),
    }
}

fn plan(wanted: &[NodePortAddress]) -> Plan {
    let mut plan = Plan::new(wanted.to_vec());
    let steps = plan.set_addresses(addresses(&[NODE, NODE6, "127.0.0.1", "::1"]));
    assert!(steps.is_empty() && plan.set_open(true).is_empty());
    plan
}

fn named(name: &str, protocol: Protocol) -> Arc<ServicePortName> {
    Arc::new(ServicePortName {
        namespace: "default".into(),
        name: name.into(),
        port: "".into(),
        protocol,
    })
}

fn node_port(name: &str, family: Family, protocol: Protocol) -> VirtualServerSpec {
    let address = VirtualAddress::node_port(family, 30_080, protocol);
    VirtualServerSpec {
        exposure: Exposure::NodePort,
        real_servers: vec!["10.1.65.5:80".parse().unwrap()],
        ..VirtualServerSpec::new(address, named(name, protocol))
    }
}

fn external(name: &str) -> VirtualServerSpec {
    let address = VirtualAddress {
        ip: EXTERNAL.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    VirtualServerSpec {
        exposure: Exposure::ExternalIp,
        real_servers: vec!["10.1.65.5:80".parse().unwrap()],
        ..VirtualServerSpec::new(address, named(name, Protocol::Tcp))
    }
}

/// Steps in a line each.
fn told(steps: &[Step]) -> Vec<String> {
    let tell = |step: &Step| match step {
        Step::Open(listen) => format!(
            "open {} {} for {}",
            listen.at.protocol, listen.at.address, listen.service
        ),
        Step::Close(at) => format!("close {} {}", at.protocol, at.address),
        Step::Linger(at) => format!("linger {} {}", at.protocol, at.address),
    };
    steps.iter().map(tell).collect()
}

fn program(plan: &mut Plan, change: Change) -> Vec<String> {
    told(&plan.program([&change]).steps)
}

#[test]
fn one_socket_for_all_addresses_over_tcp_and_one_for_each_over_udp() {
    let mut plan = plan(&[]);
    let v4 = node_port("web", Family::V4, Protocol::Tcp);
    assert_eq!(
        program(&mut plan, Change::Upsert(v4.clone())),
        ["open TCP 0.0.0.0:30080 for default/web"]
    );
    let v6 = node_port("web", Family::V6, Protocol::Tcp);
    assert_eq!(
        program(&mut plan, Change::Upsert(v6)),
        ["open TCP [::]:30080 for default/web"]
    );
    let udp = node_port("web", Family::V4, Protocol::Udp);
    assert_eq!(
        program(&mut plan, Change::Upsert(udp)),
        [
            "open UDP 127.0.0.1:30080 for default/web",
            "open UDP 192.168.0.2:30080 for default/web"
        ]
    );
    let more = addresses(&[NODE, NODE6, "127.0.0.1", "::1", "192.168.0.3"]);
    assert_eq!(
        told(&plan.set_addresses(more)),
        ["open UDP 192.168.0.3:30080 for default/web"]
    );
    assert_eq!(
        program(&mut plan, Change::Remove(v4.address)),
        ["close TCP 0.0.0.0:30080"]
    );
    assert_eq!(program(&mut plan, Change::Remove(v4.address)), [""; 0]);
}

#[test]
fn open_only_while_there_is_an_endpoint() {
    let mut plan = plan(&[NodePortAddress::Cidr("192.168.0.0/24".parse().unwrap())]);
    let mut spec = node_port("web", Family::V4, Protocol::Tcp);
    let full = spec.clone();
    spec.real_servers.clear();
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), [""; 0]);
    assert_eq!(
        program(&mut plan, Change::Upsert(full.clone())),
        ["open TCP 192.168.0.2:30080 for default/web"]
    );
    assert_eq!(program(&mut plan, Change::Upsert(full)), [""; 0]);
    assert_eq!(
        program(&mut plan, Change::Upsert(spec)),
        ["close TCP 192.168.0.2:30080"]
    );
    let sctp = node_port("web", Family::V4, Protocol::Sctp);
    assert_eq!(program(&mut plan, Change::Upsert(sctp)), [""; 0]);
}

#[test]
fn endpoints_elsewhere_under_policy_local_serve_this_node_only() {
    let mut plan = plan(&[]);
    let mut spec = node_port("web", Family::V4, Protocol::Tcp);
    spec.external = Some(vec!["10.1.15.5:80".parse().unwrap()]);
    assert_eq!(
        program(&mut plan, Change::Upsert(spec.clone())),
        ["open TCP 0.0.0.0:30080 for default/web"]
    );
    // The local one has gone.
    spec.external = Some(Vec::new());
    let only = "192.168.0.2/32 fd00::2/128 127.0.0.1/32 ::1/128 127.0.0.0/8";
    let sorted = |only: &str| {
        let mut nets: Vec<_> = only.split(' ').map(str::to_owned).collect();
        nets.sort();
        nets
    };
    let opened = |steps: Vec<Step>| match steps.as_slice() {
        [Step::Open(listen)] => {
            let nets = listen.only.as_deref().map(|only| {
                let nets: Vec<_> = only.iter().map(ToString::to_string).collect();
                sorted(&nets.join(" "))
            });
            (listen.at.address.to_string(), nets)
        }
        other => panic!("{other:?}"),
    };
    let any = "0.0.0.0:30080".to_owned();
    assert_eq!(
        opened(plan.program([&Change::Upsert(spec.clone())]).steps),
        (any.clone(), Some(sorted(only)))
    );
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), [""; 0]);
    // Pods, once their networks are known; and another address of the node.
    let network = NodeNetwork {
        pod_cidrs: vec!["10.1.15.0/24".parse().unwrap()],
        ..NodeNetwork::default()
    };
    assert_eq!(
        opened(plan.program([&Change::Node(network)]).steps),
        (any.clone(), Some(sorted(&format!("{only} 10.1.15.0/24"))))
    );
    let moved = opened(plan.set_addresses(addresses(&["192.168.0.3"])));
    let only = sorted("192.168.0.3/32 127.0.0.0/8 10.1.15.0/24");
    assert_eq!(moved, (any.clone(), Some(only)));
    // The table is asked about each datagram's client.
    let udp = VirtualServerSpec {
        external: Some(Vec::new()),
        ..node_port("udp", Family::V4, Protocol::Udp)
    };
    assert_eq!(
        opened(plan.program([&Change::Upsert(udp)]).steps),
        ("192.168.0.3:30080".to_owned(), None)
    );
    spec.external = Some(vec!["10.1.15.5:80".parse().unwrap()]);
    assert_eq!(
        opened(plan.program([&Change::Upsert(spec)]).steps),
        (any, None)
    );
}

#[test]
fn an_external_address_is_listened_on_while_the_node_has_it() {
    let mut plan = plan(&[NodePortAddress::Localhost]);
    assert_eq!(program(&mut plan, Change::Upsert(external("web"))), [""; 0]);
    let with = addresses(&[NODE, EXTERNAL]);
    assert_eq!(
        told(&plan.set_addresses(with)),
        ["open TCP 198.51.100.7:80 for default/web"]
    );
    assert_eq!(
        told(&plan.set_addresses(addresses(&[NODE]))),
        ["close TCP 198.51.100.7:80"]
    );
}

#[test]
fn flows_of_udp_outlast_endpoints_but_not_the_service() {
    let mut plan = plan(&[NodePortAddress::Primary]);
    let with_primary = || NodeAddresses {
        primary: vec![NODE.parse().unwrap()],
        ..addresses(&[NODE])
    };
    plan.set_addresses(with_primary());
    let spec = node_port("dns", Family::V4, Protocol::Udp);
    let mut empty = spec.clone();
    empty.real_servers.clear();
    let open = ["open UDP 192.168.0.2:30080 for default/dns"];
    let linger = ["linger UDP 192.168.0.2:30080"];
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), open);
    assert_eq!(program(&mut plan, Change::Upsert(empty.clone())), linger);
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), open);
    let close = ["close UDP 192.168.0.2:30080"];
    assert_eq!(program(&mut plan, Change::Remove(spec.address)), close);
    // An address that goes, and the end of the process, are no want of endpoints.
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), open);
    assert_eq!(told(&plan.set_addresses(addresses(&[]))), close);
    assert_eq!(told(&plan.set_addresses(with_primary())), open);
    assert_eq!(told(&plan.set_open(false)), close);
    // Over TCP nothing goes through the listener once it is accepted.
    let mut plan = self::plan(&[]);
    let mut tcp = node_port("web", Family::V4, Protocol::Tcp);
    program(&mut plan, Change::Upsert(tcp.clone()));
    tcp.real_servers.clear();
    assert_eq!(
        program(&mut plan, Change::Upsert(tcp)),
        ["close TCP 0.0.0.0:30080"]
    );
}

#[test]
fn a_load_balancers_ranges_are_who_is_let_in() {
    let mut plan = plan(&[]);
    plan.set_addresses(addresses(&[NODE, EXTERNAL]));
    let with = |ranges: Option<&[&str]>| {
        let nets = ranges.map(|all| all.iter().map(|net| net.parse().unwrap()).collect());
        Change::Upsert(VirtualServerSpec {
            exposure: Exposure::LoadBalancerIp,
            source_ranges: nets,
            ..external("web")
        })
    };
    let only = |steps: Vec<Step>| match steps.as_slice() {
        [Step::Open(listen)] => listen.only.as_deref().map(|only| {
            let nets: Vec<_> = only.iter().map(ToString::to_string).collect();
            nets.join(" ")
        }),
        other => panic!("{other:?}"),
    };
    let opened = plan.program([&with(Some(&["10.1.0.0/16"]))]);
    assert_eq!(only(opened.steps).unwrap(), "10.1.0.0/16");
    let opened = plan.program([&with(None)]);
    assert_eq!(only(opened.steps), None);
    let named = Change::Node(NodeNetwork {
        addresses: vec![NODE.parse().unwrap()],
        ..NodeNetwork::default()
    });
    assert_eq!(plan.program([&named]).steps, []);
    // The node is in one by an address that its object names: all of its own are.
    let opened = plan.program([&with(Some(&["192.168.0.0/24"]))]);
    let all = format!("192.168.0.0/24 {NODE}/32 {EXTERNAL}/32");
    assert_eq!(only(opened.steps).unwrap(), all);
}

#[test]
fn where_two_would_listen_the_other_follows_when_the_one_goes() {
    let mut plan = Plan::new(vec![NodePortAddress::Cidr(
        "198.51.100.0/24".parse().unwrap(),
    )]);
    plan.set_addresses(addresses(&[EXTERNAL]));
    plan.set_open(true);
    let mut other = external("other");
    other.address.port = 30_080;
    let first = node_port("first", Family::V4, Protocol::Tcp);
    assert_eq!(
        program(&mut plan, Change::Upsert(other)),
        ["open TCP 198.51.100.7:30080 for default/other"]
    );
    assert_eq!(
        program(&mut plan, Change::Upsert(first.clone())),
        ["open TCP 198.51.100.7:30080 for default/first"]
    );
    assert_eq!(
        program(&mut plan, Change::Remove(first.address)),
        ["open TCP 198.51.100.7:30080 for default/other"]
    );
}

#[test]
fn a_masked_client_is_told_once_a_service() {
    let mut plan = plan(&[]);
    let mut spec = node_port("web", Family::V4, Protocol::Tcp);
    spec.external = Some(spec.real_servers.clone());
    let mut six = node_port("web", Family::V6, Protocol::Tcp);
    six.external = Some(Vec::new());
    let masked = |plan: &mut Plan, spec: &VirtualServerSpec| {
        plan.program([&Change::Upsert(spec.clone())]).masked.len()
    };
    assert_eq!(masked(&mut plan, &spec), 1);
    assert_eq!(masked(&mut plan, &spec), 0);
    assert_eq!(masked(&mut plan, &six), 0);
    let mut other = node_port("other", Family::V4, Protocol::Udp);
    other.external = Some(Vec::new());
    assert_eq!(masked(&mut plan, &other), 1);
    // Mended in the one, and the Service is new when it comes again.
    for spec in [&mut spec, &mut six] {
        spec.proxy_protocol = Some(ProxyProtocol::V2);
        assert_eq!(masked(&mut plan, spec), 0);
        spec.proxy_protocol = None;
    }
    assert_eq!(masked(&mut plan, &spec), 1);
    plan.program([&Change::Remove(spec.address)]);
    assert_eq!(masked(&mut plan, &spec), 1);
}

#[test]
fn nothing_is_open_before_it_may_nor_after() {
    let mut plan = plan(&[]);
    plan.set_open(false);
    let spec = node_port("web", Family::V4, Protocol::Tcp);
    assert_eq!(program(&mut plan, Change::Upsert(spec.clone())), [""; 0]);
    assert_eq!(
        told(&plan.set_open(true)),
        ["open TCP 0.0.0.0:30080 for default/web"]
    );
    assert_eq!(told(&plan.set_open(false)), ["close TCP 0.0.0.0:30080"]);
    assert_eq!(program(&mut plan, Change::Upsert(spec)), [""; 0]);
}
