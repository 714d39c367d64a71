//! The tests, and what each measures.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::load::{Closer, Direction, Job, Outcome, Window};
use crate::process::load;
use crate::systems::{Client, Site};

/// Connections at a time where there are many.
const MANY: usize = 50;

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    /// Its name, as `--tests` takes it.
    pub(crate) name: &'static str,
    /// What a reader calls it.
    pub(crate) title: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bulk(Direction, usize),
    Requests(usize),
    Connections(Closer),
}

/// Every test, in the order they run.
pub(crate) const TRIALS: &[Trial] = &[
    trial(
        "bulk-up-1",
        "bulk up, 1 stream",
        Kind::Bulk(Direction::Up, 1),
    ),
    trial(
        "bulk-down-1",
        "bulk down, 1 stream",
        Kind::Bulk(Direction::Down, 1),
    ),
    trial(
        "bulk-up-8",
        "bulk up, 8 streams",
        Kind::Bulk(Direction::Up, 8),
    ),
    trial(
        "bulk-down-8",
        "bulk down, 8 streams",
        Kind::Bulk(Direction::Down, 8),
    ),
    trial(
        "requests-1",
        "requests on 1 kept connection",
        Kind::Requests(1),
    ),
    trial(
        "requests-50",
        "requests on 50 kept connections",
        Kind::Requests(MANY),
    ),
    trial(
        "connections-client",
        "a connection for each request, client closes",
        Kind::Connections(Closer::Client),
    ),
    trial(
        "connections-server",
        "a connection for each request, server closes",
        Kind::Connections(Closer::Server),
    ),
];

const fn trial(name: &'static str, title: &'static str, kind: Kind) -> Trial {
    Trial { name, title, kind }
}

/// A figure of one run. The first figure of a test is what it is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    pub(crate) value: f64,
}

impl Trial {
    /// Runs it once.
    pub(crate) fn run(
        &self,
        site: &Site,
        client: Client,
        times: Times,
    ) -> Result<(Vec<Figure>, Outcome)> {
        let namespace = site.client(client).map_err(anyhow::Error::msg)?;
        let window = Window {
            warm_up: times.warm_up,
            length: times.length,
            processes: site.processes(),
        };
        let to = site.target;
        let job = match self.kind {
            Kind::Bulk(direction, streams) => Job::Bulk {
                window,
                to,
                streams,
                direction,
            },
            Kind::Requests(connections) => Job::Requests {
                window,
                to,
                connections,
            },
            Kind::Connections(closer) => Job::Connections {
                window,
                to,
                at_a_time: MANY,
                closer,
            },
        };
        let outcome = load(&namespace, &job)?;
        Ok((self.figures(&outcome), outcome))
    }

    fn figures(&self, outcome: &Outcome) -> Vec<Figure> {
        let per_second = outcome.count as f64 / outcome.seconds;
        let mut figures = Vec::new();
        let mut add = |name, unit, more_is_better, value| {
            figures.push(Figure {
                name,
                unit,
                more_is_better,
                value,
            });
        };
        let gigabytes = outcome.count as f64 / 1e9;
        let thousands = outcome.count as f64 / 1e3;
        match self.kind {
            Kind::Bulk(..) => {
                add("rate", "Gbit/s", true, per_second * 8.0 / 1e9);
                add(
                    "proxy CPU",
                    "s/GB",
                    false,
                    outcome.cpu.processes / gigabytes,
                );
                add(
                    "machine CPU",
                    "s/GB",
                    false,
                    outcome.cpu.machine / gigabytes,
                );
            }
            Kind::Requests(_) | Kind::Connections(_) => {
                add("rate", "k/s", true, per_second / 1e3);
                for (name, quantile) in [("p50", "p50"), ("p99", "p99")] {
                    if let Some(&micros) = outcome.micros.get(quantile) {
                        add(name, "µs", false, micros);
                    }
                }
                add(
                    "proxy CPU",
                    "s/1000",
                    false,
                    outcome.cpu.processes / thousands,
                );
                add(
                    "machine CPU",
                    "s/1000",
                    false,
                    outcome.cpu.machine / thousands,
                );
            }
        }
        figures
    }
}

/// How long a run takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}
