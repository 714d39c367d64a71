//! Hand-overs between pods of a DaemonSet that surges. The trials play the kubelet: they
//! start each container with the arguments of `config/deploy/base`, start it anew when it
//! ends, and send the old one SIGTERM once the new one is ready.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kube_tun_proxy::lab::ProxyProcess;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use super::init::Place;
use super::takeover_stage::{
    Scene, Transfer, health_all_the_time, newcomers, pinged, some_transfers,
};
use super::world::{BINARY, LIMIT, Trials, joined};

/// What a proxy says that has nothing more to do.
const WAITS: &str = "waiting for SIGTERM";

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("takeover_pods")
        .one("a_rollout_loses_no_connection", rollout)
        .one("an_old_container_does_not_take_back", no_way_back)
        .one("a_rollout_is_undone", undone)
        .one("the_new_container_fails_afterwards", new_fails)
        .one("without_privilege_on_a_prepared_device", prepared)
        .done()
}

/// The arguments of a container, without where its objects are.
fn container(generation: &str) -> [&str; 4] {
    [
        "--drain-timeout=2s",
        "--takeover-drain-timeout=60s",
        "--generation",
        generation,
    ]
}

fn first(generation: &str) -> Result<Scene, Failed> {
    let mut arguments = vec!["--takeover"];
    arguments.extend(container(generation));
    Scene::new(&["pod-5", "pod-6"], &Tcp::Echo, &arguments)
}

/// The startup probe of the pod of a generation.
fn is_started(proxy: &ProxyProcess, generation: &str) -> Result<bool, Failed> {
    let output = proxy.command(&["ready", "--generation", generation])?;
    Ok(output.status.success())
}

fn has_ended(proxy: &ProxyProcess) -> Result<(), Failed> {
    let status = proxy
        .wait(LIMIT)
        .ok_or_else(|| format!("it runs:\n{}", proxy.log()))?;
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
    Ok(())
}

fn says(proxy: &ProxyProcess, text: &str) {
    let said = proxy.wait_for_log(text, LIMIT);
    assert!(said.is_some(), "{text}:\n{}", proxy.log());
}

/// SIGTERM comes to the old container as soon as the new one is ready, and cuts nothing.
fn rollout() -> Result<(), Failed> {
    let mut scene = first("7")?;
    let finish = Arc::new(AtomicBool::new(false));
    let mut transfers = Vec::new();
    for _ in 0..5 {
        transfers.extend(some_transfers(&scene, &finish)?);
    }
    let outside = scene.stage.cluster.outside().clone();
    let newcomers = [
        newcomers(scene.pod(), Scene::vip(), &finish),
        newcomers(
            &outside,
            scene.stage.at(super::node_port_stage::PORT),
            &finish,
        ),
    ];
    let health = health_all_the_time(&scene, &finish);
    assert!(is_started(&scene.stage.proxy, "7")?);
    // The old one is who answers.
    assert!(!is_started(&scene.stage.proxy, "8")?);
    scene.take_over(&container("8"))?;
    assert!(is_started(&scene.stage.proxy, "8")?);
    let old = &scene.former[0];
    old.signal(Signal::SIGTERM)?;
    says(old, "flows go on to drain");
    transfers.extend(some_transfers(&scene, &finish)?);
    // More than --drain-timeout, which is not what holds here.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(old.status(), None, "{}", old.log());
    finish.store(true, Ordering::Relaxed);
    for one in newcomers {
        assert!(joined(one)? > 10);
    }
    assert!(joined(health)? > 0);
    transfers.into_iter().try_for_each(Transfer::end)?;
    has_ended(old)?;
    pinged(&scene)
}

