//! Any order of changes and flows against a model of a few lines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use proptest::prelude::*;

use super::tests::{endpoints, host, spec, table};
use super::*;
use crate::ipvs::Connection;
use crate::service::WhenEmpty;

/// Two virtual IPs with two ports each.
const ADDRESSES: usize = 4;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));

fn address(n: usize) -> VirtualAddress {
    VirtualAddress {
        ip: IpAddr::from([10, 0, 0, 1 + u8::from(n >= 2)]),
        port: [80, 443][n % 2],
        protocol: Protocol::Tcp,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Endpoints that take new flows, more that only serve, and those for clients
    /// outside if they get others; the last word is what an empty list means.
    Upsert(
        usize,
        BTreeSet<u8>,
        BTreeSet<u8>,
        Option<BTreeSet<u8>>,
        bool,
    ),
    Remove(usize),
    /// A flow begins, from this node or from outside, if the verdict allows it.
    Open(usize, bool),
    /// The oldest flow ends.
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let hosts = || prop::collection::btree_set(1..6_u8, 0..4);
    prop_oneof![
        3 => (0..ADDRESSES, hosts(), hosts(), prop::option::of(hosts()), any::<bool>())
            .prop_map(|(n, new, only, outside, drop)| Step::Upsert(n, new, only, outside, drop)),
        1 => (0..ADDRESSES).prop_map(Step::Remove),
        4 => (0..ADDRESSES, any::<bool>()).prop_map(|(n, node)| Step::Open(n, node)),
        1 => Just(Step::Close),
    ]
}

/// What one virtual server should be like.
#[derive(Debug)]
struct Server {
    usable: BTreeSet<u8>,
    outside: Option<BTreeSet<u8>>,
    drops: bool,
    /// Tells it from one that had the address before.
    life: usize,
}

/// An open flow and what should be true of its real server.
struct Flow {
    at: usize,
    life: usize,
    connection: Connection,
    retired: bool,
}

#[derive(Default)]
struct Model {
    servers: BTreeMap<usize, Server>,
    flows: Vec<Flow>,
    lives: usize,
}

impl Server {
    /// Those that a client gets.
    fn list(&self, is_node: bool) -> &BTreeSet<u8> {
        match &self.outside {
            Some(outside) if !is_node => outside,
            Some(_) | None => &self.usable,
        }
    }
}

impl Model {
    fn upsert(
        &mut self,
        n: usize,
        usable: &BTreeSet<u8>,
        outside: Option<BTreeSet<u8>>,
        serving: &BTreeSet<u8>,
        drops: bool,
    ) {
        self.lives += 1;
        let life = self
            .servers
            .get(&n)
            .map_or(self.lives, |server| server.life);
        let usable = usable.clone();
        self.servers.insert(
            n,
            Server {
                usable,
                outside,
                drops,
                life,
            },
        );
        for flow in self.flows.iter_mut().filter(|flow| flow.life == life) {
            if !serving.is_empty() {
                flow.retired = !serving.contains(&host(flow.connection.real_server()));
            }
        }
    }

    fn remove(&mut self, n: usize) {
        if let Some(gone) = self.servers.remove(&n) {
            for flow in self.flows.iter_mut().filter(|flow| flow.life == gone.life) {
                flow.retired = true;
            }
        }
    }

    fn verdict(&self, n: usize, is_node: bool) -> &'static str {
        match self.servers.get(&n) {
            Some(server) if !server.list(is_node).is_empty() => "forward",
            Some(server) if server.drops => "no_local_endpoint",
            Some(_) => "no_endpoints",
            None if self.servers.contains_key(&(n ^ 1)) => "unknown_port",
            None => "unknown_address",
        }
    }

    /// (host, weight, inactive) of those that are listed.
    fn listed(&self, n: usize) -> Vec<(u8, u32, u32)> {
        let server = &self.servers[&n];
        (1..6)
            .filter_map(|listed| {
                let flows = self.flows.iter().filter(|flow| {
                    flow.life == server.life && host(flow.connection.real_server()) == listed
                });
                let (weight, flows) = (
                    u32::from(
                        [true, false]
                            .iter()
                            .any(|n| server.list(*n).contains(&listed)),
                    ),
                    u32::try_from(flows.count()).unwrap_or(u32::MAX),
                );
                (weight > 0 || flows > 0).then_some((listed, weight, flows))
            })
            .collect()
    }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(_) => "forward",
        Verdict::Reject(reason) => reason.as_str(),
        Verdict::Drop(reason) => reason.as_str(),
    }
}

