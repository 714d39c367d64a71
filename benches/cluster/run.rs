//! The rounds: each test on each system in turn, then again.

use std::io::{self, Write};

use anyhow::{Result, bail};

use crate::args::Args;
use crate::bench::Bench;
use crate::limits::raise_open_files;
use crate::machine::Machine;
use crate::report::Report;
use crate::results::Results;
use crate::systems::{Client, Site, congestion_control};
use crate::table;
use crate::trial::Trial;

/// Runs what was asked for, printing each test as it is done.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    let open_files = raise_open_files()?;
    let mut bench = Bench::new(congestion_control()?, args.times(), args.quick, open_files);
    let mut report = Report::new(args, Machine::look(bench.congestion_control, open_files));
    writeln!(out, "{}", report.machine)?;
    let mut sites = Vec::new();
    for system in args.systems() {
        match system.find() {
            Ok(found) => {
                writeln!(out, "{:<18}{}", system.name(), found.version)?;
                bench.found.insert(system, found.clone());
                match bench.build(system, 1) {
                    Ok(site) => {
                        sites.push(site);
                        report.systems.push((system, found));
                    }
                    // One that does not stand must not keep the others from it.
                    Err(error) => {
                        writeln!(out, "{:<18}not started: {error:#}", "")?;
                        report
                            .missing
                            .push((system, format!("not started: {error:#}")));
                    }
                }
            }
            Err(mend) => {
                writeln!(out, "{:<18}missing: {mend}", system.name())?;
                report.missing.push((system, mend.to_owned()));
            }
        }
        out.flush()?;
    }
    let systems: Vec<_> = sites.iter().map(|site| site.system).collect();
    for trial in &args.tests() {
        trial.prepare(&mut bench);
        for client in args.clients() {
            for round in 0..args.rounds() {
                for at in 0..sites.len() {
                    // Each round begins with another system.
                    let site = &sites[(at + round) % sites.len()];
                    if trial.concerns(site.system, client) {
                        run_once(&bench, trial, site, client, &mut report.results);
                    }
                }
            }
            let block = table::block(&report.results, trial, client, &systems);
            out.write_all(block.as_bytes())?;
            out.flush()?;
        }
    }
    drop(sites);
    report.finish(args, &mut out)?;
    // Figures are not judged here, but a test that gave none is a failure.
    let failed = report.failures();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn run_once(bench: &Bench, trial: &Trial, site: &Site, client: Client, results: &mut Results) {
    let cell = results.cell(trial.name, site.system, client);
    if let Some(obstacle) = trial.obstacle(bench, site, client) {
        cell.remark = Some(format!("not tried: {obstacle}"));
        return;
    }
    match trial.run(bench, site, client) {
        Ok(run) => {
            cell.add(&run.figures);
            cell.errors += run.errors;
            cell.remark = cell.remark.take().or(run.first_error);
        }
        Err(error) => {
            cell.failed_runs += 1;
            cell.remark = Some(format!("{error:#}"));
        }
    }
}
