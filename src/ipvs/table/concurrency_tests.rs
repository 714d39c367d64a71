//! Several workers choose while the control plane programs.

use std::collections::BTreeMap;
use std::thread;

use super::tests::{VIP, forward, host, listed, pick, serving, spec, tcp, upsert};
use super::*;
use crate::ipvs::Connection;

const WORKERS: usize = 4;
/// Flows of one worker before it looks whether the changes are over.
const BATCH: usize = 500;

/// Flows that each real server was given.
type Served = BTreeMap<u8, usize>;

/// Runs the workers until `program` is over, and a batch more.
fn serve_during(table: &Table, program: impl FnOnce()) -> Served {
    let over = AtomicBool::new(false);
    let mut all = Served::new();
    thread::scope(|scope| {
        let work = || {
            let mut served = Served::new();
            let mut last = false;
            while !last {
                last = over.load(Ordering::Acquire);
                for _ in 0..BATCH {
                    let mut flow = Connection::new(pick(&forward(table, tcp(VIP))));
                    flow.established();
                    *served.entry(host(flow.real_server())).or_insert(0) += 1;
                }
            }
            served
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        program();
        over.store(true, Ordering::Release);
        for worker in workers {
            for (host, count) in worker.join().unwrap() {
                *all.entry(host).or_insert(0) += count;
            }
        }
    });
    all
}

/// The real servers that stay have equal shares, to one flow.
#[track_caller]
fn assert_even(served: &Served, hosts: [u8; 3]) {
    let shares = hosts.map(|host| served[&host]);
    let spread = shares.iter().max().unwrap() - shares.iter().min().unwrap();
    assert!(spread <= 1, "{served:?}");
}

#[test]
fn workers_share_one_rotation_while_the_set_changes() {
    let table = serving(&[1, 2, 3]);
    let other = tcp("10.0.0.9:80");
    let served = serve_during(&table, || {
        for round in 0..2_000 {
            let set: &[u8] = match round % 3 {
                0 => &[1, 2, 3],
                1 => &[1, 2, 3, 4],
                _ => &[1, 2, 3, 5],
            };
            upsert(&table, spec(tcp(VIP), set));
            upsert(&table, spec(other, set));
            table.apply(&Change::Remove(other));
        }
    });
    assert_even(&served, [1, 2, 3]);
    upsert(&table, spec(tcp(VIP), &[1, 2, 3]));
    assert_eq!(
        listed(&table, tcp(VIP)),
        [(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0)],
        "every flow was counted out again"
    );
}

#[test]
fn workers_share_one_rotation_while_another_service_changes() {
    let table = serving(&[1, 2, 3]);
    let other = tcp("10.0.0.9:80");
    let served = serve_during(&table, || {
        for round in 0..2_000_u16 {
            let host = u8::try_from(round % 7).unwrap();
            upsert(&table, spec(other, &[host]));
            table.apply(&Change::Remove(other));
        }
    });
    assert_even(&served, [1, 2, 3]);
    // And every choice was counted once.
    let counted: u64 = forward(&table, tcp(VIP))
        .real_servers()
        .iter()
        .map(|server| server.connections)
        .sum();
    assert_eq!(counted, served.values().sum::<usize>() as u64);
}
