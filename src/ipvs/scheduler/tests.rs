//! Golden rotations, worked out by hand from the kernel's algorithms; the file
//! and function that each rule comes from is named beside it.
//!
//! Servers are named by letters; lists are written from the head.

use std::collections::BTreeMap;

use super::*;

/// A server for each letter, with its weight.
pub(super) fn list(servers: &[(char, u32)]) -> Vec<Arc<RealServer>> {
    servers
        .iter()
        .map(|(name, weight)| Arc::new(RealServer::new(address(*name), *weight)))
        .collect()
}

/// 10.1.65.n:443, with n the place in the alphabet: `a` is 10.1.65.1.
pub(super) fn address(name: char) -> SocketAddr {
    let host = u8::try_from(name).unwrap() - b'a' + 1;
    SocketAddr::from(([10, 1, 65, host], 443))
}

pub(super) fn name(server: &RealServer) -> char {
    let SocketAddr::V4(address) = server.address else {
        panic!("{} is not IPv4", server.address);
    };
    char::from(b'a' + address.ip().octets()[3] - 1)
}

/// A scheduler with its list.
pub(super) struct Bench {
    scheduler: Box<dyn Scheduler>,
    pub(super) servers: Vec<Arc<RealServer>>,
    client: SocketAddr,
    virtual_ip: IpAddr,
}

impl Bench {
    pub(super) fn new(kind: SchedulerKind, servers: &[(char, u32)]) -> Self {
        let mut bench = Self {
            scheduler: build(kind),
            servers: Vec::new(),
            client: "10.1.15.7:40000".parse().unwrap(),
            virtual_ip: "10.0.0.3".parse().unwrap(),
        };
        bench.replace(list(servers));
        bench
    }

    /// Replaces the whole list.
    fn replace(&mut self, servers: Vec<Arc<RealServer>>) {
        let kept = vec![false; self.servers.len()];
        self.servers = servers;
        self.scheduler.changed(&Update {
            servers: &self.servers,
            added: self.servers.len(),
            kept: &kept,
        });
    }

    pub(super) fn add(&mut self, new: char) {
        let kept = vec![true; self.servers.len()];
        self.servers.splice(0..0, list(&[(new, 1)]));
        self.scheduler.changed(&Update {
            servers: &self.servers,
            added: 1,
            kept: &kept,
        });
    }

    pub(super) fn remove(&mut self, old: char) {
        let kept: Vec<_> = self.servers.iter().map(|s| name(s) != old).collect();
        self.servers.retain(|server| name(server) != old);
        self.scheduler.changed(&Update {
            servers: &self.servers,
            added: 0,
            kept: &kept,
        });
    }

    pub(super) fn pick_except(&mut self, tried: &[char]) -> Option<Arc<RealServer>> {
        let tried: Vec<_> = tried.iter().map(|name| address(*name)).collect();
        let request = Request {
            client: self.client,
            virtual_ip: self.virtual_ip,
        };
        let index = self
            .scheduler
            .pick(&request, Candidates::new(&self.servers, &tried))?;
        Some(Arc::clone(&self.servers[index]))
    }

    pub(super) fn pick(&mut self) -> Option<char> {
        self.pick_except(&[]).map(|server| name(&server))
    }

    /// The next choices, as a word; `-` where there is none.
    pub(super) fn picks(&mut self, count: usize) -> String {
        (0..count).map(|_| self.pick().unwrap_or('-')).collect()
    }

    /// The next choices, each leaving an established connection open.
    fn busy_picks(&mut self, count: usize) -> String {
        (0..count)
            .map(|_| {
                let server = self.pick_except(&[]).unwrap();
                set_counts(&server, server.active() + 1, server.inactive());
                name(&server)
            })
            .collect()
    }

    fn server(&self, wanted: char) -> &RealServer {
        self.servers.iter().find(|s| name(s) == wanted).unwrap()
    }
}

/// Brings the counters to these values, as flows that come and go would.
pub(super) fn set_counts(server: &RealServer, active: u32, inactive: u32) {
    while server.active() > 0 {
        server.unbind(true);
    }
    while server.inactive() > 0 {
        server.unbind(false);
    }
    for _ in 0..active {
        server.bind();
        server.set_active(true);
    }
    for _ in 0..inactive {
        server.bind();
    }
}

