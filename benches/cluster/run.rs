//! The rounds: each test on each system in turn, then again.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::args::Args;
use crate::results::Results;
use crate::systems::{Site, congestion_control};
use crate::table;

/// Services loaded unless a test is about their number.
const SERVICES: usize = 1;

/// Runs what was asked for, printing each test as it is done.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    let congestion_control = congestion_control()?;
    writeln!(
        out,
        "congestion control in every namespace: {congestion_control}"
    )?;
    let mut sites = Vec::new();
    for system in args.systems() {
        match system.find() {
            Ok(found) => {
                writeln!(out, "{:<16}{}", system.name(), found.version)?;
                sites.push(Site::build(system, &found, congestion_control, SERVICES)?);
            }
            Err(mend) => writeln!(out, "{:<16}missing: {mend}", system.name())?,
        }
    }
    let standing: Vec<_> = sites.iter().map(|site| site.system).collect();
    let mut results = Results::default();
    for trial in &args.tests() {
        for &client in &args.clients() {
            for round in 0..args.rounds() {
                for at in 0..sites.len() {
                    // Each round begins with another system.
                    let site = &sites[(at + round) % sites.len()];
                    let cell = results.cell(trial.name, site.system, client);
                    match trial.run(site, client, args.times()) {
                        Ok((figures, outcome)) => {
                            cell.add(&figures);
                            cell.errors += outcome.errors;
                            cell.remark = cell.remark.take().or(outcome.first_error);
                        }
                        Err(error) => cell.remark = Some(format!("{error:#}")),
                    }
                }
            }
            out.write_all(table::block(&results, trial, client, &standing).as_bytes())?;
            out.flush()?;
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results.cells)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
