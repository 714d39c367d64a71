//! The service table with 10,000 services of ten endpoints each.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use divan::{Bencher, black_box};
use kube_tun_proxy::ipvs::{
    Protocol, SchedulerKind, ServicePortName, Table, Verdict, VirtualAddress,
};
use kube_tun_proxy::service::{Change, VirtualServerSpec};

use crate::wire::{CLIENT, SERVICE};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

fn virtual_address(service: u32) -> VirtualAddress {
    VirtualAddress {
        ip: Ipv4Addr::from(u32::from(SERVICE.0) + service).into(),
        port: SERVICE.1,
        protocol: Protocol::Tcp,
    }
}

fn spec(service: u32, first_endpoint: u32) -> VirtualServerSpec {
    let endpoint = |number: u32| {
        let ip = Ipv4Addr::from(0x0a80_0000 + service * ENDPOINTS + first_endpoint + number);
        SocketAddr::new(ip.into(), SERVICE.1)
    };
    let real_servers: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    let name = Arc::new(ServicePortName {
        namespace: "bench".into(),
        name: format!("service-{service}").into(),
        port: "tcp".into(),
        protocol: Protocol::Tcp,
    });
    VirtualServerSpec {
        serving: real_servers.clone(),
        real_servers,
        ..VirtualServerSpec::new(virtual_address(service), name)
    }
}

fn full(scheduler: SchedulerKind) -> Table {
    let table = Table::new(scheduler);
    for service in 0..SERVICES {
        table.apply(&Change::Upsert(spec(service, 0)));
    }
    table.set_synced();
    table
}

/// A new flow: the verdict, and the real server.
#[divan::bench(args = [SchedulerKind::Rr, SchedulerKind::Lc, SchedulerKind::Sh, SchedulerKind::Mh], min_time = 0.1)]
fn verdict_and_schedule(bencher: Bencher<'_, '_>, scheduler: SchedulerKind) {
    let table = full(scheduler);
    let client: SocketAddr = CLIENT.into();
    let now = Instant::now();
    let mut service = 0;
    bencher.bench_local(|| {
        service = (service + 7_919) % SERVICES;
        let verdict = table.verdict(black_box(virtual_address(service)), client.ip(), || false);
        let Verdict::Forward(server) = verdict else {
            panic!("{verdict:?}");
        };
        server.schedule(client, now, &[])
    });
}

/// One changed service: one endpoint goes, another comes.
#[divan::bench(args = [SchedulerKind::Rr, SchedulerKind::Mh])]
fn update(bencher: Bencher<'_, '_>, scheduler: SchedulerKind) {
    let table = full(scheduler);
    let mut service = 0;
    let mut first_endpoint = 0;
    bencher
        .with_inputs(|| {
            service = (service + 7_919) % SERVICES;
            if service == 0 {
                first_endpoint = 1 - first_endpoint;
            }
            Change::Upsert(spec(service, 1 - first_endpoint))
        })
        .bench_local_refs(|change| table.apply(change));
}

/// All 10,000 of them.
#[divan::bench(sample_count = 20)]
fn full_load(bencher: Bencher<'_, '_>) {
    let specs: Vec<_> = (0..SERVICES)
        .map(|service| Change::Upsert(spec(service, 0)))
        .collect();
    bencher
        .with_inputs(|| Table::new(SchedulerKind::Rr))
        .bench_local_refs(|table| specs.iter().for_each(|change| table.apply(change)));
}