#[test]
fn names_are_those_of_ipvsadm() {
    for kind in SchedulerKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(*kind));
    }
    let error = "RR".parse::<SchedulerKind>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown scheduler \"RR\": it must be one of rr, wrr, lc, wlc, sed, nq, sh, dh, mh"
    );
}

#[test]
fn nobody_is_chosen_from_nobody() {
    for kind in SchedulerKind::ALL {
        let mut bench = Bench::new(*kind, &[]);
        assert_eq!(bench.picks(2), "--", "{kind}, empty");
        bench.replace(list(&[('a', 0), ('b', 0)]));
        assert_eq!(bench.picks(2), "--", "{kind}, all of weight 0");
        bench.replace(list(&[('a', 1)]));
        assert_eq!(bench.picks(2), "aa", "{kind}, one");
    }
}

#[test]
fn every_scheduler_fails_over_until_all_were_tried() {
    for kind in SchedulerKind::ALL {
        let mut bench = Bench::new(*kind, &[('a', 1), ('b', 1), ('c', 1), ('d', 1)]);
        let mut tried = Vec::new();
        for _ in 0..4 {
            let server = bench
                .pick_except(&tried)
                .unwrap_or_else(|| panic!("{kind} gave up after {tried:?}"));
            assert!(!tried.contains(&name(&server)), "{kind}");
            tried.push(name(&server));
        }
        assert!(bench.pick_except(&tried).is_none(), "{kind}");
        assert!(bench.pick().is_some(), "{kind} recovers");
    }
}

// ip_vs_rr.c, ip_vs_rr_schedule: the walk starts after the entry used last and at
// the head of the list the first time.
#[test]
fn rr_walks_the_list_from_its_head() {
    let mut bench = Bench::new(SchedulerKind::Rr, &[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(bench.picks(7), "abcabca");
}

// ip_vs_rr_schedule: entries of weight 0 are passed over and stay in the list.
#[test]
fn rr_passes_over_weight_zero_and_ignores_other_weights() {
    let mut bench = Bench::new(SchedulerKind::Rr, &[('a', 0), ('b', 5), ('c', 0), ('d', 1)]);
    assert_eq!(bench.picks(4), "bdbd");
    bench.server('c').set_weight(1);
    assert_eq!(bench.picks(4), "bcdb");
}

// ip_vs_ctl.c, ip_vs_new_dest: list_add_rcu puts the new one at the head, before
// the pointer, so it waits for the wrap.
#[test]
fn rr_meets_a_new_server_after_the_wrap() {
    let mut bench = Bench::new(SchedulerKind::Rr, &[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(bench.picks(1), "a");
    bench.add('d');
    assert_eq!(bench.picks(5), "bcdab");
    // With the pointer still on the head, the new one is next.
    let mut fresh = Bench::new(SchedulerKind::Rr, &[('a', 1)]);
    fresh.add('b');
    assert_eq!(fresh.picks(3), "bab");
}

// ip_vs_rr_del_dest: the pointer moves to the previous entry if its own goes, and
// stays if another goes.
#[test]
fn rr_goes_on_when_servers_go() {
    let four = [('a', 1), ('b', 1), ('c', 1), ('d', 1)];
    for (gone, rest) in [
        ('a', "cdbcd"),
        ('b', "cdacd"),
        ('c', "dabda"),
        ('d', "cabca"),
    ] {
        let mut bench = Bench::new(SchedulerKind::Rr, &four);
        assert_eq!(bench.picks(2), "ab");
        bench.remove(gone);
        assert_eq!(bench.picks(5), rest, "without {gone}");
    }
    // The first goes while the pointer is on it: back to the head of the list.
    let mut bench = Bench::new(SchedulerKind::Rr, &four);
    assert_eq!(bench.picks(1), "a");
    bench.remove('a');
    assert_eq!(bench.picks(4), "bcdb");
}

// Ours: a fail-over moves the rotation, so the living share equally.
#[test]
fn rr_stays_even_around_a_dead_server() {
    let mut bench = Bench::new(SchedulerKind::Rr, &[('a', 1), ('b', 1), ('c', 1), ('d', 1)]);
    let mut served = BTreeMap::new();
    for _ in 0..30 {
        let mut server = bench.pick_except(&[]).unwrap();
        if name(&server) == 'b' {
            server = bench.pick_except(&['b']).unwrap();
        }
        *served.entry(name(&server)).or_insert(0) += 1;
    }
    assert_eq!(served, BTreeMap::from([('a', 10), ('c', 10), ('d', 10)]));
}

// ip_vs_wrr.c, comment above ip_vs_wrr_mark and ip_vs_wrr_schedule: weights 4, 3,
// 2 have divisor 1, so the rounds ask for 4, 3, 2, 1: a, ab, abc, abc.
#[test]
fn wrr_takes_rounds_with_falling_thresholds() {
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 4), ('b', 3), ('c', 2)]);
    assert_eq!(bench.picks(18), "aababcabcaababcabc");
}

// Divisor 2: mw = 6 - (2 - 1) = 5; rounds ask for 5, 3, 1: a, ab, abc.
#[test]
fn wrr_steps_by_the_divisor_of_the_weights() {
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 6), ('b', 4), ('c', 2)]);
    assert_eq!(bench.picks(12), "aababcaababc");
}

