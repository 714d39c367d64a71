//! `config/deploy/` and the Dockerfile: that what is applied to a cluster holds nothing
//! that the API does not know, starts the program with words that it takes, and says what
//! the program relies on.
//!
//! Each directory is put together here (`kustomize`), so that all of this is held against
//! what is applied in the end, not against patches.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::HTTPGetAction;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube_tun_proxy::cli;
use kube_tun_proxy::config::{Mode, Source};
use serde_json::json;

use deployment::{Deployment, added, containers, context, typed};
use kustomize::{read, render};
use rights::{Rights, asked_for};

mod deployment;
#[path = "../kubeconfig/mod.rs"]
mod kubeconfig;
mod kustomize;
#[path = "../plain_api_server/mod.rs"]
mod plain_api_server;
mod rights;

/// What can be applied.
const ALL: [&str; 5] = ["base", "masters", "fallback", "replace", "rootless"];

/// Where node components are.
const NAMESPACE: &str = "kube-system";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn every_file_belongs_to_something_that_is_applied() {
    let top = project("config/deploy").canonicalize().unwrap();
    let mut seen = BTreeSet::new();
    for name in ALL {
        assert!(!render(&top.join(name), &mut seen).is_empty());
    }
    let mut written = BTreeSet::new();
    for directory in fs::read_dir(&top).unwrap() {
        let directory = directory.unwrap().path();
        if !directory.is_dir() {
            continue;
        }
        for file in fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|end| end == "yaml") {
                written.insert(path);
            }
        }
    }
    assert_eq!(seen, written);
}

#[test]
fn a_field_that_the_api_does_not_know_is_noticed() {
    let objects = render(&project("config/deploy/base"), &mut BTreeSet::new());
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let container = "/spec/template/spec/containers/0";
    for (path, field) in [
        ("/spec", "updateStrategies"),
        (container, "readinesProbe"),
        ("/spec/template/spec", "hostNetworks"),
    ] {
        let mut wrong = daemon_set.unwrap().clone();
        wrong.pointer_mut(path).unwrap()[field] = json!(true);
        let read = std::panic::catch_unwind(|| typed::<DaemonSet>(&wrong));
        assert!(read.is_err(), "{path}/{field}");
    }
}

#[test]
fn the_program_takes_the_words_it_is_started_with() {
    for name in ALL {
        let deployment = Deployment::of(name);
        for container in containers(&deployment.pod) {
            let words = deployment.words(container);
            let mut all = vec!["kube-tun-proxy".to_owned()];
            all.extend(words);
            cli::command()
                .try_get_matches_from(&all)
                .unwrap_or_else(|error| panic!("{name}: {all:?}: {error}"));
        }
        let config = deployment.config();
        assert_eq!(config.node_name, "node-1", "{name}");
        let Source::Cluster {
            kubeconfig: None,
            master: Some(master),
        } = &config.source
        else {
            panic!("{name}: {:?}", config.source)
        };
        assert_eq!(master.scheme_str(), Some("https"), "{name}");
        assert_eq!(master.port_u16(), Some(6443), "{name}");
        // The kubelet waits longer than the proxy does.
        let grace = deployment.pod.termination_grace_period_seconds.unwrap();
        let drain = config.drain_timeout.max(config.takeover_drain_timeout);
        let drain = i64::try_from(drain.as_secs()).unwrap();
        assert!(grace > drain + 5, "{name}");
    }
    let masters = Deployment::of("masters");
    let own = "--master=https://192.168.0.11:6443".to_owned();
    assert!(masters.words(masters.main()).contains(&own));
    let selector = masters.pod.node_selector.unwrap();
    assert!(selector.contains_key("node-role.kubernetes.io/control-plane"));
}

