//! What this proxy is to reach, as ratios within one run.

use crate::results::Results;
use crate::systems::{Client, System};
use crate::trial::TRIALS;

/// A target, held against what was measured.
pub(crate) struct Verdict {
    /// The test and where its client was.
    pub(crate) what: String,
    /// Which of its figures.
    pub(crate) figure: &'static str,
    /// What it is measured against; empty for an absolute target.
    pub(crate) against: &'static str,
    pub(crate) wanted: Wanted,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
}

/// The bound of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// A target of the list below.
struct Target {
    tests: &'static [&'static str],
    clients: &'static [Client],
    figure: &'static str,
    against: Against,
    wanted: Wanted,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Against {
    /// The figure itself.
    Nothing,
    /// As a multiple of this system's.
    Times(System),
    /// As a multiple of the best userspace stack's.
    TimesBestStack,
    /// The difference to this system's.
    Above(System),
}

/// Userspace TCP stacks that take the packets of others.
const STACKS: [System; 4] = [
    System::Ipstack,
    System::NetstackForward,
    System::NetstackOffload,
    System::Pasta,
];

const BOTH: &[Client] = &[Client::Node, Client::Pod];
const BULK: &[&str] = &["bulk-up-1", "bulk-down-1"];
const CONNECTIONS: &[&str] = &["connections-client", "connections-server"];
const REQUESTS: &[&str] = &["requests-50"];
const DNS: &[&str] = &["dns-new", "dns-kept"];

const NAT: Against = Against::Times(System::KernelNat);
const HAPROXY: Against = Against::Times(System::Haproxy);

const TARGETS: &[Target] = &[
    rate(BULK, &[Client::Node], NAT, 0.9),
    rate(BULK, &[Client::Pod], NAT, 0.85),
    rate(BULK, BOTH, HAPROXY, 1.5),
    rate(BULK, BOTH, Against::TimesBestStack, 3.0),
    rate(REQUESTS, BOTH, NAT, 0.8),
    rate(REQUESTS, BOTH, HAPROXY, 1.25),
    rate(REQUESTS, BOTH, Against::TimesBestStack, 1.3),
    rate(CONNECTIONS, BOTH, NAT, 1.0),
    rate(CONNECTIONS, BOTH, HAPROXY, 1.0),
    rate(CONNECTIONS, BOTH, Against::TimesBestStack, 3.0),
    Target {
        tests: &["requests-1"],
        clients: BOTH,
        figure: "p50",
        against: Against::Above(System::KernelNat),
        wanted: Wanted::AtMost(30.0),
        unit: "µs",
    },
    rate(DNS, BOTH, NAT, 0.6),
    itself(
        "services",
        BOTH,
        "p50, 10,000 to 10",
        Wanted::AtMost(1.05),
        "",
    ),
    itself("idle", BOTH, "with to without", Wanted::AtLeast(0.95), ""),
    itself("idle", BOTH, "memory", Wanted::AtMost(6.0), "KiB/flow"),
    itself(
        "full-load",
        &[Client::Node],
        "ready after",
        Wanted::AtMost(1.5),
        "s",
    ),
    itself(
        "full-load",
        &[Client::Node],
        "resident",
        Wanted::AtMost(150.0),
        "MiB",
    ),
    itself(
        "full-load",
        &[Client::Node],
        "change p99",
        Wanted::AtMost(10.0),
        "ms",
    ),
];

const fn rate(
    tests: &'static [&'static str],
    clients: &'static [Client],
    against: Against,
    at_least: f64,
) -> Target {
    Target {
        tests,
        clients,
        figure: "rate",
        against,
        wanted: Wanted::AtLeast(at_least),
        unit: "×",
    }
}

const fn itself(
    test: &'static str,
    clients: &'static [Client],
    figure: &'static str,
    wanted: Wanted,
    unit: &'static str,
) -> Target {
    Target {
        tests: match test.as_bytes() {
            b"services" => &["services"],
            b"idle" => &["idle"],
            _ => &["full-load"],
        },
        clients,
        figure,
        against: Against::Nothing,
        wanted,
        unit,
    }
}

impl Verdict {
    /// Whether the target is reached.
    pub(crate) fn reached(&self) -> bool {
        match self.wanted {
            Wanted::AtLeast(bound) => self.measured >= bound,
            Wanted::AtMost(bound) => self.measured <= bound,
        }
    }
}

/// All targets that can be judged by these results.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for target in TARGETS {
        for test in target.tests {
            for &client in target.clients {
                verdicts.extend(target.judge(results, test, client));
            }
        }
    }
    verdicts
}

impl Target {
    fn judge(&self, results: &Results, test: &str, client: Client) -> Option<Verdict> {
        let median = |system| {
            let series = results.get(test, system, client)?.figure(self.figure)?;
            Some(series.median)
        };
        let ours = median(System::KubeTunProxy)?;
        let (against, measured) = match self.against {
            Against::Nothing => ("", ours),
            Against::Times(system) => (system.name(), ours / median(system)?),
            Against::Above(system) => (system.name(), ours - median(system)?),
            Against::TimesBestStack => {
                let rates = STACKS
                    .iter()
                    .filter_map(|&system| Some((median(system)?, system)));
                let (best, system) = rates.max_by(|a, b| a.0.total_cmp(&b.0))?;
                (system.name(), ours / best)
            }
        };
        let trial = TRIALS.iter().find(|trial| trial.name == test)?;
        Some(Verdict {
            what: format!("{}, {}", trial.title, client.described()),
            figure: self.figure,
            against,
            wanted: self.wanted,
            measured,
            unit: self.unit,
        })
    }
}
