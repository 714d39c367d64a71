//! Busy flows beside idle ones, and the memory of the idle ones.
//!
//! Each run has a cluster of its own: memory that an earlier test has used would
//! be there already.

use anyhow::{Context, Result};

use super::MANY;
use super::figures::Run;
use crate::bench::Bench;
use crate::cpu::resident;
use crate::load::Job;
use crate::process::{Process, load};
use crate::systems::{Client, System};

/// Open files of a process besides those of its flows.
const OTHER_FILES: u64 = 300;

/// Idle flows.
fn number(bench: &Bench) -> usize {
    if bench.quick { 1_000 } else { 15_000 }
}

/// Why this machine cannot hold that many, if so.
pub(super) fn obstacle(bench: &Bench, system: System) -> Option<String> {
    let flows = number(bench) as u64;
    // Client and server are a process each, with a file for each flow.
    let needed = flows * system.files_per_flow().max(1) + OTHER_FILES;
    (needed > bench.open_files).then(|| {
        format!(
            "{flows} flows take {needed} open files in a process, the limit is {} (ulimit -Hn)",
            bench.open_files
        )
    })
}

pub(super) fn run(bench: &Bench, system: System, client: Client) -> Result<Run> {
    let site = bench.build(system, 1)?;
    let namespace = site.client(client).map_err(anyhow::Error::msg)?;
    let busy = Job::Requests {
        window: bench.window(&site),
        to: site.target,
        connections: MANY,
    };
    let alone = load(&namespace, &busy)?;
    let before = resident(&site.processes())?;
    let flows = number(bench);
    let hold = Job::Hold {
        to: site.target,
        connections: flows,
    };
    let held =
        Process::lasting(&namespace, &hold).with_context(|| format!("{flows} idle flows"))?;
    let after = resident(&site.processes())?;
    let beside = load(&namespace, &busy)?;
    drop(held);
    let rate = |count: u64, seconds: f64| count as f64 / seconds / 1e3;
    let without = rate(alone.count, alone.seconds);
    let with = rate(beside.count, beside.seconds);
    let mut run = Run::default();
    run.more("rate", "k/s", with);
    run.more("without idle", "k/s", without);
    run.more("with to without", "", with / without);
    run.less("p99", "µs", beside.micros.p99);
    if !site.processes().is_empty() {
        let growth = after.saturating_sub(before) as f64;
        run.less("memory", "KiB/flow", growth / 1024.0 / flows as f64);
    }
    run.note(alone);
    run.note(beside);
    Ok(run)
}
