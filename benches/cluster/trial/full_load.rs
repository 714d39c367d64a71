//! 10,000 services with 100,000 endpoints from JSON manifests: how long until
//! ready, how much memory, and how long from one changed EndpointSlice to the
//! first connection that goes where it says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube_tun_proxy::lab::manifests::Manifests;
use kube_tun_proxy::lab::{ProxyOptions, ProxyProcess, client::http_get};
use serde_json::Value;

use super::figures::Run;
use crate::bench::Bench;
use crate::cpu::resident;
use crate::load::Quantiles;
use crate::objects::{endpoint_slice, list, service};
use crate::systems::{
    NODE, PORT, SERVER, VIP, ask, kube_tun_proxy_itself::BINARY, plan, serve, vip,
};

const SERVICES: usize = 10_000;
const ENDPOINTS_EACH: usize = 10;

/// Slices in a file, as one would split them; the one that changes has its own.
const SLICES_PER_FILE: usize = 100;

/// Changes to time in a run, and in a quick one.
const CHANGES: usize = 200;
const FEW_CHANGES: usize = 20;

/// It has failed when it takes longer.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(bench: &Bench) -> Result<Run> {
    let cluster = plan(bench.congestion_control).build()?;
    let other = "pod-6";
    let _servers = [serve(&cluster, SERVER)?, serve(&cluster, other)?];
    let pods = [SERVER, other].map(|name| (name, IpAddr::from(cluster.pod(name).address())));
    let manifests = Manifests::new()?;
    write_all(&manifests)?;
    let change_to = |pod: IpAddr| {
        let slice = endpoint_slice("changing", &[pod], PORT);
        manifests.write("changing-slice.json", &slice.to_string())
    };
    change_to(pods[0].1)?;

    let node = cluster.node(NODE).namespace();
    let options = ProxyOptions::new(manifests.path(), &[cluster.service_cidr().into()]);
    let started = Instant::now();
    let proxy = ProxyProcess::spawn(node, Path::new(BINARY), &options)?;
    while !matches!(
        http_get(node, proxy.healthz(), "/readyz", LIMIT),
        Ok((200, _))
    ) {
        if proxy.status().is_some() || started.elapsed() > LIMIT {
            bail!("not ready; its log: {}", proxy.log());
        }
        thread::sleep(Duration::from_millis(1));
    }
    let ready = started.elapsed();
    let memory = resident(&[proxy.pid()])?;

    let target = SocketAddr::new(VIP.into(), PORT);
    let changes = if bench.quick { FEW_CHANGES } else { CHANGES };
    let mut latencies = Vec::with_capacity(changes);
    for change in 1..=changes {
        let (name, address) = pods[change % 2];
        let changed = Instant::now();
        change_to(address)?;
        while ask(node, target)? != name {
            if changed.elapsed() > LIMIT {
                bail!("change {change} has not taken effect");
            }
        }
        latencies.push(u32::try_from(changed.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
    let latencies = Quantiles::of(latencies);
    let mut run = Run::default();
    run.less("ready after", "s", ready.as_secs_f64());
    run.less("resident", "MiB", memory as f64 / f64::from(1 << 20));
    let after = resident(&[proxy.pid()])? as f64 / f64::from(1 << 20);
    run.less("after changes", "MiB", after);
    run.less("change p50", "ms", latencies.p50 / 1e3);
    run.less("change p99", "ms", latencies.p99 / 1e3);
    Ok(run)
}

/// All that does not change, and the Service of what does.
fn write_all(manifests: &Manifests) -> Result<()> {
    let name = |index: usize| format!("service-{index}");
    let services: Vec<Value> = (1..SERVICES)
        .map(|index| service(&name(index), vip(index), PORT))
        .chain([service("changing", vip(0), PORT)])
        .collect();
    manifests.write("services.json", &list(&services))?;
    let slices: Vec<Value> = (1..SERVICES)
        .map(|index| {
            let endpoints: Vec<IpAddr> = (0..ENDPOINTS_EACH)
                .map(|endpoint| nobody(index * ENDPOINTS_EACH + endpoint))
                .collect();
            endpoint_slice(&name(index), &endpoints, PORT)
        })
        .collect();
    for (number, slices) in slices.chunks(SLICES_PER_FILE).enumerate() {
        manifests.write(&format!("slices-{number:03}.json"), &list(slices))?;
    }
    Ok(())
}

/// An address in the pods' range, from 10.128.0.0 on, that nobody has.
fn nobody(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or_default();
    IpAddr::from(Ipv4Addr::from(0x0a80_0000 + number))
}
