//! The command line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};

use crate::bench::Times;
use crate::systems::{Client, System};
use crate::trial::{TRIALS, Trial};

/// Measures this proxy and others side by side
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --bench cluster --", no_binary_name = false)]
pub(crate) struct Args {
    /// Systems to compare; default: all that are installed
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) systems: Vec<System>,

    /// Tests to run; default: all
    #[arg(long, value_delimiter = ',', value_parser = trial)]
    pub(crate) tests: Vec<Trial>,

    /// Where the client is; default: both
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) clients: Vec<Client>,

    /// Rounds, each over all systems
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Time that counts of each run
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,

    /// One short round of everything: it shows that all works, not how fast
    #[arg(long)]
    pub(crate) quick: bool,

    /// Writes all figures to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Writes docs/performance.md and its charts
    #[arg(long)]
    pub(crate) save: bool,

    /// Holds the load generators against iperf3 and wrk, which must be installed
    #[arg(long)]
    pub(crate) check_load: bool,

    /// Names systems and tests, and what is missing
    #[arg(long)]
    pub(crate) list: bool,

    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// Rounds to run.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.max(1) }
    }

    /// How long each run takes.
    pub(crate) fn times(&self) -> Times {
        if self.quick {
            Times {
                warm_up: Duration::from_millis(50),
                length: Duration::from_millis(250),
            }
        } else {
            Times {
                warm_up: Duration::from_millis(300),
                length: Duration::from_secs_f64(self.seconds.clamp(0.1, 600.0)),
            }
        }
    }

    /// The systems asked for, or all.
    pub(crate) fn systems(&self) -> Vec<System> {
        if self.systems.is_empty() {
            System::value_variants().to_vec()
        } else {
            self.systems.clone()
        }
    }

    /// The tests asked for, or all.
    pub(crate) fn tests(&self) -> Vec<Trial> {
        if self.tests.is_empty() {
            TRIALS.to_vec()
        } else {
            self.tests.clone()
        }
    }

    /// The clients asked for, or both.
    pub(crate) fn clients(&self) -> Vec<Client> {
        if self.clients.is_empty() {
            Client::value_variants().to_vec()
        } else {
            self.clients.clone()
        }
    }
}

/// What there is to compare and to run.
pub(crate) fn list() -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "systems:")?;
    for system in System::value_variants() {
        match system.find() {
            Ok(found) => writeln!(out, "  {:<22}{}", system.name(), found.version)?,
            Err(mend) => writeln!(out, "  {:<22}missing: {mend}", system.name())?,
        }
    }
    writeln!(out, "tests:")?;
    for trial in TRIALS {
        writeln!(out, "  {:<22}{}", trial.name, trial.title)?;
    }
    Ok(())
}

fn trial(name: &str) -> Result<Trial> {
    let found = TRIALS.iter().find(|trial| trial.name == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = TRIALS.iter().map(|trial| trial.name).collect();
        anyhow!("no test {name}; there are {}", names.join(", "))
    })
}
