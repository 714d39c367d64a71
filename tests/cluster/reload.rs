//! SIGHUP, what is logged, and what the service manager hears, while the proxy runs.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::{Port, service};
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;

use super::world::{BINARY, FAMILIES, LIMIT, Trials, World, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("reload")
        .one("what_can_change_does", what_can_change_does)
        .one(
            "what_is_wrong_changes_nothing",
            what_is_wrong_changes_nothing,
        )
        .one("what_is_logged_changes", what_is_logged_changes)
        .one("a_namespace_decides_on_its_access_log", namespaces)
        .one("the_service_manager_is_told", service_manager)
        .done()
}

const HEAD: &str = "apiVersion: kube-tun-proxy/v1alpha1\nkind: TunProxyConfiguration\n";

/// A world with 1:80 and a proxy that reads `file`.
fn world(file: &NamedTempFile) -> Result<World, Failed> {
    let mut world = World::other()?;
    let web = [Port::tcp("web", 80, 8000)];
    world.serve("web", 1, &web, &[world.pod(0), world.pod(1)])?;
    let path = file.path().display();
    world.start(&[&format!("--config={path}")])?;
    Ok(world)
}

fn file(settings: &str) -> Result<NamedTempFile, Failed> {
    let file = NamedTempFile::new()?;
    write(&file, settings)?;
    Ok(file)
}

fn write(file: &NamedTempFile, settings: &str) -> Result<(), Failed> {
    Ok(fs::write(file, format!("{HEAD}{settings}"))?)
}

/// Sends SIGHUP and waits until the log has this.
fn reload(world: &World, told: &str) -> Result<(), Failed> {
    let count = || world.proxy().log().matches(told).count();
    let before = count();
    world.proxy().signal(Signal::SIGHUP)?;
    wait_until(&format!("the log has {told:?} again"), || {
        Ok(count() > before)
    })
}

fn schedulers(world: &World) -> Result<Vec<String>, Failed> {
    let listed = world.proxy().command(&["list", "-o", "json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let servers = listed["virtualServers"].as_array();
    let servers = servers.ok_or("no virtual servers")?;
    let name = |server: &serde_json::Value| server["scheduler"].as_str().map(str::to_owned);
    Ok(servers.iter().filter_map(name).collect())
}

fn what_can_change_does() -> Result<(), Failed> {
    let file = file("answerPing: true\nipvsScheduler: rr\n")?;
    let world = world(&file)?;
    let _servers = [
        world.pod(0).serve_tcp(8000, Tcp::Echo)?,
        world.pod(1).serve_tcp(8000, Tcp::Echo)?,
    ];
    let vip = world.vip_at(FAMILIES[0], 1, 80);
    let node = world.node().namespace();
    // One that stays open throughout.
    let kept = client::connect(node, vip, LIMIT)?;
    assert!(schedulers(&world)?.iter().all(|name| name == "rr"));

    write(
        &file,
        "answerPing: false\nipvsScheduler: lc\nmaxFlows: 1\nworkers: 7\ntunName: other\n",
    )?;
    reload(&world, "settings=\"answerPing, ipvsScheduler, maxFlows\"")?;
    let restart = "settings=\"tunName, workers\"";
    assert!(world.proxy().wait_for_log(restart, LIMIT).is_some());
    assert!(schedulers(&world)?.iter().all(|name| name == "lc"));
    // The one that is open is all there may be.
    let refused = client::connect(node, vip, LIMIT);
    assert!(refused.is_err(), "{refused:?}");

    write(
        &file,
        "answerPing: false\nipvsScheduler: lc\nmaxFlows: 100\nipvsTcpTimeout: 200ms\n",
    )?;
    reload(&world, "settings=\"ipvsTcpTimeout, maxFlows\"")?;
    // Idle since before the limit was there.
    wait_until("the idle connection is cut", || {
        Ok(world.proxy().log().contains("ending=\"idle\""))
    })?;
    drop(kept);
    client::connect(node, vip, LIMIT)?;
    Ok(())
}

fn what_is_wrong_changes_nothing() -> Result<(), Failed> {
    let file = file("connectAttempts: 2\n")?;
    let world = world(&file)?;
    write(&file, "connectAttempts: 4\nipvsSheduler: lc\n")?;
    reload(&world, "ipvsSheduler: is unknown")?;
    write(&file, "connectAttempts: 2\n")?;
    reload(&world, "nothing has changed")
}

fn what_is_logged_changes() -> Result<(), Failed> {
    let file = file("")?;
    let world = world(&file)?;
    let log_level = |words: &[&str]| -> Result<String, Failed> {
        let mut all = vec!["log-level"];
        all.extend(words);
        let output = world.proxy().command(&all)?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    assert_eq!(log_level(&[])?, "info,kube_tun_proxy::dataplane=trace\n");
    assert_eq!(log_level(&["info,access=off"])?, "info,access=off\n");
    assert_eq!(log_level(&[])?, "info,access=off\n");
    let wrong = Command::new(BINARY).args(["log-level", "=["]).output()?;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    Ok(())
}

fn namespaces() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&[])?;
    let [first, last] = FAMILIES.map(|family| world.vip_at(family, 1, 80));
    // Opens a connection, ends it and waits until the proxy has forgotten it.
    let visit = |vip| -> Result<(), Failed> {
        drop(client::connect(world.node().namespace(), vip, LIMIT)?);
        wait_until("no flow is left", || {
            let listed = world.proxy().command(&["list", "--flows", "-o", "json"])?;
            let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
            Ok(listed["flows"].as_array().is_some_and(Vec::is_empty))
        })
    };
    // A Service in the same file is in the table once everything else of it is, since
    // its addresses come last.
    let say = |word: &str, number: u16| -> Result<(), Failed> {
        let ports = [Port::tcp("web", 80, 8000)];
        let addresses = FAMILIES.map(|family| world.vip_at(family, number, 80));
        let marker = service("default", word, &addresses.map(|a| a.ip()), &ports);
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  annotations:\n    \
             kube-tun-proxy.io/access-log: \"{word}\"\n---\n{marker}"
        );
        world.manifests.write("namespace.yaml", &text)?;
        let [_, last] = addresses.map(|address| address.to_string());
        wait_until("the namespace is programmed", || {
            let listed = world.proxy().command(&["list", "-o", "json"])?;
            Ok(String::from_utf8_lossy(&listed.stdout).contains(&last))
        })
    };
    visit(first)?;
    say("false", 2)?;
    visit(first)?;
    say("true", 3)?;
    visit(last)?;
    // Events are written in the order in which the flows ended.
    let event = format!("virtual_server={last}");
    assert!(world.proxy().wait_for_log(&event, LIMIT).is_some());
    let events = world.proxy().log().matches("ending=").count();
    assert_eq!(events, 2);
    Ok(())
}

fn service_manager() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(LIMIT))?;
    let options = world.options();
    // Half a second.
    let options = options
        .environment("NOTIFY_SOCKET", &path)
        .environment("WATCHDOG_USEC", "500000");
    world.start_with(&options)?;
    let until = |wanted: &str| -> Result<(), Failed> {
        let mut message = [0; 256];
        loop {
            let len = manager.recv(&mut message)?;
            let text = String::from_utf8_lossy(&message[..len]);
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    };
    until("READY=1")?;
    for _ in 0..3 {
        until("WATCHDOG=1")?;
    }
    world.proxy().signal(Signal::SIGTERM)?;
    until("STOPPING=1")
}