#[test]
fn wrr_with_kubernetes_weights_is_a_rotation() {
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(bench.picks(7), "abcabca");
}

// ip_vs_wrr_dest_changed: the pointer goes back to the head, the threshold stays
// while it fits.
#[test]
fn wrr_starts_at_the_head_when_the_list_changes() {
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(bench.picks(2), "ab");
    bench.add('d');
    assert_eq!(bench.picks(5), "dabcd");
    // Threshold 2 after "aab"; the change keeps it, and from the head that is
    // abc, then the round for 1.
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 4), ('b', 3), ('c', 2)]);
    assert_eq!(bench.picks(4), "aaba");
    bench.remove('x');
    assert_eq!(bench.picks(7), "abcabca");
}

// ip_vs_wrr_schedule, the paths to err_over: it ends, whatever cannot be used.
#[test]
fn wrr_finds_whoever_is_left() {
    let mut bench = Bench::new(SchedulerKind::Wrr, &[('a', 4), ('b', 1), ('c', 2)]);
    for tried in ["ac", "ab", "bc", "a", "b", "c"] {
        for _ in 0..10 {
            let tried: Vec<_> = tried.chars().collect();
            let server = bench.pick_except(&tried).unwrap();
            assert!(!tried.contains(&name(&server)));
        }
    }
    for _ in 0..10 {
        assert!(bench.pick_except(&['a', 'b', 'c']).is_none());
    }
    assert!(bench.pick().is_some());
}

