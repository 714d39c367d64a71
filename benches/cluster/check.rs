//! `--check-load`: the load generators held against iperf3 and wrk, without any
//! proxy, so that it is known what they can do themselves.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube_tun_proxy::lab::{Cluster, Namespace};

use crate::args::Args;
use crate::bench::Times;
use crate::limits::raise_open_files;
use crate::load::{Closer, Direction, Job, Window};
use crate::machine::Machine;
use crate::process::{Process, load};
use crate::results::Series;
use crate::systems::{NODE, PORT, SERVER, congestion_control, plan, serve};
use crate::table::shown;

/// Port of iperf3's server.
const IPERF_PORT: u16 = 5201;

/// How long iperf3's server may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Connections of wrk and of ours.
const CONNECTIONS: usize = 50;

/// What both are asked to do.
#[derive(Clone, Copy)]
enum Task {
    Bulk(Direction, usize),
    Kept,
    Closing,
}

const TASKS: [(&str, &str, Task); 6] = [
    (
        "bulk up, 1 stream, Gbit/s",
        "iperf3",
        Task::Bulk(Direction::Up, 1),
    ),
    (
        "bulk down, 1 stream, Gbit/s",
        "iperf3",
        Task::Bulk(Direction::Down, 1),
    ),
    (
        "bulk up, 8 streams, Gbit/s",
        "iperf3",
        Task::Bulk(Direction::Up, 8),
    ),
    (
        "bulk down, 8 streams, Gbit/s",
        "iperf3",
        Task::Bulk(Direction::Down, 8),
    ),
    ("50 kept connections, k requests/s", "wrk", Task::Kept),
    ("server closes, k connections/s", "wrk", Task::Closing),
];

/// Runs both in turn and prints what each saw.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    let congestion_control = congestion_control()?;
    let machine = Machine::look(congestion_control, raise_open_files()?);
    writeln!(out, "{machine}\n\nnode to pod, no proxy:")?;
    let cluster = plan(congestion_control).build()?;
    let _server = serve(&cluster, SERVER)?;
    let node = cluster.node(NODE).namespace();
    for (name, tool, task) in TASKS {
        let (mut ours, mut theirs) = (series(), series());
        for _ in 0..args.rounds() {
            ours.add(own(&cluster, node, task, args.times())?);
            let seconds = args.times().length.as_secs().max(1);
            theirs.add(match task {
                Task::Bulk(direction, streams) => iperf3(&cluster, direction, streams, seconds)?,
                Task::Kept => wrk(&cluster, &[], seconds)?,
                Task::Closing => wrk(&cluster, &["-H", "Connection: close"], seconds)?,
            });
        }
        let (ours, theirs) = (shown(&ours), shown(&theirs));
        writeln!(out, "  {name:<36} ours {ours:>12}   {tool:<6} {theirs:>12}")?;
        out.flush()?;
    }
    Ok(())
}

fn series() -> Series {
    Series::new("rate", "", true)
}

fn target(cluster: &Cluster) -> SocketAddr {
    SocketAddr::new(cluster.pod(SERVER).address().into(), PORT)
}

fn own(cluster: &Cluster, node: &Namespace, task: Task, times: Times) -> Result<f64> {
    let to = target(cluster);
    let window = Window {
        warm_up: times.warm_up,
        length: times.length,
        processes: Vec::new(),
    };
    let (job, unit) = match task {
        Task::Bulk(direction, streams) => {
            let job = Job::Bulk {
                window,
                to,
                streams,
                direction,
            };
            (job, 8.0 / 1e9)
        }
        Task::Kept => {
            let connections = CONNECTIONS;
            let job = Job::Requests {
                window,
                to,
                connections,
            };
            (job, 1e-3)
        }
        Task::Closing => {
            let job = Job::Connections {
                window,
                to,
                at_a_time: CONNECTIONS,
                closer: Closer::Server,
            };
            (job, 1e-3)
        }
    };
    let outcome = load(node, &job)?;
    Ok(outcome.count as f64 / outcome.seconds * unit)
}

fn iperf3(cluster: &Cluster, direction: Direction, streams: usize, seconds: u64) -> Result<f64> {
    let port = IPERF_PORT.to_string();
    let pod = cluster.pod(SERVER);
    let mut server = Process::start(
        pod.namespace(),
        "iperf3",
        ["-s", "-1", "--forceflush", "-p", &port],
    )?;
    let deadline = Instant::now() + READY_WITHIN;
    while !server.log().contains("listening") {
        if server.has_ended() || Instant::now() > deadline {
            bail!("iperf3 does not listen: {}", server.log());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let address = pod.address().to_string();
    let (seconds, streams) = (seconds.to_string(), streams.to_string());
    let mut arguments = vec![
        "-c", &address, "-p", &port, "-t", &seconds, "-P", &streams, "-J",
    ];
    if direction == Direction::Down {
        arguments.push("-R");
    }
    let text = output(cluster, "iperf3", &arguments)?;
    let json: serde_json::Value = serde_json::from_str(&text).context("iperf3 -J")?;
    let rate = json.pointer("/end/sum_received/bits_per_second");
    Ok(rate
        .and_then(serde_json::Value::as_f64)
        .context("iperf3 gave no rate")?
        / 1e9)
}

fn wrk(cluster: &Cluster, more: &[&str], seconds: u64) -> Result<f64> {
    let url = format!("http://{}/", target(cluster));
    let (seconds, connections) = (format!("{seconds}s"), CONNECTIONS.to_string());
    let mut arguments = vec!["-t1", "-c", &connections, "-d", &seconds, &url];
    arguments.extend(more);
    let text = output(cluster, "wrk", &arguments)?;
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    let rate: f64 = rate.context("wrk gave no rate")?.trim().parse()?;
    Ok(rate / 1e3)
}

fn output(cluster: &Cluster, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = cluster.node(NODE).namespace().command(program);
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program} (apt-get install {program})"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
