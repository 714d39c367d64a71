//! From what a load generator saw to the figures that are shown.

use serde::Serialize;

use crate::load::Outcome;

/// A figure of one run. The first figure of a test is what it is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    pub(crate) value: f64,
}

/// What one run gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) figures: Vec<Figure>,
    /// Operations that failed, and how the first of them did.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Run {
    /// Of bytes that were moved.
    pub(crate) fn bulk(outcome: Outcome) -> Self {
        let mut run = Self::default();
        let gigabytes = outcome.count as f64 / 1e9;
        run.more("rate", "Gbit/s", gigabytes * 8.0 / outcome.seconds);
        run.less("proxy CPU", "s/GB", outcome.cpu.processes / gigabytes);
        run.less("machine CPU", "s/GB", outcome.cpu.machine / gigabytes);
        run.note(outcome);
        run
    }

    /// Of requests, connections or queries.
    pub(crate) fn operations(outcome: Outcome) -> Self {
        let mut run = Self::default();
        let thousands = outcome.count as f64 / 1e3;
        run.more("rate", "k/s", thousands / outcome.seconds);
        run.less("p50", "µs", outcome.micros.p50);
        run.less("p99", "µs", outcome.micros.p99);
        run.less("proxy CPU", "s/1000", outcome.cpu.processes / thousands);
        run.less("machine CPU", "s/1000", outcome.cpu.machine / thousands);
        run.note(outcome);
        run
    }

    /// Adds a figure of which more is better.
    pub(crate) fn more(&mut self, name: &'static str, unit: &'static str, value: f64) {
        self.add(name, unit, true, value);
    }

    /// Adds a figure of which less is better.
    pub(crate) fn less(&mut self, name: &'static str, unit: &'static str, value: f64) {
        self.add(name, unit, false, value);
    }

    /// Takes note of what failed.
    pub(crate) fn note(&mut self, outcome: Outcome) {
        self.errors += outcome.errors;
        self.first_error = self.first_error.take().or(outcome.first_error);
    }

    fn add(&mut self, name: &'static str, unit: &'static str, more_is_better: bool, value: f64) {
        self.figures.push(Figure {
            name,
            unit,
            more_is_better,
            value,
        });
    }
}
