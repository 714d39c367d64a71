use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

mod file;

/// The configuration that `run` makes of these words, beside a source and a
/// network, or the whole text that a user would read.
fn configure(words: &[&str]) -> Result<Config, String> {
    let here = env!("CARGO_MANIFEST_DIR");
    let mut all = vec!["run", "--manifests", here];
    if !words.iter().any(|word| word.starts_with("--service-cidr")) {
        all.extend(["--service-cidr", "10.0.0.0/16"]);
    }
    all.extend(words);
    read(&all).map_err(|error| error.to_string())
}

fn read(words: &[&str]) -> Result<Config, Box<dyn Error>> {
    Ok(testing::settings(&words[1..])?.load()?.config)
}

fn ok(words: &[&str]) -> Config {
    configure(words).unwrap()
}

/// What the user is told names the flag, the value and the reason.
fn refused(words: &[&str], told: &[&str]) {
    let error = configure(words).unwrap_err();
    for part in told {
        assert!(error.contains(part), "{words:?}: {error:?} lacks {part:?}");
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = ok(&[]);
    assert_eq!(config.service_cidrs, ["10.0.0.0/16".parse().unwrap()]);
    assert_eq!(config.tun.name.as_str(), "svc-tun0");
    assert!(config.tun.addresses.is_empty());
    assert_eq!(config.flows.scheduler, SchedulerKind::Rr);
    assert!(config.tun.workers.get() >= 1);
    assert_eq!(config.flows.masquerade_source, MasqueradeSource::Auto);
    assert_eq!(config.flows.pod_traffic, PodTraffic::Auto);
    assert_eq!(config.flows.tcp_timeout, None);
    assert_eq!(config.flows.tcpfin_timeout, Duration::from_secs(120));
    assert_eq!(config.flows.udp_timeout, Duration::from_secs(300));
    assert_eq!(config.flows.connect_attempts, 3);
    assert_eq!(config.flows.connect_timeout, Duration::from_secs(1));
    assert!(config.flows.answer_ping);
    assert_eq!(config.flows.busy_poll, Duration::from_micros(50));
    assert_eq!(
        config.healthz_bind_address,
        Some(([0, 0, 0, 0], 10256).into())
    );
    assert_eq!(
        config.metrics_bind_address,
        Some(([127, 0, 0, 1], 10249).into())
    );
    assert_eq!(
        config.admin_socket.to_str(),
        Some("/run/kube-tun-proxy/admin.sock")
    );
    assert_eq!(config.log_format, LogFormat::Text);
    assert!((1..=65_536).contains(&config.flows.max_flows));
    assert_eq!(config.flows.max_memory, 1 << 30);
    assert_eq!(config.drain_timeout, Duration::from_secs(20));
}

#[test]
fn one_source_which_must_be_there() {
    let here = env!("CARGO_MANIFEST_DIR");
    let source = |words: &[&str]| read(&[&["run"], words].concat()).unwrap().source;
    assert!(matches!(
        source(&["--manifests", here]),
        Source::Manifests(path) if path.as_os_str() == here
    ));
    assert!(matches!(
        source(&[]),
        Source::Cluster {
            kubeconfig: None,
            master: None
        }
    ));
    let words = [
        "--kubeconfig",
        here,
        "--master",
        "https://192.168.0.10:6443",
    ];
    let Source::Cluster { kubeconfig, master } = source(&words) else {
        panic!("a kubeconfig is a cluster's");
    };
    assert_eq!(kubeconfig, Some(PathBuf::from(here)));
    assert_eq!(master.unwrap().to_string(), "https://192.168.0.10:6443/");

    for flag in ["--manifests", "--kubeconfig"] {
        let error = read(&["run", flag, "/no/such"]).unwrap_err().to_string();
        let expected = format!("{flag} '/no/such' cannot be read");
        assert!(error.contains(&expected), "{error}");
    }
    refused(&["--kubeconfig", here], &["--manifests", "--kubeconfig"]);
    refused(&["--master=https://host"], &["--manifests", "--master"]);
    for url in ["", "192.168.0.10:6443", "ftp://host", "/path", "https://"] {
        let error = read(&["run", "--master", url]).unwrap_err().to_string();
        assert!(error.contains("--master"), "{error}");
    }
}

#[test]
fn node_port_addresses() {
    assert!(ok(&[]).node_port_addresses.is_empty());
    let several = [
        "--nodeport-addresses",
        "192.168.0.0/24,primary,localhost,fd00::/8",
    ];
    let told: Vec<_> = ok(&several)
        .node_port_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["192.168.0.0/24", "primary", "localhost", "fd00::/8"]);
    refused(
        &["--nodeport-addresses", "primary,192.168.0.1"],
        &["--nodeport-addresses", "'192.168.0.1'", "nor primary"],
    );
}

