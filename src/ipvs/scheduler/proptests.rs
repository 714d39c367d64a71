//! Properties of the schedulers, against models of a few lines.

use proptest::prelude::*;

use super::tests::{Bench, name, set_counts};
use super::*;

/// One step of the life of a rotation.
#[derive(Clone, Debug)]
enum Step {
    Pick,
    Add(char),
    Remove(char),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Pick),
        1 => prop::char::range('a', 'h').prop_map(Step::Add),
        1 => prop::char::range('a', 'h').prop_map(Step::Remove),
    ]
}

/// The kernel's list, cut after the entry that the pointer stands on. Nothing
/// before the cut is the pointer on the head of the list.
#[derive(Debug, Default)]
struct Model {
    before: Vec<char>,
    after: Vec<char>,
}

impl Model {
    fn list(&self) -> Vec<char> {
        [&*self.before, &*self.after].concat()
    }

    fn pick(&mut self) -> Option<char> {
        let picked = *self.after.first().or_else(|| self.before.first())?;
        let mut list = self.list();
        let at = list.iter().position(|server| *server == picked)?;
        self.after = list.split_off(at + 1);
        self.before = list;
        Some(picked)
    }

    fn add(&mut self, new: char) {
        if self.before.is_empty() {
            self.after.insert(0, new);
        } else {
            self.before.insert(0, new);
        }
    }

    fn remove(&mut self, old: char) {
        self.before.retain(|server| *server != old);
        self.after.retain(|server| *server != old);
    }
}

proptest! {
    #[test]
    fn rr_is_the_kernels_list_with_a_pointer(steps in prop::collection::vec(step(), 0..200)) {
        let mut bench = Bench::new(SchedulerKind::Rr, &[]);
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Pick => prop_assert_eq!(bench.pick(), model.pick(), "{:?}", model),
                Step::Add(new) if model.list().contains(new) => {}
                Step::Add(new) => {
                    model.add(*new);
                    bench.add(*new);
                }
                Step::Remove(old) => {
                    model.remove(*old);
                    bench.remove(*old);
                }
            }
            let list: Vec<_> = bench.servers.iter().map(|server| name(server)).collect();
            prop_assert_eq!(list, model.list());
        }
        // Each once per N picks while the set stands, wherever the pointer is.
        let mut round: Vec<_> = bench.picks(bench.servers.len()).chars().collect();
        round.sort_unstable();
        let mut names = model.list();
        names.sort_unstable();
        prop_assert_eq!(round, names);
    }

    #[test]
    fn wrr_gives_each_its_weight(weights in prop::collection::vec(0..12_u32, 1..8)) {
        let servers: Vec<_> = ('a'..).zip(weights.iter().copied()).collect();
        let mut bench = Bench::new(SchedulerKind::Wrr, &servers);
        let divisor = weights.iter().copied().fold(0, hash::gcd).max(1);
        let round = bench.picks((weights.iter().sum::<u32>() / divisor) as usize);
        for (name, weight) in servers {
            let times = round.chars().filter(|picked| *picked == name).count();
            prop_assert_eq!(times, (weight / divisor) as usize, "{} in {}", name, round);
        }
    }

    #[test]
    fn least_connection_schedulers_choose_a_least(
        loads in prop::collection::vec((0..4_u32, 0..4_u32, 0..5_u32), 1..6),
    ) {
        for kind in [SchedulerKind::Lc, SchedulerKind::Wlc, SchedulerKind::Sed, SchedulerKind::Nq] {
            let servers: Vec<_> = ('a'..).zip(&loads).map(|(name, load)| (name, load.2)).collect();
            let mut bench = Bench::new(kind, &servers);
            for (server, (active, inactive, _)) in bench.servers.iter().zip(&loads) {
                set_counts(server, *active, *inactive);
            }
            // Ratios of such small numbers are exact enough as floats to compare.
            let cost = |server: &RealServer| {
                let (active, weight) = (f64::from(server.active()), f64::from(server.weight()));
                let overhead = active * 256.0 + f64::from(server.inactive());
                if kind == SchedulerKind::Lc {
                    overhead
                } else if kind == SchedulerKind::Wlc {
                    overhead / weight
                } else if kind == SchedulerKind::Nq && server.active() == 0 {
                    0.0
                } else {
                    (active + 1.0) / weight
                }
            };
            let least = bench
                .servers
                .iter()
                .filter(|server| server.weight() > 0)
                .map(|server| cost(server))
                .fold(f64::INFINITY, f64::min);
            match bench.pick_except(&[]) {
                Some(server) => {
                    prop_assert!(server.weight() > 0);
                    prop_assert!((cost(&server) - least).abs() < 1e-9, "{kind}: {loads:?}");
                }
                None => prop_assert!(least.is_infinite(), "{kind}: {loads:?}"),
            }
        }
    }
}