/// It is started anew before its pod is deleted, and stands back.
fn no_way_back() -> Result<(), Failed> {
    let mut scene = first("7")?;
    scene.take_over(&container("8"))?;
    let finish = Arc::new(AtomicBool::new(false));
    let transfers = some_transfers(&scene, &finish)?;
    // It has no flow left, and stays: the kubelet would start it anew.
    says(&scene.former[0], WAITS);
    assert_eq!(scene.former[0].status(), None);
    scene.former[0].kill()?;
    let again = scene.spawn(&container("7"))?;
    says(&again, "of generation 8, and this one older");
    says(&again, WAITS);
    pinged(&scene)?;
    assert_eq!(again.status(), None);
    again.signal(Signal::SIGTERM)?;
    has_ended(&again)?;
    // A newer one may.
    scene.take_over(&container("9"))?;
    finish.store(true, Ordering::Relaxed);
    transfers.into_iter().try_for_each(Transfer::end)?;
    pinged(&scene)
}

/// The new pod is deleted, and the old one is to serve again: its container ends, and is
/// started anew.
fn undone() -> Result<(), Failed> {
    let mut scene = first("7")?;
    scene.take_over(&container("8"))?;
    says(&scene.former[0], WAITS);
    scene.stage.proxy.signal(Signal::SIGTERM)?;
    has_ended(&scene.stage.proxy)?;
    has_ended(&scene.former[0])?;
    let again = scene.spawn(&container("7"))?;
    again.wait_until_ready()?;
    scene.stage.proxy = again;
    pinged(&scene)
}

/// It is killed while the old one has flows: these go on for --drain-timeout, then the
/// device is free for whichever container is started anew, and the newer one serves in
/// the end.
fn new_fails() -> Result<(), Failed> {
    let mut scene = first("7")?;
    let finish = Arc::new(AtomicBool::new(false));
    let transfers = some_transfers(&scene, &finish)?;
    scene.take_over(&container("8"))?;
    scene.stage.proxy.kill()?;
    says(&scene.former[0], "the process that has taken over is gone");
    finish.store(true, Ordering::Relaxed);
    transfers.into_iter().try_for_each(Transfer::end)?;
    has_ended(&scene.former[0])?;
    let again = scene.spawn(&container("7"))?;
    again.wait_until_ready()?;
    scene.stage.proxy = again;
    pinged(&scene)?;
    scene.take_over(&container("8"))?;
    pinged(&scene)?;
    let old = scene.former.last().ok_or("no former one")?;
    says(old, WAITS);
    old.signal(Signal::SIGTERM)?;
    has_ended(old)
}

/// As `config/deploy/base` has it: an init container before each, on the device that the
/// old pod holds; one that fails finds it free again.
fn prepared() -> Result<(), Failed> {
    let place = Place::new()?;
    let _servers = super::takeover_kinds::serve(&place.world)?;
    place.prepare(&place.cidrs())?;
    place.open_directory()?;
    let pod = |place: &Place, generation: &str| {
        let options = place.options().argument("--takeover");
        let options = container(generation)
            .iter()
            .fold(options, |options, one| options.argument(one));
        let node = place.world.node().namespace();
        ProxyProcess::spawn(node, Path::new(BINARY), &options)
    };
    let old = pod(&place, "7")?;
    old.wait_until_ready()?;
    place.prepare(&place.cidrs())?;
    let new = pod(&place, "8")?;
    says(&new, "taken over: ");
    new.wait_until_ready()?;
    says(&old, WAITS);
    super::fallback::is_served(&place.world)?;
    new.signal(Signal::SIGTERM)?;
    has_ended(&new)?;
    has_ended(&old)?;
    let again = pod(&place, "8")?;
    again.wait_until_ready()?;
    super::fallback::is_served(&place.world)?;
    // The init container of an overlay with privilege.
    let used = place.init(&["--remove", "--unless-used"])?;
    assert!(used.status.success(), "{used:?}");
    assert!(String::from_utf8_lossy(&used.stdout).contains("a proxy holds it"));
    super::fallback::is_served(&place.world)?;
    again.signal(Signal::SIGTERM)?;
    has_ended(&again)?;
    let free = place.init(&["--remove", "--unless-used"])?;
    assert!(String::from_utf8_lossy(&free.stdout).contains("is removed"));
    Ok(())
}