#[test]
fn probes_ask_where_health_is_told() {
    for name in ALL {
        let deployment = Deployment::of(name);
        let told = deployment.config().healthz_bind_address.unwrap();
        assert!(
            told.ip().is_unspecified() || told.ip().is_loopback(),
            "{name}"
        );
        let main = deployment.main();
        for (probe, path) in [
            (&main.liveness_probe, "/livez"),
            (&main.readiness_probe, "/readyz"),
        ] {
            let asked = probe.as_ref().unwrap().http_get.as_ref();
            let expected = HTTPGetAction {
                host: Some("127.0.0.1".to_owned()),
                path: Some(path.to_owned()),
                port: IntOrString::Int(told.port().into()),
                ..HTTPGetAction::default()
            };
            assert_eq!(asked, Some(&expected), "{name}");
        }
    }
    // Not where kube-proxy is.
    let fallback = Deployment::of("fallback").config();
    assert_eq!(fallback.mode, Mode::Fallback);
    let kube_proxy = [10_256, 10_249].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(fallback.kube_proxy_healthz, kube_proxy[0]);
    let ours = [fallback.healthz_bind_address, fallback.metrics_bind_address];
    for ours in ours.into_iter().flatten() {
        assert!(kube_proxy.iter().all(|theirs| theirs.port() != ours.port()));
    }
}

/// The new pod runs beside the old one, finds it, and is not mistaken for it.
#[test]
fn an_upgrade_hands_over() {
    let command = cli::command();
    let environment = |name: &str| {
        let command = command.find_subcommand(name).unwrap();
        let mut arguments = command.get_arguments();
        let found = arguments.find(|one| one.get_long() == Some("generation"));
        found.unwrap().get_env().unwrap().to_owned()
    };
    let generation = environment("run");
    assert_eq!(environment("ready"), generation);
    let mut directories = BTreeMap::new();
    for name in ALL {
        let deployment = Deployment::of(name);
        let rolling = deployment.strategy.rolling_update.as_ref().unwrap();
        // The API takes one of the two only.
        assert_eq!(rolling.max_surge, Some(IntOrString::Int(1)), "{name}");
        assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(0)), "{name}");
        for container in containers(&deployment.pod) {
            // With the host's network they are ports of the node, which two pods cannot have.
            assert_eq!(container.ports, None, "{name}");
        }
        let config = deployment.config();
        assert!(config.takeover, "{name}");
        assert!(
            config.takeover_drain_timeout > config.drain_timeout,
            "{name}"
        );
        let main = deployment.main();
        let mut variables = main.env.iter().flatten();
        let named = variables.find(|one| *one.name == *generation);
        let label = named.unwrap().value_from.as_ref().unwrap();
        let label = &label.field_ref.as_ref().unwrap().field_path;
        assert_eq!(label, "metadata.labels['pod-template-generation']");
        let probe = main.startup_probe.as_ref().unwrap();
        let words = probe.exec.as_ref().unwrap().command.as_ref().unwrap();
        let read = command.clone().try_get_matches_from(words).unwrap();
        let (asked, read) = read.subcommand().unwrap();
        assert_eq!(asked, "ready");
        let socket: &PathBuf = read.get_one("admin_socket").unwrap();
        assert_eq!(*socket, config.admin_socket, "{name}");
        directories.insert(name, deployment.host_path("/run/kube-tun-proxy"));
    }
    // Who may not open the other's socket does not find it.
    assert_eq!(directories["base"], directories["masters"]);
    assert_eq!(directories["replace"], directories["fallback"]);
    assert_ne!(directories["base"], directories["replace"]);
}

