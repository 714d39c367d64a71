//! The unit of `config/systemd/`: that the program takes the words it is started with,
//! and that it says what the program relies on. Whether systemd takes it,
//! `systemd-analyze verify` tells.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs;

use kube_tun_proxy::cli;

const UNIT: &str = "config/systemd/kube-tun-proxy@.service";

/// The values of a key, in order.
fn values(key: &str) -> Vec<String> {
    let path = format!("{}/{UNIT}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let values = lines.filter(|(found, _)| *found == key);
    values.map(|(_, value)| value.to_owned()).collect()
}

fn value(key: &str) -> String {
    let [value] = values(key).try_into().unwrap();
    value
}

#[test]
fn every_flag_that_it_is_started_with_exists() {
    let words = value("ExecStart");
    let words: Vec<_> = words.split_whitespace().collect();
    assert!(words[0].ends_with("/kube-tun-proxy"), "{words:?}");
    assert_eq!(words[1], "run");
    let matches = cli::command().try_get_matches_from(&words).unwrap();
    let (_, run) = matches.subcommand().unwrap();
    // Where the unit makes the directories.
    let path = |id: &str| {
        let path = run.get_raw(id).unwrap().next().unwrap();
        path.to_str().unwrap().to_owned()
    };
    let below = |key: &str, at: &str| format!("{at}/{}/", value(key));
    assert!(path("config").starts_with(&below("ConfigurationDirectory", "/etc")));
    assert!(path("admin_socket").starts_with(&below("RuntimeDirectory", "/run")));
    // The manager waits longer than the proxy does.
    let drain = path("drain_timeout");
    let drain: u64 = drain.trim_end_matches('s').parse().unwrap();
    assert!(value("TimeoutStopSec").parse::<u64>().unwrap() > drain);
}

#[test]
fn what_the_program_speaks_and_needs_is_in_it() {
    assert_eq!(value("Type"), "notify");
    assert!(value("WatchdogSec").parse::<u64>().unwrap() > 0);
    assert_eq!(value("ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(value("RestartPreventExitStatus"), "2");
    // One instance takes over from the other, and that one leaves it alone.
    let words = value("ExecStart");
    assert!(words.split(' ').any(|word| word == "--takeover"));
    assert_eq!(value("Restart"), "on-failure");
    assert_eq!(value("RuntimeDirectoryPreserve"), "yes");
    assert_eq!(value("NotifyAccess"), "main");
    assert_eq!(value("DeviceAllow"), "/dev/net/tun rw");
    assert_eq!(value("CapabilityBoundingSet"), value("AmbientCapabilities"));
    let capabilities = value("AmbientCapabilities");
    let mut capabilities: Vec<_> = capabilities.split(' ').collect();
    capabilities.sort_unstable();
    let used = ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"];
    assert_eq!(capabilities, used);
    for family in ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"] {
        let families = value("RestrictAddressFamilies");
        assert!(families.split(' ').any(|f| f == family), "{families}");
    }
}
