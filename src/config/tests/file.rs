//! What a file and a command line come to together, and that no setting is
//! forgotten anywhere.

use std::fs;

use serde_json::Value;
use tempfile::NamedTempFile;

use super::*;
use crate::config::file::{NOT_IN_FILE, field_of};
use crate::config::settings::command;

const TUN: &str = "apiVersion: kube-tun-proxy/v1alpha1\nkind: TunProxyConfiguration\n";

const KUBE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn written(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

fn with_file(text: &str, words: &[&str]) -> Result<Loaded, String> {
    let file = written(text);
    let path = file.path().to_str().unwrap();
    let words = [&["--config", path], words].concat();
    let settings = testing::settings(&words).map_err(|error| error.to_string())?;
    settings
        .load()
        .map_err(|error| error.to_string().replace(path, "FILE"))
}

/// The flags of `run` that a file may hold.
fn flags() -> Vec<String> {
    let command = command();
    let flags = command.get_arguments().filter_map(|arg| arg.get_long());
    let flags = flags.filter(|flag| !NOT_IN_FILE.contains(flag));
    flags.map(str::to_owned).collect()
}

#[test]
fn flags_win_over_the_file_and_one_kind_over_the_other() {
    let here = env!("CARGO_MANIFEST_DIR");
    let text = format!(
        "{TUN}manifests: {here}\nipvsScheduler: sh\nconnectAttempts: 5\nipvsCompat: true\n\
         serviceCidr: [10.0.0.0/16, 'fd00:10::/108']\n---\n{KUBE}\
         ipvs: {{scheduler: lc, udpTimeout: 10s}}\nmode: ipvs\n\
         clientConnection: {{kubeconfig: /no/such}}\n"
    );
    let loaded = with_file(&text, &["--connect-attempts", "7", "--ipvs-compat=false"]).unwrap();
    let flows = &loaded.config.flows;
    assert_eq!(flows.scheduler, SchedulerKind::Sh);
    assert_eq!(flows.connect_attempts, 7);
    assert_eq!(flows.udp_timeout, Duration::from_secs(10));
    assert!(!flows.ipvs_compat);
    assert_eq!(loaded.config.service_cidrs.len(), 2);
    assert!(matches!(loaded.config.source, Source::Manifests(_)));
    assert_eq!(loaded.ignored, ["mode"]);

    let loaded = with_file(&text, &["--kubeconfig", here]).unwrap();
    assert!(
        matches!(loaded.config.source, Source::Cluster { kubeconfig: Some(path), .. }
        if path.as_os_str() == here)
    );
}

#[test]
fn what_is_wrong_with_the_whole_is_said_of_the_field() {
    for (text, told) in [
        (
            format!("{KUBE}clientConnection: {{kubeconfig: /no/such}}\n"),
            "--config 'FILE': document 1, clientConnection.kubeconfig: \
             --kubeconfig '/no/such' cannot be read: No such file",
        ),
        (
            format!("{TUN}serviceCidr: [10.0.0.0/16, 10.0.4.0/24]\n"),
            "document 1, serviceCidr: --service-cidr '10.0.0.0/16,10.0.4.0/24': the one contains",
        ),
        (
            format!("{TUN}manifests: /a\nkubeconfig: /b\n"),
            "--config 'FILE': with what else is given: the argument",
        ),
        (format!("{TUN}workers: 0\n"), "document 1, workers: '0' "),
    ] {
        let error = with_file(&text, &[]).unwrap_err();
        assert!(error.contains(told), "{error:?} lacks {told:?}");
    }
    let error = testing::settings(&["--config", "/no/such"]).unwrap().load();
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "--config '/no/such' cannot be read");
}

#[test]
fn the_environment_wins_over_the_file_only_where_it_says_something() {
    let level = |words: &[&str]| {
        let text = format!("{TUN}logLevel: warn\n");
        with_file(&text, words).unwrap().config.log_level
    };
    assert_eq!(level(&["--log-level=debug"]).as_str(), "debug");
    if std::env::var_os("RUST_LOG").is_none_or(|text| text.is_empty()) {
        assert_eq!(level(&[]).as_str(), "warn");
    }
}

/// Every flag has its place in what `configz` shows; and what it shows, read as a
/// file, is the same configuration. This is what fails when a new flag is forgotten.
#[test]
fn a_configuration_is_shown_whole_and_can_be_read_again() {
    let here = env!("CARGO_MANIFEST_DIR");
    let all = [
        "--service-cidr=10.0.0.0/16",
        "--tun-address=10.9.0.1,fd09::1",
        "--nodeport-addresses=primary,192.168.0.0/24",
        "--masquerade-source=fd09::7,10.1.15.0",
        "--healthz-bind-address=",
        "--ipvs-tcp-timeout=15m",
        "--log-level=debug,access=off",
    ];
    let source = |cluster: bool| match cluster {
        true => vec!["--kubeconfig", here, "--master=https://192.168.0.10:6443"],
        false => vec!["--manifests", here],
    };
    let mut shown = Vec::new();
    for cluster in [true, false] {
        let words = [source(cluster), all.to_vec()].concat();
        let config = testing::settings(&words).unwrap().load().unwrap().config;
        let text = config.document().to_string();
        let again = with_file(&text, &[]).unwrap().config;
        assert_eq!(again.settings(), config.settings());
        shown.extend(config.settings().keys().cloned());
    }
    for flag in flags() {
        assert!(shown.contains(&field_of(&flag)), "configz lacks --{flag}");
    }
}

/// `config/proxy.yaml` has every setting, with the default of the code, behind a
/// comment.
#[test]
fn the_annotated_defaults_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/proxy.yaml");
    let text = fs::read_to_string(path).unwrap();
    let document: Value = serde_saphyr::from_str(&text).unwrap();
    let mut told = document.as_object().unwrap().clone();
    told.remove("apiVersion");
    told.remove("kind");
    let lines: Vec<_> = text.lines().collect();
    let command = command();
    for flag in flags() {
        let field = field_of(&flag);
        let value = told.remove(&field);
        let value = value.unwrap_or_else(|| panic!("proxy.yaml lacks {field}"));
        let mut args = command.get_arguments();
        let arg = args.find(|arg| arg.get_long() == Some(&flag)).unwrap();
        let defaults: Vec<_> = arg.get_default_values().iter().collect();
        let text = value.as_str().map(str::to_owned);
        let value = text.unwrap_or_else(|| value.to_string());
        match defaults.as_slice() {
            [] => assert_eq!(value, "null", "{field}"),
            [default] => assert_eq!(value, default.to_str().unwrap(), "{field}"),
            several => panic!("{field} has the defaults {several:?}"),
        }
        let line = lines
            .iter()
            .position(|line| line.starts_with(&format!("{field}:")));
        assert!(
            lines[line.unwrap() - 1].starts_with("# "),
            "{field} has no comment"
        );
    }
    assert!(
        told.is_empty(),
        "proxy.yaml has {told:?}, which no flag has"
    );

    let plain = testing::settings(&[]).unwrap().load().unwrap().config;
    let read = testing::settings(&["--config", path])
        .unwrap()
        .load()
        .unwrap()
        .config;
    assert_eq!(read.settings(), plain.settings());
}
