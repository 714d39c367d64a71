//! Results as text for a terminal, a block for each test and client.

use std::fmt::Write as _;

use crate::results::{Results, Series};
use crate::systems::{Client, System};
use crate::targets::{Verdict, Wanted};
use crate::trial::Trial;

/// The block of one test: a line for each system, its figures with their spread,
/// and what kube-tun-proxy's first figure is as a multiple of its.
pub(crate) fn block(
    results: &Results,
    trial: &Trial,
    client: Client,
    systems: &[System],
) -> String {
    let cells = results.of(trial.name, client, systems);
    if cells.is_empty() {
        return String::new();
    }
    let columns = results.columns(trial.name, client);
    let mut text = format!("\n{} · {}\n", trial.title, client.described());
    // A String takes everything.
    let _ = write!(text, "  {:<16}", "");
    for (name, unit) in &columns {
        let _ = write!(text, "{:>22}", format!("{name} {unit}"));
    }
    let _ = writeln!(text, "{:>10}", "ours/it");
    for cell in cells {
        let _ = write!(text, "  {:<16}", cell.system.name());
        for (name, _) in &columns {
            let shown = cell.figure(name).map(shown).unwrap_or_default();
            let _ = write!(text, "{shown:>22}");
        }
        let ratio = results.ours_to(cell).map(number).unwrap_or_default();
        let _ = write!(text, "{ratio:>10}");
        if let Some(remark) = cell.remarked() {
            let _ = write!(text, "  {remark}");
        }
        text.push('\n');
    }
    text
}

/// The targets, a line each.
pub(crate) fn targets(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    if !verdicts.is_empty() {
        text.push_str("\ntargets, as medians of this run have them\n");
    }
    for verdict in verdicts {
        let sign = if verdict.reached() { "ok  " } else { "MISS" };
        let what = format!("{}: {}", verdict.what, verdict.figure);
        // A String takes everything.
        let _ = writeln!(
            text,
            "  {sign} {:>10} {:<8} wanted {:<8} {:<16} {what}",
            number(verdict.measured),
            verdict.unit,
            bound(verdict.wanted),
            verdict.against,
        );
    }
    text
}

/// A bound as one writes it.
pub(crate) fn bound(wanted: Wanted) -> String {
    match wanted {
        Wanted::AtLeast(bound) => format!("≥ {bound}"),
        Wanted::AtMost(bound) => format!("≤ {bound}"),
    }
}

/// A median with its spread, where there is one.
pub(crate) fn shown(series: &Series) -> String {
    let median = number(series.median);
    if series.rounds.len() > 1 {
        format!("{median} ±{:.0}%", series.spread() * 100.0)
    } else {
        median
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.995 => 2,
        v if v >= 0.0995 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}
