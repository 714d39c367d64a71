//! Connect latency with 10, 1,000 and 10,000 services loaded.

use anyhow::Result;

use super::figures::Run;
use crate::bench::Bench;
use crate::load::Job;
use crate::process::load;
use crate::systems::{Client, System};

/// Numbers of services, with what their figures are called.
const NUMBERS: [(usize, &str, &str); 3] = [
    (10, "p50 with 10", "p99 with 10"),
    (1_000, "p50 with 1,000", "p99 with 1,000"),
    (10_000, "p50 with 10,000", "p99 with 10,000"),
];

pub(super) fn prepare(bench: &mut Bench) {
    for system in [System::KubeTunProxy, System::KernelNat] {
        for (number, _, _) in NUMBERS {
            bench.build_larger(system, number);
        }
    }
}

pub(super) fn run(bench: &Bench, system: System, client: Client) -> Result<Run> {
    let mut run = Run::default();
    let mut latencies = Vec::new();
    for (services, p50, p99) in NUMBERS {
        let site = bench.larger(system, services)?;
        let namespace = site.client(client).map_err(anyhow::Error::msg)?;
        let job = Job::Connects {
            window: bench.window(site),
            first: site.target,
            services,
        };
        let outcome = load(&namespace, &job)?;
        latencies.push((p50, outcome.micros.p50));
        latencies.push((p99, outcome.micros.p99));
        run.note(outcome);
    }
    let (few, many) = (latencies[0].1, latencies[latencies.len() - 2].1);
    run.less("p50, 10,000 to 10", "", many / few);
    for (name, micros) in latencies {
        run.less(name, "µs", micros);
    }
    Ok(run)
}
