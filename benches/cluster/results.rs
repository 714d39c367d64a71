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

    /// The cells of a test for these systems, in their order.
    pub(crate) fn of(&self, test: &str, client: Client, systems: &[System]) -> Vec<&Cell> {
        let cell = |&system| self.get(test, system, client);
        systems.iter().filter_map(cell).collect()
    }

    /// Names and units of a test's figures.
    pub(crate) fn columns(&self, test: &str, client: Client) -> Vec<(&'static str, &'static str)> {
        let cells = self.cells.iter();
        let mine = cells.filter(|cell| cell.test == test && cell.client == client);
        let all = mine.map(|cell| &cell.series);
        let most = all.max_by_key(|series| series.len());
        most.map(|series| series.iter().map(|s| (s.name, s.unit)).collect())
            .unwrap_or_default()
    }

    /// The first figure of this proxy, as a multiple of this cell's.
    pub(crate) fn ours_to(&self, cell: &Cell) -> Option<f64> {
        let first = |cell: &Cell| cell.series.first().map(|series| series.median);
        let ours = self.get(cell.test, System::KubeTunProxy, cell.client);
        let its = first(cell).filter(|&its| its > 0.0)?;
        Some(ours.and_then(first)? / its)
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
                let Figure {
                    name,
                    unit,
                    more_is_better,
                    ..
                } = *figure;
                self.series.push(Series::new(name, unit, more_is_better));
                self.series.len() - 1
            });
            self.series[at].add(figure.value);
        }
    }

    /// What went wrong, or why it was not tried.
    pub(crate) fn remarked(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.failed_runs > 0 {
            parts.push(format!("{} runs failed", self.failed_runs));
        }
        if self.errors > 0 {
            parts.push(format!("{} failed", self.errors));
        }
        parts.extend(self.remark.clone());
        (!parts.is_empty()).then(|| parts.join(": "))
    }

    /// A figure by name.
    pub(crate) fn figure(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }
}

impl Series {
    /// No round yet.
    pub(crate) fn new(name: &'static str, unit: &'static str, more_is_better: bool) -> Self {
        Self {
            name,
            unit,
            more_is_better,
            median: 0.0,
            least: 0.0,
            most: 0.0,
            rounds: Vec::new(),
        }
    }

    /// Adds what one round gave.
    pub(crate) fn add(&mut self, value: f64) {
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
