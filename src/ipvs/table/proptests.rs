//! Any order of changes and flows against a model of a few lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proptest::prelude::*;

use super::tests::{endpoints, forward, host, spec, table, verdict};
use super::*;
use crate::ipvs::Connection;
use crate::service::WhenEmpty;

/// Two virtual IPs with two ports each.
const ADDRESSES: usize = 4;

fn address(n: usize) -> VirtualAddress {
    VirtualAddress {
        ip: IpAddr::from([10, 0, 0, 1 + u8::from(n >= 2)]),
        port: [80, 443][n % 2],
        protocol: Protocol::Tcp,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Endpoints that take new flows, and more that only serve.
    Upsert(usize, BTreeSet<u8>, BTreeSet<u8>, bool),
    Remove(usize),
    /// A flow begins, if the verdict allows it.
    Open(usize),
    /// The oldest flow ends.
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let hosts = || prop::collection::btree_set(1..6_u8, 0..4);
    prop_oneof![
        3 => (0..ADDRESSES, hosts(), hosts(), any::<bool>())
            .prop_map(|(n, new, only, drop)| Step::Upsert(n, new, only, drop)),
        1 => (0..ADDRESSES).prop_map(Step::Remove),
        4 => (0..ADDRESSES).prop_map(Step::Open),
        1 => Just(Step::Close),
    ]
}

/// What one virtual server should be like.
#[derive(Debug)]
struct Server {
    usable: BTreeSet<u8>,
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

impl Model {
    fn upsert(&mut self, n: usize, usable: &BTreeSet<u8>, serving: &BTreeSet<u8>, drops: bool) {
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

    fn verdict(&self, n: usize) -> &'static str {
        match self.servers.get(&n) {
            Some(server) if !server.usable.is_empty() => "forward",
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
                    u32::from(server.usable.contains(&listed)),
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
                Step::Upsert(n, new, only, drops) => {
                    let serving: BTreeSet<_> = new.union(&only).copied().collect();
                    let hosts: Vec<_> = new.iter().copied().collect();
                    let mut spec = spec(address(n), &hosts);
                    spec.serving = endpoints(&serving.iter().copied().collect::<Vec<_>>());
                    spec.when_empty = if drops { WhenEmpty::Drop } else { WhenEmpty::Reject };
                    table.apply(&Change::Upsert(spec));
                    model.upsert(n, &new, &serving, drops);
                }
                Step::Remove(n) => {
                    table.apply(&Change::Remove(address(n)));
                    model.remove(n);
                }
                Step::Open(n) => {
                    if model.verdict(n) == "forward" {
                        let client = ([10, 1, 15, 1], 40_000).into();
                        let picked = forward(&table, address(n)).schedule(client, now, &[]);
                        let Some(picked) = picked else {
                            return Err(TestCaseError::fail("nobody was chosen"));
                        };
                        let server = &model.servers[&n];
                        prop_assert!(server.usable.contains(&host(&picked)));
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
                prop_assert_eq!(word(&verdict(&table, address(n))), model.verdict(n), "{}", n);
                let known = model.verdict(n) != "unknown_address";
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
