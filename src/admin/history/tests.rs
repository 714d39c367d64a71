use super::*;
use crate::ipvs::{Exposure, ForwardMethod, Protocol, RealServerView, SchedulerKind};

fn name(name: &str) -> Arc<ServicePortName> {
    Arc::new(ServicePortName {
        namespace: "default".into(),
        name: name.into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
    })
}

fn address(last: u8) -> VirtualAddress {
    VirtualAddress {
        ip: [10, 0, 0, last].into(),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

/// A virtual server that has opened so many flows of 10 bytes up and 100 down.
fn view(last: u8, service: &str, opened: u64) -> VirtualServerView {
    VirtualServerView {
        address: address(last),
        service: name(service),
        exposure: Exposure::ClusterIp,
        scheduler: SchedulerKind::Rr,
        persistence: None,
        traffic: TrafficView {
            opened,
            failed: 0,
            bytes_in: opened * 10,
            bytes_out: opened * 100,
        },
        real_servers: vec![RealServerView {
            address: "10.1.65.5:80".parse().unwrap(),
            forward: ForwardMethod::Masq,
            weight: 1,
            active: 2,
            inactive: 1,
            connections: opened,
            failed: 0,
            bytes_in: opened * 10,
            bytes_out: opened * 100,
        }],
    }
}

fn opened(totals: &[ServiceTotal]) -> Vec<(Option<String>, u64)> {
    totals
        .iter()
        .map(|total| {
            let service = total.service.as_ref().map(|name| name.name.to_string());
            (service, total.traffic.opened)
        })
        .collect()
}

#[test]
fn rates_are_of_the_last_interval() {
    let recorder = Recorder::new(10);
    let start = Instant::now();
    recorder.sample(start, &[view(3, "web", 100)], Counters::default());
    assert_eq!(recorder.server(&address(3), true).rates, None);
    assert_eq!(recorder.whole().rates, None);

    let flows = Counters {
        flows: 7,
        ..Counters::default()
    };
    recorder.sample(start + 2 * INTERVAL / 2, &[view(3, "web", 140)], flows);
    let known = recorder.server(&address(3), true);
    let expected = Rates {
        new_flows_per_second: 20.0,
        bytes_to_real_server_per_second: 200.0,
        bytes_to_client_per_second: 2000.0,
    };
    assert_eq!(known.rates, Some(expected));
    assert_eq!(known.real_servers.values().collect::<Vec<_>>(), [&expected]);
    let history = known.history.unwrap();
    assert_eq!(history.new_flows_per_second, [20.0]);
    assert_eq!(history.flows, [3]);
    let whole = recorder.whole();
    assert_eq!(whole.rates, Some(expected));
    assert_eq!(whole.history.flows, [7]);
    assert!(recorder.server(&address(3), false).history.is_none());
}

#[test]
fn a_server_that_begins_anew_has_no_negative_rate() {
    let recorder = Recorder::new(10);
    let start = Instant::now();
    recorder.sample(start, &[view(3, "web", 100)], Counters::default());
    recorder.sample(start + INTERVAL, &[view(3, "web", 4)], Counters::default());
    let rates = recorder.server(&address(3), false).rates.unwrap();
    assert_eq!(rates.new_flows_per_second, 2.0);
    // Another Service has the address: nothing is known yet.
    recorder.sample(
        start + 2 * INTERVAL,
        &[view(3, "app", 90)],
        Counters::default(),
    );
    assert_eq!(
        recorder.server(&address(3), true),
        ServerRates {
            real_servers: HashMap::new(),
            rates: None,
            history: Some(History {
                interval_seconds: 2.0,
                ..History::default()
            }),
        }
    );
    recorder.sample(start + 3 * INTERVAL, &[], Counters::default());
    assert_eq!(recorder.server(&address(3), true), ServerRates::default());
}

#[test]
fn totals_never_go_back_while_a_service_is_there() {
    let recorder = Recorder::new(10);
    let told = recorder.totals(&[view(3, "web", 5), view(4, "web", 7)]);
    assert_eq!(opened(&told), [(Some("web".to_owned()), 12)]);
    assert_eq!((told[0].flows, told[0].real_servers), (6, 1));
    let told = recorder.totals(&[view(4, "web", 8)]);
    assert_eq!(opened(&told), [(Some("web".to_owned()), 13)]);
    assert_eq!(opened(&recorder.totals(&[])), []);
}

#[test]
fn beyond_the_limit_they_count_together() {
    let recorder = Recorder::new(2);
    let three = [view(3, "c", 1), view(4, "b", 2), view(5, "a", 4)];
    let own = |name: &str, count| (Some(name.to_owned()), count);
    let told = opened(&recorder.totals(&three));
    assert_eq!(told, [own("b", 2), own("c", 1), (None, 4)]);
    // Who has a place keeps it, and a free one is taken.
    let told = opened(&recorder.totals(&[view(4, "b", 3), view(5, "a", 5), view(6, "d", 1)]));
    assert_eq!(told, [own("a", 1), own("b", 3), (None, 5)]);

    let start = Instant::now();
    recorder.sample(start, &three, Counters::default());
    recorder.sample(start + INTERVAL, &three, Counters::default());
    let kept = |last| recorder.server(&address(last), true).history.is_some();
    assert_eq!([kept(3), kept(4), kept(5)], [true, true, false]);
}
