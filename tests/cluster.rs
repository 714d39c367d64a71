//! Whole clusters in network namespaces. `cargo test --test cluster -- FILTER`.
//!
//! Each file under `tests/cluster/` has a `trials()`; its trials run side by
//! side, each with clusters of its own. A machine that forbids namespaces or
//! `/dev/net/tun` fails every one of them, with what to type.
//!
//! Where kube-proxy's own tables and end-to-end tests are replayed (`src/…` are unit
//! tests, the rest trials):
//!
//! | kubernetes | here |
//! | --- | --- |
//! | TestCategorizeEndpoints | `src/service/topology`, `kube_topology` |
//! | TestInternalExternalMasquerade | `src/ipvs/table/tests/packet_flows`, `kube_flows::thirty_…` |
//! | TestNoEndpointsReject | `src/ipvs/table/tests/policies`, `kube_flows::where_nobody_is_local`, `refusals` |
//! | TestLoadBalancer, source ranges | `src/ipvs/table/tests/services`, `kube_ranges` |
//! | TestTerminatingEndpointsTrafficPolicy… | `src/ipvs/table/tests/policies`, `kube_endpoints::the_last_…` |
//! | TestExternal…, TestInternalTrafficPolicy… | `src/ipvs/table/tests/policies`, `kube_flows`, `kube_endpoints::the_external_policy_changes` |
//! | TestNodePorts, nodeport_addresses_test | `src/node_port/addresses`, `node_port::chosen_addresses_only` |
//! | TestHealthCheckNodePort…, healthcheck_test | `src/admin/health…`, `node_port::health_checks`, `kube_endpoints::the_last_local_…` |
//! | TestClusterIPGeneral, TestBadIPs, ingress IPs of mode Proxy, TestNoEndpointsMetric | `src/ipvs/table/tests/services` |
//! | TestOnServiceCIDRsChanged, service_cidrs.go | `src/app/routes/tests`, `kube::service_ranges_are_followed` |
//! | ipvs: affinity, schedulers, local lists | `src/ipvs/table/tests`, `kube_addresses`, `kube_flows::…_as_ipvs_has_…` |
//! | endpointslicecache_test | `src/service/slice_cache/tests` |
//! | endpointschangetracker_test, servicechangetracker_test | `src/service/index/tests/transitions`, `…/histories`, `…/properties` |
//! | conntrack/cleanup_test, conntrack.go | `src/ipvs/table/tests/services`, `kube_open_flows`, `kube_endpoints::one_udp_client_…` |
//! | node_test | `src/service/index/tests`, `kube_topology::the_zone_of_the_node_changes`, `kube::a_node_that_leaves_…` |
//! | service.go: up and down, recreated, types, ports, labels | `kube` |
//! | service.go: restarts of proxy and API server | `lifecycle::restarted_after_sigkill`, `takeover`, `kube::the_api_server_fails_…` |
//! | service.go: hairpin, affinity, unready, evicted | `kube_endpoints`, `kube_addresses` |
//! | networking.go: update, nodePort, large requests, hostNetwork, urls | `live`, `kube`, `udp`, `node_port`, `kube_endpoints::a_node_is_an_endpoint_itself`, `looking_in` |
//! | traffic_distribution.go | `kube_topology` |
//! | dual_stack.go | every trial that ends in `::ipv6` |
//! | loadbalancer.go: ranges, affinity, UDP, rolling updates | `kube_ranges`, `kube_addresses`, `kube_open_flows`, `kube::every_…pod_is_replaced_under_load` |
//! | kube_proxy.go: half-closed connections | `closing::half_closed_and_idle` |
//!
//! Not replayed: what concerns the API server alone, the client's address behind a
//! cluster IP or policy Local, SCTP, and the pipeline of netfilter rules.

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
#[path = "cluster/check_running.rs"]
mod check_running;
#[path = "cluster/closing.rs"]
mod closing;
#[path = "cluster/counted.rs"]
mod counted;
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
#[path = "cluster/kube_addresses.rs"]
mod kube_addresses;
#[path = "cluster/kube_endpoints.rs"]
mod kube_endpoints;
#[path = "cluster/kube_flows.rs"]
mod kube_flows;
#[path = "cluster/kube_open_flows.rs"]
mod kube_open_flows;
#[path = "cluster/kube_ranges.rs"]
mod kube_ranges;
#[path = "cluster/kube_stage.rs"]
mod kube_stage;
#[path = "cluster/kube_topology.rs"]
mod kube_topology;
mod kubeconfig;
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
#[path = "cluster/takeover_node_ports.rs"]
mod takeover_node_ports;
#[path = "cluster/takeover_pods.rs"]
mod takeover_pods;
#[path = "cluster/takeover_stage.rs"]
mod takeover_stage;
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
        check_running::trials(),
        closing::trials(),
        counted::trials(),
        demo::trials(),
        drain::trials(),
        failover::trials(),
        fallback::trials(),
        icmp::trials(),
        init::trials(),
        kube::trials(),
        kube_addresses::trials(),
        kube_endpoints::trials(),
        kube_flows::trials(),
        kube_open_flows::trials(),
        kube_ranges::trials(),
        kube_topology::trials(),
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
        takeover_node_ports::trials(),
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