proptest! {
    #[test]
    fn the_table_is_what_was_programmed_last(steps in prop::collection::vec(step(), 0..60)) {
        let table = table();
        let mut model = Model::default();
        let now = Instant::now();
        for step in steps {
            match step {
                Step::Upsert(n, new, only, outside, drops) => {
                    let listed = |hosts: &BTreeSet<u8>| endpoints(&hosts.iter().copied().collect::<Vec<_>>());
                    let mut serving: BTreeSet<_> = new.union(&only).copied().collect();
                    serving.extend(outside.iter().flatten());
                    let hosts: Vec<_> = new.iter().copied().collect();
                    let mut spec = spec(address(n), &hosts);
                    spec.external = outside.as_ref().map(listed);
                    spec.serving = listed(&serving);
                    spec.when_empty = if drops { WhenEmpty::Drop } else { WhenEmpty::Reject };
                    spec.external_when_empty = spec.when_empty;
                    table.apply(&Change::Upsert(spec));
                    model.upsert(n, &new, outside, &serving, drops);
                }
                Step::Remove(n) => {
                    table.apply(&Change::Remove(address(n)));
                    model.remove(n);
                }
                Step::Open(n, is_node) => {
                    if model.verdict(n, is_node) == "forward" {
                        let client = ([10, 1, 15, 1], 40_000).into();
                        let picked = match table.verdict(address(n), CLIENT, || is_node) {
                            Verdict::Forward(server) => server.schedule(client, now, &[]),
                            Verdict::Reject(_) | Verdict::Drop(_) => None,
                        };
                        let Some(picked) = picked else {
                            return Err(TestCaseError::fail("nobody was chosen"));
                        };
                        let server = &model.servers[&n];
                        prop_assert!(server.list(is_node).contains(&host(&picked)));
                        model.flows.push(Flow {
                            at: n,
                            life: server.life,
                            connection: Connection::new(picked),
                            retired: false,
                        });
                    }
                }
                Step::Close if model.flows.is_empty() => {}
                Step::Close => drop(model.flows.remove(0)),
            }
            let mut expected = Vec::new();
            for n in 0..ADDRESSES {
                for is_node in [true, false] {
                    let verdict = table.verdict(address(n), CLIENT, || is_node);
                    prop_assert_eq!(word(&verdict), model.verdict(n, is_node), "{}", n);
                }
                let known = model.verdict(n, true) != "unknown_address";
                prop_assert_eq!(table.echo(address(n).ip) == EchoVerdict::Answer, known);
                if model.servers.contains_key(&n) {
                    expected.push((address(n), model.listed(n)));
                }
            }
            for flow in &model.flows {
                let server = flow.connection.real_server();
                prop_assert_eq!(server.is_retired(), flow.retired, "{} at {}", server.address, flow.at);
            }
            let listed: Vec<_> = table
                .snapshot()
                .iter()
                .map(|view| {
                    let servers = view.real_servers.iter().map(|server| {
                        let IpAddr::V4(ip) = server.address.ip() else {
                            panic!("{}", server.address);
                        };
                        (ip.octets()[3], server.weight, server.inactive)
                    });
                    (view.address, servers.collect::<Vec<_>>())
                })
                .collect();
            prop_assert_eq!(listed, expected);
        }
    }
}