#[test]
fn privileges_are_what_each_container_uses() {
    let image = read(&project("Dockerfile"));
    let user = image.lines().find_map(|line| line.strip_prefix("USER "));
    let user = user.unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for name in ALL {
        let deployment = Deployment::of(name);
        for container in containers(&deployment.pod) {
            let tag = format!("kube-tun-proxy:{version}");
            assert_eq!(container.image.as_ref(), Some(&tag), "{name}");
            let context = context(container);
            assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
            assert_eq!(context.privileged, None, "{name}");
            let capabilities = context.capabilities.as_ref().unwrap();
            assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{name}");
            // No capability without root: Kubernetes gives other users none.
            assert_eq!(context.run_as_user == Some(0), !added(container).is_empty());
            assert_eq!(
                context.run_as_non_root,
                Some(context.run_as_user != Some(0))
            );
        }
        let (init, main) = (deployment.init(), deployment.main());
        let words = deployment.words(init);
        let config = deployment.config();
        if name == "fallback" || name == "replace" {
            assert_eq!(words, ["init", "--remove", "--unless-used"]);
            assert_eq!(added(init), ["NET_ADMIN"], "{name}");
            assert_eq!(added(main), ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"]);
            continue;
        }
        assert_eq!(added(init), ["NET_ADMIN", "CHOWN"], "{name}");
        assert!(added(main).is_empty(), "{name}");
        let context = context(main);
        let (id, group) = (context.run_as_user.unwrap(), context.run_as_group.unwrap());
        assert_eq!(format!("{id}:{group}"), user, "{name}");
        let routed: Vec<_> = config
            .service_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(!routed.is_empty(), "{name}");
        let expected = [
            "init".to_owned(),
            format!("--user={id}"),
            format!("--service-cidr={}", routed.join(",")),
        ];
        assert_eq!(words, expected, "{name}");
        // It cannot take routes away.
        assert_eq!(config.mode, Mode::Always, "{name}");
    }
}

#[test]
fn what_the_program_opens_is_there() {
    for name in ALL {
        let deployment = Deployment::of(name);
        let pod = &deployment.pod;
        assert_eq!(pod.host_network, Some(true), "{name}");
        assert_eq!(pod.dns_policy.as_deref(), Some("Default"), "{name}");
        let volumes: BTreeMap<_, _> = pod
            .volumes
            .iter()
            .flatten()
            .map(|volume| (volume.name.as_str(), volume))
            .collect();
        let socket = deployment.config().admin_socket;
        for container in containers(pod) {
            let mounts: BTreeMap<_, _> = container
                .volume_mounts
                .iter()
                .flatten()
                .map(|mount| (mount.mount_path.as_str(), volumes[mount.name.as_str()]))
                .collect();
            let driver = mounts["/dev/net/tun"].host_path.as_ref().unwrap();
            assert_eq!(driver.path, "/dev/net/tun");
            assert_eq!(driver.type_.as_deref(), Some("CharDevice"));
            let directory = socket.parent().unwrap().to_str().unwrap();
            assert_eq!(
                mounts[directory].host_path.as_ref().unwrap().path,
                deployment.host_path(directory),
                "{name}"
            );
            let requests = container.resources.as_ref().unwrap().requests.as_ref();
            assert!(
                requests.is_some_and(|all| all.contains_key("memory")),
                "{name}"
            );
        }
        assert_eq!(
            pod.priority_class_name.as_deref(),
            Some("system-node-critical")
        );
        let tolerations = pod.tolerations.iter().flatten();
        let every = |one: &k8s_openapi::api::core::v1::Toleration| {
            one.operator.as_deref() == Some("Exists") && one.key.is_none() && one.effect.is_none()
        };
        assert!(tolerations.into_iter().any(every), "{name}");
    }
}

#[tokio::test]
async fn the_role_allows_what_the_program_asks_for_and_no_more() {
    let asked = asked_for().await;
    assert!(!asked.is_empty());
    for name in ALL {
        let role = Deployment::of(name).role;
        let mut allowed = Rights::new();
        for rule in role.rules.unwrap() {
            assert_eq!(rule.resource_names, None);
            assert_eq!(rule.non_resource_urls, None);
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for verb in &rule.verbs {
                        allowed.insert((group.clone(), resource.clone(), verb.clone()));
                    }
                }
            }
        }
        assert_eq!(allowed, asked, "{name}");
    }
}

#[test]
fn the_image_is_built_of_what_is_left_in() {
    let ignored = read(&project(".dockerignore"));
    let ignored = ignored.lines().filter(|line| !line.starts_with('#'));
    let ignored: Vec<_> = ignored.map(|line| line.trim_start_matches("**/")).collect();
    // Cargo wants the files of every target, the program those that it includes.
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "tests",
        "benches",
        "config",
    ] {
        assert!(!ignored.contains(&needed), "{needed}");
        assert!(project(needed).exists());
    }
    assert!(ignored.contains(&"target"));
    // The toolchain is the one that the manifest wants.
    let image = read(&project("Dockerfile"));
    let from = image.lines().find(|line| line.starts_with("FROM rust:"));
    let version = env!("CARGO_PKG_RUST_VERSION");
    assert!(from.unwrap().starts_with(&format!("FROM rust:{version}-")));
    let last = image.rsplit("FROM ").next().unwrap();
    assert!(last.starts_with("scratch"), "{last}");
    let entry = "ENTRYPOINT [\"/usr/local/bin/kube-tun-proxy\"]";
    assert!(last.contains(entry), "{last}");
    assert!(Deployment::of("base").config().drain_timeout > Duration::ZERO);
}
