//! Hand-overs of what is reached from outside: node ports and health check node ports.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};

use crate::node_port_stage::{PORT, Stage, is_refused, until, web};
use crate::takeover_stage::Scene;
use crate::world::{LIMIT, Trials, joined};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("takeover_node_ports")
        .one("connections_that_stay_are_counted", counted)
        .one("health_checks_are_never_refused", health_checks)
        .done()
}

/// A connection through the node port that is open until it is dropped.
fn held(scene: &Scene) -> Result<TcpStream, Failed> {
    let outside = scene.stage.cluster.outside();
    let mut held = client::connect(outside, scene.stage.at(PORT), LIMIT)?;
    held.write_all(b"ping")?;
    held.read_exact(&mut [0; 4])?;
    Ok(held)
}

/// Those of the former processes count for whom the scheduler chooses, until they end.
fn counted() -> Result<(), Failed> {
    let arguments = ["--drain-timeout", "60s", "--ipvs-scheduler", "lc"];
    let mut scene = Scene::new(&["pod-5", "pod-6"], &Tcp::Echo, &arguments)?;
    let address = |name| IpAddr::from(scene.stage.cluster.pod(name).address());
    let (five, six) = (address("pod-5"), address("pod-6"));
    scene.stage.write(&web(&scene.stage.cluster, &["pod-5"]))?;
    until(
        || scene.counts().ok(),
        |seen| *seen == Some(vec![(five, 0)]),
    )?;
    let first: Vec<_> = (0..6).map(|_| held(&scene)).collect::<Result<_, _>>()?;
    scene
        .stage
        .write(&web(&scene.stage.cluster, &["pod-5", "pod-6"]))?;
    let both = |five_has, six_has| Some(vec![(five, five_has), (six, six_has)]);
    until(|| scene.counts().ok(), |seen| *seen == both(6, 0))?;
    scene.take_over(&arguments)?;
    assert_eq!(scene.counts().ok(), both(6, 0));
    let second: Vec<_> = (0..6).map(|_| held(&scene)).collect::<Result<_, _>>()?;
    until(|| scene.counts().ok(), |seen| *seen == both(6, 6))?;
    // The third process counts those of the first, too, and hears of their ends.
    scene.take_over(&arguments)?;
    assert_eq!(scene.counts().ok(), both(6, 6));
    drop(first);
    until(|| scene.counts().ok(), |seen| *seen == both(0, 6))?;
    let third: Vec<_> = (0..6).map(|_| held(&scene)).collect::<Result<_, _>>()?;
    until(|| scene.counts().ok(), |seen| *seen == both(6, 6))?;
    // One that is killed takes its connections with it.
    scene.former[1].kill()?;
    until(|| scene.counts().ok(), |seen| *seen == both(6, 0))?;
    drop((second, third));
    until(|| scene.counts().ok(), |seen| *seen == both(0, 0))
}

/// Asked all the time, whichever of the processes answers.
fn health_checks() -> Result<(), Failed> {
    const CHECKED: u16 = 31_000;
    let arguments = ["--drain-timeout", "60s"];
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &arguments)?;
    let mut service = web(&scene.stage.cluster, &["pod-5"]);
    service.health_check = Some(CHECKED);
    // An endpoint of this node.
    service
        .endpoints
        .iter_mut()
        .for_each(|endpoint| endpoint.node = Some("master".to_owned()));
    service.external_local = true;
    scene.stage.write(&service)?;
    let (outside, master) = (
        scene.stage.cluster.outside().clone(),
        scene.stage.master().clone(),
    );
    let places = [
        (outside.clone(), scene.stage.at(CHECKED)),
        (outside, scene.stage.at6(CHECKED)),
        (master, Stage::local(CHECKED)),
    ];
    for (from, to) in &places {
        until(
            || client::http_get(from, *to, "/", LIMIT).ok(),
            |answer| matches!(answer, Some((200, _))),
        )?;
    }
    // Without it the old process would end while it answers.
    let held = held(&scene)?;
    let finish = Arc::new(AtomicBool::new(false));
    let asking = places.map(|(from, to)| {
        let finish = Arc::clone(&finish);
        thread::spawn(move || {
            let mut count = 0;
            while !finish.load(Ordering::Relaxed) {
                match client::http_get(&from, to, "/", LIMIT) {
                    Ok((200, _)) => count += 1,
                    other => return Err(format!("{to}: {other:?} after {count}")),
                }
            }
            Ok(count)
        })
    });
    for _ in 0..3 {
        scene.take_over(&arguments)?;
    }
    finish.store(true, Ordering::Relaxed);
    for one in asking {
        assert!(joined(one)? > 10);
    }
    let log = scene.stage.proxy.log();
    assert!(!log.contains("cannot be opened"), "{log}");
    drop(held);
    // It is closed with its Service.
    scene.stage.manifests.remove("web.yaml")?;
    let ask = || client::http_get(scene.stage.master(), Stage::local(CHECKED), "/", LIMIT);
    until(ask, is_refused)
}
