//! Results as text, a block for each test and client.

use std::fmt::Write as _;

use crate::results::{Results, Series};
use crate::systems::{Client, System};
use crate::trial::Trial;

/// The block of one test: a line for each system, its figures with their spread,
/// and what kube-tun-proxy's first figure is as a multiple of its.
pub(crate) fn block(
    results: &Results,
    trial: &Trial,
    client: Client,
    systems: &[System],
) -> String {
    let from = match client {
        Client::Node => "client on the node",
        Client::Pod => "client in a pod",
    };
    let mut text = format!("\n{} · {from}\n", trial.title);
    let cells: Vec<_> = systems
        .iter()
        .filter_map(|&system| results.get(trial.name, system, client))
        .collect();
    let Some(columns) = cells
        .iter()
        .map(|cell| &cell.series)
        .max_by_key(|s| s.len())
    else {
        return String::new();
    };
    let ours = results
        .get(trial.name, System::KubeTunProxy, client)
        .and_then(|cell| cell.series.first())
        .map(|series| series.median);
    // A String takes everything.
    let _ = write!(text, "  {:<16}", "");
    for column in columns {
        let _ = write!(text, "{:>22}", format!("{} {}", column.name, column.unit));
    }
    let _ = writeln!(text, "{:>10}", "ours/it");
    for cell in cells {
        let _ = write!(text, "  {:<16}", cell.system.name());
        for column in columns {
            let shown = cell.figure(column.name).map(shown).unwrap_or_default();
            let _ = write!(text, "{shown:>22}");
        }
        let ratio = match (ours, cell.series.first()) {
            (Some(ours), Some(its)) if its.median > 0.0 => format!("{:.2}", ours / its.median),
            _ => String::new(),
        };
        let _ = write!(text, "{ratio:>10}");
        if cell.errors > 0 {
            let _ = write!(text, "  {} failed:", cell.errors);
        }
        if cell.failed_runs > 0 {
            let _ = write!(text, "  {} runs failed:", cell.failed_runs);
        }
        if let Some(remark) = &cell.remark {
            let _ = write!(text, "  {remark}");
        }
        text.push('\n');
    }
    text
}

/// A median with its spread.
fn shown(series: &Series) -> String {
    format!("{} ±{:.0}%", number(series.median), series.spread() * 100.0)
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}