// ip_vs.h, ip_vs_dest_conn_overhead: active * 256 + inactive; ip_vs_lc.c: the
// least, of equals the first.
#[test]
fn lc_counts_an_active_connection_as_256_inactive_ones() {
    let mut bench = Bench::new(SchedulerKind::Lc, &[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(bench.picks(3), "aaa");
    assert_eq!(bench.busy_picks(7), "abcabca");
    set_counts(bench.server('a'), 1, 0);
    set_counts(bench.server('b'), 0, 256);
    set_counts(bench.server('c'), 1, 1);
    assert_eq!(bench.pick(), Some('a'));
    set_counts(bench.server('b'), 0, 255);
    assert_eq!(bench.pick(), Some('b'));
    // Weights do not matter, except 0.
    bench.server('b').set_weight(0);
    bench.server('c').set_weight(100);
    assert_eq!(bench.pick(), Some('a'));
}

// ip_vs_wlc.c, ip_vs_wlc_schedule: least overhead / weight. Loads a/2 and b/1 with
// ties to the first: a0 b0: a; a½ b0: b; a½ b1: a; a1 b1: a; a1½ b1: b.
#[test]
fn wlc_divides_by_the_weight() {
    let mut bench = Bench::new(SchedulerKind::Wlc, &[('a', 2), ('b', 1)]);
    assert_eq!(bench.busy_picks(6), "abaaba");
}

// ip_vs_sed.c, ip_vs_sed_dest_overhead: (active + 1) / weight. Weights 3 and 1:
// 1/3 1: a; 2/3 1: a; 3/3 1: a (tie); 4/3 1: b; 4/3 2: a.
#[test]
fn sed_counts_the_connection_to_come() {
    let mut bench = Bench::new(SchedulerKind::Sed, &[('a', 3), ('b', 1)]);
    assert_eq!(bench.busy_picks(8), "aaabaaab");
    // Inactive ones do not count.
    let mut bench = Bench::new(SchedulerKind::Sed, &[('a', 1), ('b', 1)]);
    set_counts(bench.server('a'), 0, 1000);
    assert_eq!(bench.pick(), Some('a'));
}

// ip_vs_nq.c, ip_vs_nq_schedule: an idle one first, else as sed. Weights 3 and 1:
// a is idle; then b; then 2/3 2: a; 3/3 2: a; 4/3 2: a; 5/3 2: a; 6/3 2: a (tie);
// 7/3 2: b.
#[test]
fn nq_prefers_the_idle() {
    let mut bench = Bench::new(SchedulerKind::Nq, &[('a', 3), ('b', 1)]);
    assert_eq!(bench.busy_picks(8), "abaaaaab");
}

// ip_vs_sh.c, ip_vs_sh_hashkey: hash_32 of the address, 8 bits; ip_vs_sh_reassign:
// buckets are dealt in the order of the list, `weight` in a row.
#[test]
fn sh_deals_buckets_by_weight_and_hashes_the_client() {
    let mut bench = Bench::new(SchedulerKind::Sh, &[('a', 1), ('b', 2), ('c', 1)]);
    // 0.0.0.0 hashes to bucket 0 and 0.0.0.1 to bucket 0x61 = 97: 97 mod 4 = 1.
    // 0.0.0.2 to 0xc3 = 195: 195 mod 4 = 3. The deal is abbc, abbc, …
    for (client, expected) in [("0.0.0.0:1", 'a'), ("0.0.0.1:1", 'b'), ("0.0.0.2:1", 'c')] {
        bench.client = client.parse().unwrap();
        assert_eq!(bench.pick(), Some(expected), "{client}");
    }
    // The port makes no difference: kube-proxy does not set sh-port.
    bench.client = "0.0.0.2:65535".parse().unwrap();
    assert_eq!(bench.picks(3), "ccc");
    // IPv6 words are folded: 0:1 ^ 0:2 ^ 0:3 ^ 0:2 = 2.
    bench.client = "[0:1:0:2:0:3:0:2]:1".parse().unwrap();
    assert_eq!(bench.pick(), Some('c'));
}

// ip_vs_sh_get_fallback: bucket (offset + ihash) + hash mod 256, offset from 0.
// For 0.0.0.1 the home is 97, the walk starts at 194: 194 mod 3 = 2.
#[test]
fn sh_falls_over_from_the_double_of_the_hash() {
    let mut bench = Bench::new(SchedulerKind::Sh, &[('a', 1), ('b', 1), ('c', 1)]);
    bench.client = "0.0.0.1:1".parse().unwrap();
    assert_eq!(bench.pick(), Some('b'));
    assert_eq!(name(&bench.pick_except(&['b']).unwrap()), 'c');
    assert_eq!(name(&bench.pick_except(&['b', 'c']).unwrap()), 'a');
}

// ip_vs_dh.c, ip_vs_dh_hashkey: hash_32 of the destination, 8 bits;
// ip_vs_dh_reassign: one bucket each in turn, whatever the weight.
#[test]
fn dh_hashes_the_virtual_ip() {
    let mut bench = Bench::new(SchedulerKind::Dh, &[('a', 1), ('b', 9), ('c', 1)]);
    for (ip, expected) in [("0.0.0.0", "aa"), ("0.0.0.1", "bb"), ("0.0.0.2", "aa")] {
        bench.virtual_ip = ip.parse().unwrap();
        assert_eq!(bench.picks(2), expected, "{ip}");
    }
    // Ours: the next bucket. 195 mod 3 = 0, so b is next.
    assert_eq!(name(&bench.pick_except(&['a']).unwrap()), 'b');
}

// ip_vs_mh.c: each server takes the next free place of its permutation in turns,
// so of 4093 places each of three gets 1364 or 1365.
#[test]
fn mh_fills_the_table_evenly() {
    let servers = list(&[('a', 1), ('b', 1), ('c', 1)]);
    assert_eq!(mh::shares(&servers), [1365, 1364, 1364]);
    // 2:1:1 in turns of 4: 4093 = 1023 * 4 + 1.
    let servers = list(&[('a', 2), ('b', 1), ('c', 1)]);
    assert_eq!(mh::shares(&servers), [2047, 1023, 1023]);
    // A divisor common to all does not matter.
    let servers = list(&[('a', 200), ('b', 100), ('c', 100)]);
    assert_eq!(mh::shares(&servers), [2047, 1023, 1023]);
}

// ip_vs_mh_shift_weight: weights are cut to 6 bits, and to no less than 1.
#[test]
fn mh_cuts_huge_weights() {
    // 6400 has 13 bits, so 7 are cut: 6400 >> 7 = 50 turns to 1.
    let servers = list(&[('a', 6400), ('b', 1)]);
    // 4093 = 80 * 51 + 13.
    assert_eq!(mh::shares(&servers), [80 * 50 + 13, 80]);
}

// ip_vs_mh_schedule with IP_VS_SVC_F_SCHED_MH_PORT, which kube-proxy sets
// (pkg/proxy/ipvs/proxier.go).
#[test]
fn mh_hashes_client_and_port() {
    let mut bench = Bench::new(SchedulerKind::Mh, &[('a', 1), ('b', 1), ('c', 1)]);
    let first = bench.pick();
    assert_eq!([bench.pick(), bench.pick()], [first, first]);
    let mut seen: Vec<_> = (0..64)
        .filter_map(|port| {
            bench.client.set_port(40_000 + port);
            bench.pick()
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, ['a', 'b', 'c']);
    // Only the sum counts (ip_vs_mh_hashkey): one address up, one port down.
    bench.client = "10.1.15.7:40001".parse().unwrap();
    let one = bench.pick();
    bench.client = "10.1.15.8:40000".parse().unwrap();
    assert_eq!(bench.pick(), one);
}

// Worked out by a separate program from ip_vs_mh_permutate, ip_vs_mh_populate and
// ip_vs_mh_get_fallback, with the permutations written out whole.
#[test]
fn mh_places_clients_as_the_kernel_does() {
    let mut bench = Bench::new(SchedulerKind::Mh, &[('a', 1), ('b', 1), ('c', 1)]);
    let (mut homes, mut others) = (String::new(), String::new());
    for port in 40_000..40_024 {
        bench.client.set_port(port);
        let home = bench.pick().unwrap();
        homes.push(home);
        others.push(name(&bench.pick_except(&[home]).unwrap()));
    }
    assert_eq!(homes, "bbccaaccaabbabbcaaaaacac");
    assert_eq!(others, "ccbbcbbabbcacacbcbcbcaba");
}

#[test]
fn mh_moves_few_clients_when_a_server_goes() {
    let mut bench = Bench::new(
        SchedulerKind::Mh,
        &[('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 1)],
    );
    let choices = |bench: &mut Bench| -> Vec<_> {
        (0..1000)
            .map(|port| {
                bench.client.set_port(10_000 + port);
                bench.pick().unwrap()
            })
            .collect()
    };
    let before = choices(&mut bench);
    bench.remove('c');
    let after = choices(&mut bench);
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| **before != 'c' && before != after)
        .count();
    // A plain modulus would move about four fifths of them.
    assert!(moved < 150, "{moved} of 1000 clients moved");
}

#[test]
fn mh_places_at_most_as_many_servers_as_it_has_places() {
    let servers: Vec<_> = (0..5000_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            Arc::new(RealServer::new(
                SocketAddr::from(([10, 1, high, low], 80)),
                1,
            ))
        })
        .collect();
    let shares = mh::shares(&servers);
    assert_eq!(shares.len(), 5000);
    assert!(shares[..4093].iter().all(|share| *share == 1));
    assert!(shares[4093..].iter().all(|share| *share == 0));
}
