use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;

use super::*;
use crate::ipvs::{Protocol, VirtualAddress};

fn flow(service: &str, client: &str, real_server: Option<&str>, state: &'static str) -> FlowView {
    let (namespace, rest) = service.split_once('/').unwrap();
    let (name, port) = rest.split_once(':').unwrap();
    FlowView {
        protocol: Protocol::Tcp,
        client: client.parse().unwrap(),
        virtual_server: VirtualAddress {
            ip: [10, 0, 0, 3].into(),
            port: 443,
            protocol: Protocol::Tcp,
        },
        service: Arc::new(ServicePortName {
            namespace: namespace.into(),
            name: name.into(),
            port: port.into(),
            protocol: Protocol::Tcp,
        }),
        real_server: real_server.map(|address| address.parse().unwrap()),
        source: None,
        state,
        expires: None,
        age: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 0,
    }
}

fn some() -> Vec<FlowView> {
    let with = |bytes, age, flow| FlowView {
        bytes_in: bytes,
        age: Duration::from_secs(age),
        ..flow
    };
    vec![
        with(
            5,
            1,
            flow(
                "a/web:https",
                "10.1.15.9:1",
                Some("10.1.65.5:443"),
                "ESTABLISHED",
            ),
        ),
        with(9, 3, flow("a/web:http", "10.1.15.7:2", None, "SYN_RECV")),
        with(
            7,
            2,
            flow(
                "b/web:http",
                "[fd00::7]:3",
                Some("[fd01::5]:80"),
                "ESTABLISHED",
            ),
        ),
    ]
}

fn clients(filter: &FlowFilter) -> Vec<String> {
    let mut flows = some();
    filter.apply(&mut flows);
    flows.iter().map(|flow| flow.client.to_string()).collect()
}

fn parsed(path: &str) -> FlowFilter {
    let uri: axum::http::Uri = path.parse().unwrap();
    Query::try_from_uri(&uri).unwrap().0
}

#[test]
fn each_filter_leaves_what_fits() {
    let all = ["10.1.15.7:2", "10.1.15.9:1", "[fd00::7]:3"];
    assert_eq!(clients(&FlowFilter::default()), all);
    for (query, expected) in [
        ("service=a/web", &all[..2]),
        ("service=a/web:https", &all[1..2]),
        ("service=a/we", &[]),
        ("client=10.1.15.7", &all[..1]),
        ("client=10.1.15.7:3", &[]),
        ("client=[fd00::7]:3", &all[2..]),
        ("client=fd00::7", &all[2..]),
        ("realServer=10.1.65.5", &all[1..2]),
        ("realServer=10.1.65.5:443", &all[1..2]),
        ("state=established", &all[1..]),
        ("service=a/web&state=SYN_RECV", &all[..1]),
        ("limit=2", &all[..2]),
    ] {
        let filter = parsed(&format!("{FLOWS}?{query}"));
        assert_eq!(clients(&filter), expected, "{query}");
    }
}

#[test]
fn orders() {
    for (sort, first) in [
        (FlowSort::Client, "10.1.15.7:2"),
        (FlowSort::Service, "10.1.15.7:2"),
        (FlowSort::RealServer, "10.1.15.7:2"),
        (FlowSort::State, "10.1.15.9:1"),
        (FlowSort::Bytes, "10.1.15.7:2"),
        (FlowSort::Age, "10.1.15.7:2"),
    ] {
        let filter = FlowFilter {
            sort,
            ..FlowFilter::default()
        };
        assert_eq!(clients(&filter)[0], first, "{sort:?}");
        assert_eq!(parsed(&filter.path()), filter);
    }
    let mut flows = some();
    let limited = parsed("/v1/flows?limit=1&sort=bytes");
    assert_eq!(limited.apply(&mut flows), 3);
    assert_eq!(flows.len(), 1);
}

#[test]
fn a_question_arrives_as_it_was_asked() {
    let filter = FlowFilter {
        service: Some("kube-system/kube-dns:".parse().unwrap()),
        client: Some("[fd00::7]:48080".parse().unwrap()),
        real_server: Some("10.1.65.5".parse().unwrap()),
        state: Some("a b&c=d%".to_owned()),
        sort: FlowSort::Age,
        limit: Some(500),
    };
    assert_eq!(parsed(&filter.path()), filter);
    assert_eq!(FlowFilter::default().path(), FLOWS);
}

#[test]
fn nonsense_is_refused() {
    for text in ["", "web", "/web", "a/", "a/b/c"] {
        assert!(text.parse::<ServiceFilter>().is_err(), "{text}");
    }
    for text in [
        "",
        "10.1.15",
        "10.1.15.7:",
        "fd00::7:x",
        "[10.1.15.7",
        "web",
    ] {
        assert!(text.parse::<AddressFilter>().is_err(), "{text}");
    }
    for query in ["sort=size", "limit=-1", "clients=1.2.3.4", "client=x"] {
        let uri: axum::http::Uri = format!("{FLOWS}?{query}").parse().unwrap();
        assert!(Query::<FlowFilter>::try_from_uri(&uri).is_err(), "{query}");
    }
}
