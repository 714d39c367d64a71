//! Whole clusters in network namespaces. `cargo test --test cluster -- FILTER`.
//!
//! Each file under `tests/cluster/` has a `trials()`; its trials run side by
//! side, each with clusters of its own. A machine that forbids namespaces or
//! `/dev/net/tun` fails every one of them, with what to type.

use std::io::{self, Write};
use std::process::ExitCode;

use kube_tun_proxy::lab;
use libtest_mimic::{Arguments, Trial};

#[expect(dead_code, reason = "the trials need a part of what it can do")]
mod api_server;
#[path = "cluster/capture.rs"]
mod capture;
#[path = "cluster/check.rs"]
mod check;
#[path = "cluster/closing.rs"]
mod closing;
#[path = "cluster/demo.rs"]
mod demo;
#[path = "cluster/drain.rs"]
mod drain;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/fallback.rs"]
mod fallback;
#[path = "cluster/icmp.rs"]
mod icmp;
#[path = "cluster/init.rs"]
mod init;
#[path = "cluster/kernel.rs"]
mod kernel;
#[path = "cluster/kube.rs"]
mod kube;
#[path = "cluster/kube_endpoints.rs"]
mod kube_endpoints;
#[path = "cluster/kube_flows.rs"]
mod kube_flows;
#[path = "cluster/kube_stage.rs"]
mod kube_stage;
#[path = "cluster/lab.rs"]
mod lab_itself;
#[path = "cluster/lab_servers.rs"]
mod lab_servers;
#[path = "cluster/lifecycle.rs"]
mod lifecycle;
#[path = "cluster/limits.rs"]
mod limits;
#[path = "cluster/live.rs"]
mod live;
#[path = "cluster/looking_in.rs"]
mod looking_in;
#[path = "cluster/manifests.rs"]
mod manifest_files;
#[path = "cluster/node_port.rs"]
mod node_port;
#[path = "cluster/node_port_exposure.rs"]
mod node_port_exposure;
#[path = "cluster/node_port_objects.rs"]
mod node_port_objects;
#[path = "cluster/node_port_stage.rs"]
mod node_port_stage;
#[path = "cluster/refusals.rs"]
mod refusals;
#[path = "cluster/reload.rs"]
mod reload;
#[path = "cluster/sockets.rs"]
mod sockets;
#[path = "cluster/start.rs"]
mod start;
#[path = "cluster/takeover.rs"]
mod takeover;
#[path = "cluster/takeover_kinds.rs"]
mod takeover_kinds;
#[path = "cluster/takeover_pods.rs"]
mod takeover_pods;
#[path = "cluster/tcp.rs"]
mod tcp;
#[path = "cluster/telling.rs"]
mod telling;
#[path = "cluster/transfer.rs"]
mod transfer;
#[path = "cluster/udp.rs"]
mod udp;
#[path = "cluster/workers.rs"]
mod workers;
#[path = "cluster/world.rs"]
mod world;

/// Trials that run at a time unless `--test-threads` says otherwise: more would
/// only wait for each other's processors.
const TRIALS_AT_A_TIME: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TRIALS_AT_A_TIME);
    let trials: Vec<Trial> = [
        capture::trials(),
        check::trials(),
        closing::trials(),
        demo::trials(),
        drain::trials(),
        failover::trials(),
        fallback::trials(),
        icmp::trials(),
        init::trials(),
        kube::trials(),
        kube_endpoints::trials(),
        kube_flows::trials(),
        lab_itself::trials(),
        lab_servers::trials(),
        lifecycle::trials(),
        limits::trials(),
        live::trials(),
        looking_in::trials(),
        manifest_files::trials(),
        node_port::trials(),
        node_port_exposure::trials(),
        refusals::trials(),
        reload::trials(),
        start::trials(),
        takeover::trials(),
        takeover_kinds::trials(),
        takeover_pods::trials(),
        tcp::trials(),
        telling::trials(),
        transfer::trials(),
        udp::trials(),
        workers::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let driver = init::Driver::for_everybody();
    if !arguments.list
        && let Err(error) = lab::enter().and_then(|()| {
            driver.put_in_place();
            lab::require_tun()
        })
    {
        let mend = error
            .mend()
            .map(|mend| format!("\nmend: {mend}"))
            .unwrap_or_default();
        // With nobody to read it the exit status still tells.
        let _ = writeln!(io::stderr(), "{error}{mend}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(driver);
    conclusion.exit_code()
}