#[test]
fn service_cidrs() {
    let none = read(&["run", "--manifests", "/"]).unwrap();
    assert!(none.service_cidrs.is_empty());

    let both = [
        "10.0.0.0/16".parse().unwrap(),
        "fd00:10::/108".parse().unwrap(),
    ];
    assert_eq!(
        ok(&["--service-cidr", "fd00:10::/108,10.0.0.0/16"]).service_cidrs,
        both
    );
    assert_eq!(
        ok(&["--service-cidr=10.0.0.0/16", "--service-cidr=fd00:10::/108"]).service_cidrs,
        both
    );

    for (value, reason) in [
        ("10.0.0.0", "is no network"),
        ("ten", "is no network"),
        ("10.0.0.0/33", "is no network"),
        ("", "is no network"),
        ("10.0.0.3/16", "it may be 10.0.0.0/16"),
        ("0.0.0.0/0", "every packet"),
        ("::/0", "every packet"),
        ("127.0.0.0/8", "is no range"),
        ("224.0.0.0/8", "is no range"),
        ("fe80::/64", "is no range"),
        ("10.0.0.0/16,10.0.4.0/24", "contains the other"),
        ("10.0.0.0/16,10.0.0.0/16", "contains the other"),
    ] {
        refused(
            &["--service-cidr", value],
            &["--service-cidr", value, reason],
        );
    }
}

#[test]
fn tun_names() {
    for name in ["svc-tun0", "t", "exactly15bytes_"] {
        assert_eq!(ok(&["--tun-name", name]).tun.name.as_str(), name);
    }
    for (name, reason) in [
        ("", "is empty"),
        ("sixteen_bytes_is", "has 16 bytes"),
        ("a/b", "contains '/'"),
        ("a b", "contains ' '"),
        ("a:1", "contains ':'"),
        ("tun%d", "contains '%'"),
        (".", "is reserved"),
        ("..", "is reserved"),
    ] {
        refused(&["--tun-name", name], &["--tun-name", name, reason]);
    }
}

