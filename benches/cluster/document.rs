//! docs/performance.md.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::chart::CHARTS;
use crate::report::Report;
use crate::systems::{Client, System};
use crate::table::{bound, number, shown};
use crate::targets::Verdict;
use crate::trial::TRIALS;

/// Writes the document and its charts; returns where they are.
pub(crate) fn save(report: &Report, verdicts: &[Verdict]) -> Result<Vec<PathBuf>> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let charts = docs.join("performance");
    fs::create_dir_all(&charts).with_context(|| charts.display().to_string())?;
    let systems: Vec<System> = report.systems.iter().map(|(system, _)| *system).collect();
    let mut written = Vec::new();
    let mut drawn = Vec::new();
    for chart in &CHARTS {
        let path = charts.join(chart.file);
        if chart.draw(&report.results, &systems, Client::value_variants(), &path)? {
            drawn.push(chart);
            written.push(path);
        }
    }
    let mut text = head(report);
    for chart in drawn {
        push(
            &mut text,
            format_args!("![{}](performance/{})\n\n", chart.title, chart.file),
        );
    }
    targets(&mut text, verdicts);
    text.push_str("## Figures\n");
    for trial in TRIALS {
        for &client in Client::value_variants() {
            figures(&mut text, report, trial.name, trial.title, client, &systems);
        }
    }
    let path = docs.join("performance.md");
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    written.push(path);
    Ok(written)
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "# Performance\n\n\
         Written by `{}`; [benchmarks.md](benchmarks.md) says what the tests do and how to run \
         them. Figures of one machine on one day: only the ratios within one run mean anything, \
         and those only as far as the spread allows.\n\n\
         - date: {}\n- machine: {} × {}, {} GiB, Linux {}; load average at the start {}\n\
         - congestion control in every namespace: {}\n\
         - {} rounds of {} s for each figure, systems alternating; shown are the median and half \
         the distance between the extremes\n\n| system | version |\n|---|---|\n",
        report.command,
        machine.date,
        machine.processors,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.load_average,
        machine.congestion_control,
        report.rounds,
        report.seconds,
    );
    for (system, found) in &report.systems {
        push(
            &mut text,
            format_args!("| {} | {} |\n", system.name(), found.version),
        );
    }
    for (system, reason) in &report.missing {
        push(
            &mut text,
            format_args!("| {} | not measured: {reason} |\n", system.name()),
        );
    }
    text.push('\n');
    text
}

fn targets(text: &mut String, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    text.push_str(
        "## Targets\n\n| | test | figure | against | wanted | measured |\n|---|---|---|---|---:|---:|\n",
    );
    for verdict in verdicts {
        push(
            text,
            format_args!(
                "| {} | {} | {} | {} | {} {unit} | {} {unit} |\n",
                if verdict.reached() {
                    "reached"
                } else {
                    "**missed**"
                },
                verdict.what,
                verdict.figure,
                verdict.against,
                bound(verdict.wanted),
                number(verdict.measured),
                unit = verdict.unit,
            ),
        );
    }
    text.push('\n');
}

fn figures(
    text: &mut String,
    report: &Report,
    test: &str,
    title: &str,
    client: Client,
    systems: &[System],
) {
    let cells = report.results.of(test, client, systems);
    if cells.is_empty() {
        return;
    }
    let columns = report.results.columns(test, client);
    push(
        text,
        format_args!("\n### {title}, {}\n\n| system |", client.described()),
    );
    for (name, unit) in &columns {
        let comma = if unit.is_empty() { "" } else { ", " };
        push(text, format_args!(" {name}{comma}{unit} |"));
    }
    text.push_str(" kube-tun-proxy / it | remark |\n|---|");
    text.push_str(&"---:|".repeat(columns.len() + 1));
    text.push_str("---|\n");
    for cell in cells {
        push(text, format_args!("| {} |", cell.system.name()));
        for (name, _) in &columns {
            let shown = cell.figure(name).map(shown).unwrap_or_default();
            push(text, format_args!(" {shown} |"));
        }
        let ratio = report.results.ours_to(cell).map(number).unwrap_or_default();
        let remark = cell
            .remarked()
            .unwrap_or_default()
            .replace(['|', '\n'], " ");
        push(text, format_args!(" {ratio} | {remark} |\n"));
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = text.write_fmt(what);
}
