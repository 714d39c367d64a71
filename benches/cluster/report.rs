//! What is left when all has run: JSON, and the document with its charts.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use serde_json::json;

use crate::args::Args;
use crate::machine::Machine;
use crate::results::Results;
use crate::systems::{Found, System};
use crate::targets::verdicts;
use crate::{document, table};

/// Everything that was measured, and on what.
pub(crate) struct Report {
    /// The arguments, as typed.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) systems: Vec<(System, Found)>,
    /// With what brings them.
    pub(crate) missing: Vec<(System, String)>,
    pub(crate) results: Results,
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(args: &Args, machine: Machine) -> Self {
        let typed: Vec<String> = std::env::args()
            .skip(1)
            .filter(|a| a != "--bench")
            .collect();
        let command = format!("cargo bench --bench cluster -- {}", typed.join(" "));
        Self {
            command: command.trim_end_matches(" -- ").to_owned(),
            machine,
            rounds: args.rounds(),
            seconds: args.times().length.as_secs_f64(),
            systems: Vec::new(),
            missing: Vec::new(),
            results: Results::default(),
        }
    }

    /// Writes what was asked for.
    pub(crate) fn finish(&self, args: &Args, out: &mut impl Write) -> Result<()> {
        let verdicts = verdicts(&self.results);
        if !args.quick {
            out.write_all(table::targets(&verdicts).as_bytes())?;
        }
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&self.json())?;
            fs::write(path, text).with_context(|| path.display().to_string())?;
            writeln!(out, "\nwritten: {}", path.display())?;
        }
        if args.save {
            for path in document::save(self, &verdicts)? {
                writeln!(out, "written: {}", path.display())?;
            }
        }
        Ok(())
    }

    /// What did not work of this proxy, and without any; what peers cannot do is
    /// only remarked upon.
    pub(crate) fn failures(&self) -> Vec<String> {
        let ours = [System::Direct, System::KubeTunProxy];
        let missing = self
            .missing
            .iter()
            .filter(|(system, _)| ours.contains(system));
        let missing = missing.map(|(system, reason)| format!("{}: {reason}", system.name()));
        let cells = self.results.cells.iter();
        let cells = cells.filter(|cell| ours.contains(&cell.system) && cell.failed_runs > 0);
        let failed = cells.map(|cell| {
            let (test, system, client) = (cell.test, cell.system.name(), cell.client.described());
            let remark = cell.remarked().unwrap_or_default();
            format!("{test} on {system}, {client}: {remark}")
        });
        missing.chain(failed).collect()
    }

    fn json(&self) -> serde_json::Value {
        let systems = self.systems.iter().map(|(system, found)| {
            json!({"name": system.name(), "version": found.version, "program": found.program})
        });
        let missing = self
            .missing
            .iter()
            .map(|(system, reason)| json!({"name": system.name(), "reason": reason}));
        json!({
            "command": self.command,
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "systems": systems.collect::<Vec<_>>(),
            "missing": missing.collect::<Vec<_>>(),
            "cells": self.results.cells,
        })
    }
}