#[test]
fn tun_addresses_one_of_each_family() {
    let config = ok(&["--tun-address", "10.9.0.1,fd09::1"]);
    let both: [IpAddr; 2] = ["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()];
    assert_eq!(config.tun.addresses, both);

    refused(
        &["--tun-address", "10.9.0.1", "--tun-address", "10.9.0.2"],
        &["--tun-address '10.9.0.1,10.9.0.2'", "at most one IPv4"],
    );
    for value in ["10.9.0.1/24", "nine", "0.0.0.0", "::1", "ff02::1"] {
        refused(&["--tun-address", value], &["--tun-address", value]);
    }
}

#[test]
fn workers_within_what_a_device_has() {
    assert_eq!(ok(&["--workers", "4"]).tun.workers.get(), 4);
    for value in ["0", "257", "many"] {
        refused(&["--workers", value], &["--workers", value]);
    }
    refused(&["--workers=-1"], &["--workers", "-1"]);
}

#[test]
fn masquerade_sources() {
    let source = |text| ok(&["--masquerade-source", text]).flows.masquerade_source;
    let (v4, v6) = (Ipv4Addr::new(10, 1, 15, 0), Ipv6Addr::LOCALHOST);
    let addresses = |v4, v6| MasqueradeSource::Address { v4, v6 };
    assert_eq!(source("auto"), MasqueradeSource::Auto);
    assert_eq!(source("10.1.15.0"), addresses(Some(v4), None));
    assert_eq!(source("::1"), addresses(None, Some(v6)));
    assert_eq!(source("::1,10.1.15.0"), addresses(Some(v4), Some(v6)));
    let MasqueradeSource::Interface(name) = source("flannel.1") else {
        panic!("flannel.1 is an interface")
    };
    assert_eq!(name.as_str(), "flannel.1");
    for (value, reason) in [
        ("", "is empty"),
        ("0.0.0.0", "can come from"),
        ("10.0.0.1,10.0.0.2", "two addresses of one family"),
        ("10.0.0.1,eth0", "\"eth0\", which is no IP address"),
        ("a/b", "contains '/'"),
        ("a_name_that_is_too_long", "has 23 bytes"),
    ] {
        refused(
            &["--masquerade-source", value],
            &["--masquerade-source", value, reason],
        );
    }
}

#[test]
fn networks_of_pods() {
    let none = ok(&[]);
    assert!(none.cluster_cidrs.is_empty());
    assert_eq!(none.detect_local_mode, DetectLocalMode::ClusterCidr);
    let nets = [
        "10.244.0.0/16".parse().unwrap(),
        "fd00:244::/56".parse().unwrap(),
    ];
    // As kube-proxy takes a pair, host bits and all.
    let given = ok(&["--cluster-cidr", "10.244.1.2/16, fd00:244::/56"]);
    assert_eq!(given.cluster_cidrs, nets);
    refused(
        &["--cluster-cidr", "pods"],
        &["--cluster-cidr", "pods", "is no network"],
    );
    for (text, needs_interface) in [
        ("NodeCIDR", false),
        ("BridgeInterface", true),
        ("InterfaceNamePrefix", true),
    ] {
        let mode = ok(&["--detect-local-mode", text]).detect_local_mode;
        assert_eq!(
            (mode.as_str(), mode.needs_interface()),
            (text, needs_interface)
        );
    }
    refused(
        &["--detect-local-mode", "Guess"],
        &["--detect-local-mode", "Guess"],
    );
}

#[test]
fn policies_as_in_ipvs_mode_are_asked_for() {
    assert!(!ok(&[]).flows.ipvs_compat);
    assert!(ok(&["--ipvs-compat"]).flows.ipvs_compat);
}

#[test]
fn schedulers() {
    let scheduler = |text| ok(&["--ipvs-scheduler", text]).flows.scheduler;
    assert_eq!(scheduler("wlc"), SchedulerKind::Wlc);
    assert_eq!(scheduler(""), SchedulerKind::Rr);
    refused(
        &["--ipvs-scheduler=best"],
        &["--ipvs-scheduler", "best", "one of rr"],
    );
}

#[test]
fn timeouts() {
    let config = ok(&[
        "--ipvs-tcp-timeout=15m",
        "--ipvs-tcpfin-timeout=0",
        "--ipvs-udp-timeout=0s",
        "--connect-timeout=1m30s",
        "--drain-timeout=0",
        "--busy-poll=0",
    ]);
    assert_eq!(config.flows.tcp_timeout, Some(Duration::from_secs(900)));
    assert_eq!(config.flows.tcpfin_timeout, Duration::from_secs(120));
    assert_eq!(config.flows.udp_timeout, Duration::from_secs(300));
    assert_eq!(config.flows.connect_timeout, Duration::from_secs(90));
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(config.flows.busy_poll, Duration::ZERO);

    for (word, reason) in [
        ("--ipvs-tcp-timeout=-1s", "is negative"),
        ("--ipvs-udp-timeout=5", "lacks a unit"),
        ("--ipvs-tcpfin-timeout=2 weeks", "unknown unit"),
        ("--connect-timeout=0", "longer than 0"),
        ("--drain-timeout=soon", "is no duration"),
        ("--busy-poll=2ms", "is more than 1ms"),
    ] {
        let (flag, value) = word.split_once('=').unwrap();
        refused(&[word], &[flag, value, reason]);
    }
}

#[test]
fn answer_ping_with_and_without_a_value() {
    assert!(ok(&["--answer-ping"]).flows.answer_ping);
    assert!(ok(&["--answer-ping=true"]).flows.answer_ping);
    assert!(!ok(&["--answer-ping=false"]).flows.answer_ping);
    refused(&["--answer-ping=maybe"], &["--answer-ping", "maybe"]);
}

#[test]
fn ceilings() {
    let config = ok(&[
        "--max-flows=10",
        "--max-memory=512Mi",
        "--connect-attempts=1",
    ]);
    assert_eq!(config.flows.max_flows, 10);
    assert_eq!(config.flows.max_memory, 512 << 20);
    assert_eq!(config.flows.connect_attempts, 1);
    for (word, reason) in [
        ("--max-flows=0", "0"),
        ("--max-memory=lots", "is no size"),
        ("--max-memory=1Ki", "is less than 4 MiB"),
        ("--connect-attempts=0", "1..=100"),
    ] {
        let (flag, value) = word.split_once('=').unwrap();
        refused(&[word], &[flag, value, reason]);
    }
}

#[test]
fn healthz_addresses() {
    let address = |text| ok(&["--healthz-bind-address", text]).healthz_bind_address;
    for (text, expected) in [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:9", "[::1]:9"),
        ("::1", "[::1]:10256"),
        ("[::1]", "[::1]:10256"),
        ("10.0.0.1", "10.0.0.1:10256"),
        (":8080", "[::]:8080"),
    ] {
        assert_eq!(address(text), Some(expected.parse().unwrap()), "{text}");
    }
    assert_eq!(address(""), None);
    for value in ["localhost:80", "10.0.0.1:", "10.0.0.1:70000", "80"] {
        refused(
            &["--healthz-bind-address", value],
            &["--healthz-bind-address", value],
        );
    }
}

#[test]
fn beside_kube_proxy_other_ports() {
    let config = ok(&["--mode=fallback"]);
    let told = |address: Option<SocketAddr>| address.map(|at| at.to_string());
    assert_eq!(
        told(config.healthz_bind_address).as_deref(),
        Some("0.0.0.0:10266")
    );
    assert_eq!(
        told(config.metrics_bind_address).as_deref(),
        Some("127.0.0.1:10269")
    );
    // What is given is what is taken.
    let given = [
        "--mode=fallback",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=",
    ];
    let config = ok(&given);
    assert_eq!(
        told(config.healthz_bind_address).as_deref(),
        Some("127.0.0.1:10256")
    );
    assert_eq!(config.metrics_bind_address, None);
}

#[test]
fn node_names_as_kube_proxy_takes_them() {
    assert_eq!(ok(&["--hostname-override", " Node-1 "]).node_name, "node-1");
    refused(
        &["--hostname-override", " "],
        &["--hostname-override", "is empty"],
    );
    assert!(!ok(&[]).node_name.is_empty());
}

#[test]
fn a_socket_path_has_to_fit() {
    let path = format!("/run/{}", "s".repeat(103));
    refused(
        &["--admin-socket", &path],
        &["--admin-socket", &path, "107"],
    );
    assert_eq!(
        ok(&["--admin-socket", &path[1..]]).admin_socket,
        PathBuf::from(&path[1..])
    );
}

#[test]
fn choices_are_named() {
    assert_eq!(
        ok(&["--pod-traffic=never"]).flows.pod_traffic,
        PodTraffic::Never
    );
    assert_eq!(ok(&["--log-format=json"]).log_format, LogFormat::Json);
    refused(
        &["--pod-traffic=some"],
        &["--pod-traffic", "some", "auto, always, never"],
    );
    refused(
        &["--log-format=xml"],
        &["--log-format", "xml", "text, json"],
    );
}
