//! Load generators and the servers they talk to, each a process of its own.
//!
//! The harness starts itself once more with `load JOB`, in the namespace the
//! load is to come from; the [`Job`] is JSON, and so is the [`Outcome`] it prints.
//! A process of its own has descriptors of its own, and its CPU time is not the
//! harness's. It dies with the thread that started it (PR_SET_PDEATHSIG(2const)).

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::exit;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cpu::{CpuTime, cpu_time};

mod bulk;
mod connections;
mod connects;
mod datagrams;
mod hold;
mod requests;
mod server;
mod wire;

/// What a load process has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Be the real server until killed. Prints a line when it listens.
    Serve {
        /// Where to listen, over TCP and UDP.
        address: SocketAddr,
        /// What each response begins with.
        name: String,
    },
    /// Move as much as the way takes.
    Bulk {
        window: Window,
        to: SocketAddr,
        streams: usize,
        direction: Direction,
    },
    /// One request after the other on each of so many kept connections.
    Requests {
        window: Window,
        to: SocketAddr,
        connections: usize,
    },
    /// A new connection for each request, so many at a time.
    Connections {
        window: Window,
        to: SocketAddr,
        at_a_time: usize,
        closer: Closer,
    },
    /// Queries over UDP, so many at a time; each from a fresh socket unless kept.
    Datagrams {
        window: Window,
        to: SocketAddr,
        at_a_time: usize,
        kept: bool,
    },
    /// One connect after the other, over the services from `first` on.
    Connects {
        window: Window,
        first: SocketAddr,
        services: usize,
    },
    /// Hold idle connections until killed. Prints a line when all are made.
    Hold { to: SocketAddr, connections: usize },
}

impl Job {
    /// The window of a job that has one.
    fn window(&self) -> Option<&Window> {
        match self {
            Self::Serve { .. } | Self::Hold { .. } => None,
            Self::Bulk { window, .. }
            | Self::Requests { window, .. }
            | Self::Connections { window, .. }
            | Self::Datagrams { window, .. }
            | Self::Connects { window, .. } => Some(window),
        }
    }
}

/// Which way bytes flow, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// Who closes a connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Closer {
    Client,
    Server,
}

/// When and of whom to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Time under load before anything counts.
    pub(crate) warm_up: Duration,
    /// Time that counts.
    pub(crate) length: Duration,
    /// Processes whose CPU time is told besides that of the machine.
    pub(crate) processes: Vec<u32>,
}

/// What was seen within the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The true length of the window in seconds.
    pub(crate) seconds: f64,
    /// Bytes moved, requests answered or connections finished.
    pub(crate) count: u64,
    /// How long they took.
    pub(crate) micros: Quantiles,
    /// CPU seconds of the processes and of the machine.
    pub(crate) cpu: CpuTime,
    /// What failed, and how the first of it did.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Outcome {
    /// Takes note of something that failed.
    fn failed(&mut self, error: &io::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

/// A window that is being measured.
struct Measured {
    from: Instant,
    until: Instant,
    processes: Vec<u32>,
    cpu: CpuTime,
}

impl Window {
    /// Waits out the warm-up.
    fn warm(&self) {
        thread::sleep(self.warm_up);
    }

    /// The window begins.
    fn begin(&self) -> Result<Measured> {
        let cpu = cpu_time(&self.processes)?;
        let from = Instant::now();
        Ok(Measured {
            from,
            until: from + self.length,
            processes: self.processes.clone(),
            cpu,
        })
    }
}

impl Measured {
    /// The window is over; call it at once after it.
    fn end(self, outcome: &mut Outcome) -> Result<()> {
        outcome.seconds = self.from.elapsed().as_secs_f64();
        outcome.cpu = cpu_time(&self.processes)?.since(self.cpu);
        Ok(())
    }
}

/// Quantiles of latencies, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Quantiles {
    /// Of latencies in nanoseconds; zero of none.
    pub(crate) fn of(mut nanos: Vec<u32>) -> Self {
        nanos.sort_unstable();
        let at = |share: f64| {
            let index = (nanos.len() as f64 * share) as usize;
            let index = index.min(nanos.len().saturating_sub(1));
            nanos
                .get(index)
                .map_or(0.0, |&nanos| f64::from(nanos) / 1e3)
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// A latency as [`Quantiles::of`] takes it; at most 4.29 s.
fn nanos(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// One request on a connection that blocks; returns what the server calls itself.
pub(crate) fn ask_once(stream: TcpStream) -> Result<String> {
    requests::ask_once(stream)
}

/// The `load` subcommand.
pub(crate) fn main(job: &str) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    crate::limits::raise_open_files()?;
    let job: Job = serde_json::from_str(job).context("load: job")?;
    if let Some(window) = job.window() {
        watch_over(window);
    }
    let outcome = match job {
        Job::Serve { address, name } => return server::serve(address, &name),
        Job::Hold { to, connections } => return hold::run(to, connections),
        Job::Bulk {
            window,
            to,
            streams,
            direction,
        } => bulk::run(&window, to, streams, direction),
        Job::Requests {
            window,
            to,
            connections,
        } => requests::run(&window, to, connections),
        Job::Connections {
            window,
            to,
            at_a_time,
            closer,
        } => connections::run(&window, to, at_a_time, closer),
        Job::Datagrams {
            window,
            to,
            at_a_time,
            kept,
        } => datagrams::run(&window, to, at_a_time, kept),
        Job::Connects {
            window,
            first,
            services,
        } => connects::run(&window, first, services),
    }?;
    let text = serde_json::to_string(&outcome)?;
    writeln!(io::stdout(), "{text}")?;
    // Threads may still sit in a system call; nobody waits for them.
    exit(0);
}

/// Ends the process when a system that does not answer holds it up.
fn watch_over(window: &Window) {
    /// Beyond the time it should take.
    const GRACE: Duration = Duration::from_secs(10);
    let limit = window.warm_up + window.length + GRACE;
    thread::spawn(move || {
        thread::sleep(limit);
        // With nobody to read it the exit status still tells.
        let _ = writeln!(io::stderr(), "no end within {} s", limit.as_secs());
        exit(1);
    });
}
