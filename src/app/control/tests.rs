use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::admin::health::Family;
use crate::admin::readiness::Readiness;
use crate::ipvs::{DropReason, SchedulerKind, Verdict};
use crate::service::endpoint::EndpointSlice;
use crate::service::object::{Event, Object};
use crate::service::service_port::Service;
use crate::service::{Protocol, VirtualAddress};

struct Fixture {
    control: Control,
    table: Arc<Table>,
    readiness: Readiness,
}

fn fixture() -> Fixture {
    let readiness = Readiness::new();
    let table = Arc::new(Table::new(SchedulerKind::Rr));
    let control = Control::new(
        Index::new("master"),
        Arc::clone(&table),
        Health::new(readiness.clone(), [Family::IPv4]),
        readiness.block("waiting for the first full state"),
    );
    Fixture {
        control,
        table,
        readiness,
    }
}

fn batch<const N: usize>(events: [Event; N], initial_complete: bool) -> Batch {
    Batch {
        events: events.into(),
        initial_complete,
        ..Batch::default()
    }
}

fn service(cluster_ip: &str) -> Event {
    let service = serde_json::from_value(json!({
        "metadata": {"namespace": "kube-system", "name": "metrics-server"},
        "spec": {
            "clusterIP": cluster_ip,
            "ports": [{"name": "https", "port": 443, "protocol": "TCP"}],
        },
    }))
    .unwrap();
    let service = Service::from_api(&service).unwrap();
    apply(Object::Service(Arc::new(service)))
}

fn slice(addresses: &[&str]) -> Event {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    let slice = serde_json::from_value(json!({
        "metadata": {
            "namespace": "kube-system",
            "name": "metrics-server-1",
            "labels": {"kubernetes.io/service-name": "metrics-server"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": 4443, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap();
    let slice = EndpointSlice::from_api(&slice).unwrap();
    apply(Object::EndpointSlice(Arc::new(slice)))
}

fn apply(object: Object) -> Event {
    let origin = None;
    Event::Apply { object, origin }
}

fn verdict(table: &Table) -> Verdict {
    let address = VirtualAddress {
        ip: [10, 0, 0, 3].into(),
        port: 443,
        protocol: Protocol::Tcp,
    };
    table.verdict(address, [10, 1, 15, 7].into(), || false)
}

#[test]
fn nothing_is_served_before_the_first_full_state() {
    let Fixture {
        mut control,
        table,
        readiness,
    } = fixture();
    assert!(control.program(batch([service("10.0.0.3")], false)));
    assert!(control.program(batch([slice(&["10.1.65.5"])], false)));
    assert!(matches!(
        verdict(&table),
        Verdict::Drop(DropReason::NotSynced)
    ));
    assert_eq!(readiness.blockers(), ["waiting for the first full state"]);

    // The batch that completes the state may itself change nothing.
    assert!(!control.program(batch([], true)));
    assert!(matches!(verdict(&table), Verdict::Forward(_)));
    assert!(readiness.blockers().is_empty());
}

#[test]
fn an_empty_cluster_is_a_full_state() {
    let Fixture {
        mut control,
        table,
        readiness,
    } = fixture();
    assert!(!control.program(batch([], true)));
    assert!(table.is_synced());
    assert!(readiness.blockers().is_empty());
}

#[test]
fn only_what_changes_is_told() {
    let Fixture {
        mut control, table, ..
    } = fixture();
    assert!(control.program(batch([service("10.0.0.3"), slice(&["10.1.65.5"])], true)));
    assert!(!control.program(batch([slice(&["10.1.65.5"])], false)));
    assert!(control.program(batch([slice(&["10.1.65.5", "10.1.37.9"])], false)));
    let servers = &table.snapshot()[0].real_servers;
    let servers: Vec<_> = servers
        .iter()
        .map(|real| real.address.to_string())
        .collect();
    assert_eq!(servers, ["10.1.37.9:4443", "10.1.65.5:4443"]);
}

#[test]
fn what_makes_no_sense_does_not_stop_the_rest() {
    let Fixture {
        mut control, table, ..
    } = fixture();
    assert!(!control.program(batch([service("no address")], true)));
    assert!(control.program(batch([service("10.0.0.3"), slice(&["10.1.65.5"])], false)));
    assert!(matches!(verdict(&table), Verdict::Forward(_)));
}

#[test]
fn changes_are_measured_from_when_they_happened() {
    let Fixture { mut control, .. } = fixture();
    let now = Timestamp::now();
    let ago = |seconds| now - jiff::SignedDuration::from_secs(seconds);
    control.program(Batch {
        triggers: vec![ago(100), ago(-100)],
        ..Batch::default()
    });
    let measured = control.latency().snapshot();
    assert_eq!(measured.count, 2);
    // A clock that is ahead of ours measures nothing, not less.
    assert_eq!(measured.cumulative.first(), Some(&1));
    assert!(measured.sum >= Duration::from_secs(100), "{measured:?}");
}
