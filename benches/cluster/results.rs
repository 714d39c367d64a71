//! What was measured, over all rounds.

use serde::Serialize;

use crate::systems::{Client, System};
use crate::trial::Figure;

/// Everything measured so far.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) cells: Vec<Cell>,
}

/// One test on one system from one client.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) test: &'static str,
    pub(crate) system: System,
    pub(crate) client: Client,
    pub(crate) series: Vec<Series>,
    /// Operations that failed, in all rounds.
    pub(crate) errors: u64,
    /// Runs that gave nothing.
    pub(crate) failed_runs: usize,
    /// The first failure, of an operation or of a whole run, or why it was not
    /// tried.
    pub(crate) remark: Option<String>,
}

/// A figure over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Results {
    /// The cell of these three, made when it is not there.
    pub(crate) fn cell(&mut self, test: &'static str, system: System, client: Client) -> &mut Cell {
        let same = |cell: &Cell| (cell.test, cell.system, cell.client) == (test, system, client);
        let at = self.cells.iter().position(same).unwrap_or_else(|| {
            self.cells.push(Cell {
                test,
                system,
                client,
                series: Vec::new(),
                errors: 0,
                failed_runs: 0,
                remark: None,
            });
            self.cells.len() - 1
        });
        &mut self.cells[at]
    }

    /// A cell that is there.
    pub(crate) fn get(&self, test: &str, system: System, client: Client) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|cell| (cell.test, cell.system, cell.client) == (test, system, client))
    }
}

impl Cell {
    /// Adds what one round gave.
    pub(crate) fn add(&mut self, figures: &[Figure]) {
        for figure in figures {
            let known = self.series.iter().position(|s| s.name == figure.name);
            let at = known.unwrap_or_else(|| {
                self.series.push(Series {
                    name: figure.name,
                    unit: figure.unit,
                    more_is_better: figure.more_is_better,
                    median: 0.0,
                    least: 0.0,
                    most: 0.0,
                    rounds: Vec::new(),
                });
                self.series.len() - 1
            });
            self.series[at].add(figure.value);
        }
    }

    /// A figure by name.
    pub(crate) fn figure(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }
}

impl Series {
    fn add(&mut self, value: f64) {
        self.rounds.push(value);
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (half, count) = (sorted.len() / 2, sorted.len());
        self.least = sorted[0];
        self.most = sorted[count - 1];
        self.median = if count % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
    }

    /// Half the distance between the extremes, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            (self.most - self.least) / 2.0 / self.median
        }
    }
}
