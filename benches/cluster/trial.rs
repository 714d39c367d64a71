//! The tests, and what each measures.

use anyhow::Result;

use crate::bench::Bench;
use crate::load::{Closer, Direction, Job, Outcome};
use crate::process::load;
use crate::systems::{Client, Site, System};

mod figures;
mod full_load;
mod idle;
mod services;

pub(crate) use figures::{Figure, Run};

/// Connections or queries at a time where there are many.
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
    Datagrams { kept: bool },
    Services,
    Idle,
    FullLoad,
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
        "connections-server",
        "a new connection for each request, server closes",
        Kind::Connections(Closer::Server),
    ),
    // After it ports towards the real server are in TIME_WAIT for a minute.
    trial(
        "connections-client",
        "a new connection for each request, client closes",
        Kind::Connections(Closer::Client),
    ),
    trial(
        "dns-kept",
        "DNS-shaped queries from 50 kept sockets",
        Kind::Datagrams { kept: true },
    ),
    // After the one above: the flows that it leaves behind may fill a table.
    trial(
        "dns-new",
        "DNS-shaped queries, a new socket for each",
        Kind::Datagrams { kept: false },
    ),
    trial(
        "services",
        "connect with many services loaded",
        Kind::Services,
    ),
    trial(
        "idle",
        "requests on 50 connections beside many idle ones",
        Kind::Idle,
    ),
    trial(
        "full-load",
        "10,000 services with 100,000 endpoints from JSON manifests",
        Kind::FullLoad,
    ),
];

const fn trial(name: &'static str, title: &'static str, kind: Kind) -> Trial {
    Trial { name, title, kind }
}

impl Trial {
    /// Whether it is tried on a system at all; some tests are about a single one.
    pub(crate) fn concerns(&self, system: System, client: Client) -> bool {
        match self.kind {
            Kind::Services => matches!(system, System::KubeTunProxy | System::KernelNat),
            Kind::FullLoad => system == System::KubeTunProxy && client == Client::Node,
            Kind::Bulk(..)
            | Kind::Requests(_)
            | Kind::Connections(_)
            | Kind::Datagrams { .. }
            | Kind::Idle => true,
        }
    }

    /// Why this machine cannot do it with a system, if so.
    pub(crate) fn obstacle(&self, bench: &Bench, site: &Site, client: Client) -> Option<String> {
        if let Err(reason) = site.client(client) {
            return Some(reason.to_owned());
        }
        match self.kind {
            Kind::Datagrams { .. } => site.system.without_udp().map(str::to_owned),
            Kind::Idle => idle::obstacle(bench, site.system),
            Kind::Bulk(..)
            | Kind::Requests(_)
            | Kind::Connections(_)
            | Kind::Services
            | Kind::FullLoad => None,
        }
    }

    /// Runs it once.
    pub(crate) fn run(&self, bench: &Bench, site: &Site, client: Client) -> Result<Run> {
        let namespace = site.client(client).map_err(anyhow::Error::msg)?;
        let window = bench.window(site);
        let to = site.target;
        let (job, figures): (Job, fn(Outcome) -> Run) = match self.kind {
            Kind::Bulk(direction, streams) => {
                let job = Job::Bulk {
                    window,
                    to,
                    streams,
                    direction,
                };
                (job, Run::bulk)
            }
            Kind::Requests(connections) => {
                let job = Job::Requests {
                    window,
                    to,
                    connections,
                };
                (job, Run::operations)
            }
            Kind::Connections(closer) => {
                let job = Job::Connections {
                    window,
                    to,
                    at_a_time: MANY,
                    closer,
                };
                (job, Run::operations)
            }
            Kind::Datagrams { kept } => {
                let job = Job::Datagrams {
                    window,
                    to,
                    at_a_time: MANY,
                    kept,
                };
                (job, Run::operations)
            }
            Kind::Services => return services::run(bench, site.system, client),
            Kind::Idle => return idle::run(bench, site.system, client),
            Kind::FullLoad => return full_load::run(bench),
        };
        Ok(figures(load(&namespace, &job)?))
    }

    /// Builds what has to stand besides the sites that all tests share.
    pub(crate) fn prepare(&self, bench: &mut Bench) {
        bench.clear_larger();
        if self.kind == Kind::Services {
            services::prepare(bench);
        }
    }
}
