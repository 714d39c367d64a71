//! `cargo bench --bench cluster`: this proxy and others, in clusters of network
//! namespaces, under the same load in alternating rounds.
//!
//! For each system a cluster of two nodes of its own stands for the whole run;
//! the client is on one node, or in a pod there, the real server is a pod on the
//! other. The process starts itself again for each load generator and each real
//! server (`load`), and to become a peer's program (`tether`).

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use kube_tun_proxy::lab;

mod args;
mod bench;
mod chart;
mod check;
mod cpu;
mod document;
mod limits;
mod load;
mod machine;
mod objects;
mod process;
mod report;
mod results;
mod run;
mod systems;
mod table;
mod targets;
mod trial;
mod wiring;

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nobody to read it the exit status still tells.
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().collect();
    match arguments.get(1).and_then(|first| first.to_str()) {
        Some("load") => {
            let job = arguments.get(2).and_then(|job| job.to_str());
            load::main(job.context("load: no job")?)
        }
        Some("tether") => {
            let program = arguments.get(2).context("tether: no program")?;
            process::tether(program, &arguments[3..])
        }
        _ => {
            let args = args::Args::parse();
            if args.list {
                return args::list();
            }
            lab::enter()
                .and_then(|()| lab::require_tun())
                .map_err(|error| {
                    let mend = error.mend().map(|mend| format!("\nmend: {mend}"));
                    anyhow::anyhow!("{error}{}", mend.unwrap_or_default())
                })?;
            if args.check_load {
                check::run(&args)
            } else {
                run::run(&args)
            }
        }
    }
}
