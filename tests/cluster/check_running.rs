//! `check` by somebody without privilege, beside a running proxy, and asked of it.

use std::path::Path;

use kube_tun_proxy::admin::api;
use kube_tun_proxy::check::{Level, Report};
use kube_tun_proxy::lab::client;
use libtest_mimic::{Failed, Trial};

use super::check::Node;
use super::world::{BINARY, LIMIT, Trials, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("check")
        .one("without_privilege", without_privilege)
        .one("beside_a_running_proxy", running)
        .one("asked_of_the_proxy_itself", itself)
        .done()
}

/// In a user namespace of its own, below the one that owns the node's network: it has
/// every capability there, and none here.
fn without_privilege() -> Result<(), Failed> {
    let node = Node::new()?;
    let mut command = node.world.node().namespace().command("unshare");
    let output = command
        .arg("--user")
        .arg(Path::new(BINARY))
        .args(node.arguments())
        .args(["-o", "json"])
        .output()?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Report = serde_json::from_slice(&output.stdout)?;
    let of = |subject: &str| {
        let found = report.findings.iter().find(|one| one.subject == subject);
        found.cloned().expect("every subject is there")
    };
    let finding = of("capabilities");
    assert_eq!(finding.level, Level::Failure, "{finding:?}");
    let mend = finding.mend.as_deref().unwrap_or_default();
    assert!(mend.contains("kube-tun-proxy init --user"), "{mend}");
    assert_eq!(of("netfilter").level, Level::Warning);
    Ok(())
}

fn running() -> Result<(), Failed> {
    let mut node = Node::new()?;
    let socket = node.file("admin.sock");
    let options = node.world.options().admin_socket(Path::new(&socket));
    node.world.start_with(&options)?;
    let at = ["--healthz-bind-address", "127.0.0.1:10256"];
    let mut arguments = node.arguments();
    arguments.retain(|argument| !argument.starts_with("--healthz"));
    let mut command = node.world.node().namespace().command(BINARY);
    let output = command
        .args(arguments)
        .args(at)
        .args(["-o", "json"])
        .output()?;
    let report: Report = serde_json::from_slice(&output.stdout)?;
    all_well(&report);
    // Its socket is out of reach, as that of another user or in a container is: it is known
    // by its health.
    let mut arguments = node.arguments();
    arguments.retain(|argument| !argument.starts_with("--healthz"));
    let elsewhere = node.file("none.sock");
    for argument in &mut arguments {
        if *argument == socket {
            argument.clone_from(&elsewhere);
        }
    }
    let mut command = node.world.node().namespace().command(BINARY);
    let at = [&at[..], &["-o", "json"]].concat();
    let output = command.args(arguments).args(at).output()?;
    all_well(&serde_json::from_slice(&output.stdout)?);
    Ok(())
}

/// Nothing that the running proxy has is held against it.
fn all_well(report: &Report) {
    for subject in [
        "device",
        "healthz",
        "metrics",
        "routes",
        "kube-proxy",
        "capabilities",
    ] {
        let found = report.findings.iter().find(|one| one.subject == subject);
        let found = found.expect("every subject is there");
        assert_eq!(found.level, Level::Ok, "{found:?}");
    }
}

/// What the proxy tells of its own node, on the admin socket and where the page is.
fn itself() -> Result<(), Failed> {
    let mut node = Node::new()?;
    node.set("net.ipv4.conf.all.rp_filter", "0")?;
    // It gives up what it would need to see netfilter's rules.
    let options = node.world.options().argument("--fixed-routes");
    node.world.start_with(&options)?;
    let told: api::Checks = node.world.ask(api::CHECK)?;
    for check in &told.checks {
        // The limit is the machine's.
        if check.name != "open-files" && check.name != "netfilter" {
            assert_eq!(check.result, "ok", "{check:?}");
        }
    }
    let of = |name: &str| {
        let found = told.checks.iter().find(|check| check.name == name);
        found.cloned().ok_or_else(|| format!("no {name}: {told:?}"))
    };
    for name in ["device", "healthz", "metrics"] {
        let found = of(name)?.found;
        assert!(found.ends_with("belongs to this proxy"), "{found}");
    }
    let unseen = of("netfilter")?;
    assert_eq!(unseen.result, "warning");
    assert!(
        unseen.found.starts_with("not seen without privilege"),
        "{unseen:?}"
    );
    assert_eq!(told.checks.len(), 19, "{told:?}");

    // The page's answer is the same, kept: what has changed since is not seen yet.
    let inside = node.world.node().namespace();
    node.set("net.ipv4.ip_forward", "0")?;
    let at = node.world.proxy().metrics();
    let ask = || -> Result<api::Checks, Failed> {
        let (status, body) = client::http_get(inside, at, "/api/v1/check", LIMIT)?;
        assert_eq!(status, 200, "{body}");
        Ok(serde_json::from_str(&body)?)
    };
    let kept = ask()?;
    if kept.age_seconds < 10 {
        assert_eq!(kept.checks, told.checks);
    }
    wait_until("a new look", || {
        let checks = ask()?.checks;
        let forward = checks.iter().find(|check| check.name == "ip-forward");
        Ok(forward.is_some_and(|check| check.result == "warning"))
    })
}
