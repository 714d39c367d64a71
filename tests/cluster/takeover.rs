//! `run --takeover`: one proxy goes, the next one comes, and nobody notices.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::servers::Tcp;
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use crate::node_port_stage::{PORT, eventually, is_reset};
use crate::takeover_stage::{
    Scene, Transfer, conversation, health_all_the_time, newcomers, pinged, some_transfers,
};
use crate::world::{LIMIT, Trials, joined};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("takeover")
        .one("two_hundred_connections_go_on", under_load)
        .one("a_device_with_other_workers_is_taken_over", other_workers)
        .one("twice_in_a_row", twice)
        .one("nobody_to_take_over_from", nobody)
        .one("the_new_process_fails_before_it_reads", new_fails)
        .one("the_new_process_is_killed_afterwards", new_killed)
        .one("the_old_process_is_killed_afterwards", old_killed)
        .one("one_hand_over_at_a_time", one_at_a_time)
        .one("schedulers_go_on_where_they_were", schedulers)
        .one("a_tuple_is_used_again", tuple_again)
        .done()
}

/// Connections through the TUN and through node ports, from the node, a pod and outside,
/// all in mid-transfer; conversations by UDP; and new connections all the time.
fn under_load() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5", "pod-6"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let finish = Arc::new(AtomicBool::new(false));
    let outside = scene.stage.cluster.outside().clone();
    let (pod, master) = (scene.pod().clone(), scene.stage.master().clone());
    let (vip, node_port) = (Scene::vip(), scene.stage.at(PORT));
    let mut transfers = Vec::new();
    for number in 0..200 {
        let (from, to) = match number % 4 {
            0 => (&outside, node_port),
            1 => (&master, vip),
            _ => (&pod, vip),
        };
        let stream = client::connect(from, to, LIMIT)?;
        transfers.push(Transfer::start(stream, &finish)?);
    }
    let conversations = [
        conversation(&pod, vip, &finish)?,
        conversation(&master, vip, &finish)?,
        conversation(&outside, node_port, &finish)?,
    ];
    let newcomers = [
        newcomers(&pod, vip, &finish),
        newcomers(&master, vip, &finish),
        newcomers(&outside, node_port, &finish),
    ];
    let health = health_all_the_time(&scene, &finish);
    scene.take_over(&["--workers", "2", "--drain-timeout", "60s"])?;
    // Long enough for every connection to be heard of again.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.former[0].status(), None, "{}", scene.former[0].log());
    finish.store(true, Ordering::Relaxed);
    for one in newcomers {
        assert!(joined(one)? > 10);
    }
    for one in conversations {
        assert!(joined(one)? > 10);
    }
    assert!(joined(health)? > 0);
    transfers.into_iter().try_for_each(Transfer::end)?;
    let old = &scene.former[0];
    // Nothing holds the old one but the conversations through the TUN, which have no end.
    // The first signal is the one that a supervisor sends: flows go on.
    old.signal(Signal::SIGTERM)?;
    let goes_on = old.wait_for_log("flows go on to drain", LIMIT);
    // On a slow machine they have been silent for so long that they have ended.
    assert!(goes_on.is_some() || old.status().is_some(), "{}", old.log());
    old.signal(Signal::SIGTERM)?;
    let status = old.wait(LIMIT).ok_or("the old one runs")?;
    assert_eq!(status.code(), Some(0), "{}", old.log());
    // And device, routes, admin socket are the new one's.
    let (from, to) = (scene.pod(), Scene::vip());
    client::connect(from, to, LIMIT)?;
    client::connect(scene.stage.cluster.outside(), node_port, LIMIT)?;
    scene.flows()?;
    Ok(())
}

/// More workers than before, and then fewer.
fn other_workers() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    let finish = Arc::new(AtomicBool::new(false));
    let mut transfers = some_transfers(&scene, &finish)?;
    for workers in ["4", "1", "3"] {
        scene.take_over(&["--workers", workers])?;
        pinged(&scene)?;
        transfers.extend(some_transfers(&scene, &finish)?);
    }
    thread::sleep(Duration::from_millis(300));
    finish.store(true, Ordering::Relaxed);
    transfers.into_iter().try_for_each(Transfer::end)
}

/// The third process reads for the first: its packets go through the second.
fn twice() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let finish = Arc::new(AtomicBool::new(false));
    let first = some_transfers(&scene, &finish)?;
    scene.take_over(&["--workers", "2", "--drain-timeout", "60s"])?;
    let second = some_transfers(&scene, &finish)?;
    scene.take_over(&["--workers", "2", "--drain-timeout", "60s"])?;
    let third = some_transfers(&scene, &finish)?;
    thread::sleep(Duration::from_millis(500));
    pinged(&scene)?;
    assert!(scene.former.iter().all(|old| old.status().is_none()));
    finish.store(true, Ordering::Relaxed);
    for transfer in first.into_iter().chain(second).chain(third) {
        transfer.end()?;
    }
    // Each ends with its last flow.
    for old in &scene.former {
        let status = old
            .wait(LIMIT)
            .ok_or_else(|| format!("it runs:\n{}", old.log()))?;
        assert_eq!(status.code(), Some(0), "{}", old.log());
    }
    pinged(&scene)
}

/// Then it is an ordinary start.
fn nobody() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    scene.stage.proxy.kill()?;
    let new = scene.spawn(&[])?;
    new.wait_until_ready()?;
    assert!(new.log().contains("no proxy runs"), "{}", new.log());
    scene.stage.proxy = new;
    pinged(&scene)
}

/// The new process is stopped when it has got the flows and before it says that it
/// reads: here by being told so.
fn new_fails() -> Result<(), Failed> {
    let scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    let finish = Arc::new(AtomicBool::new(false));
    let transfers = some_transfers(&scene, &finish)?;
    let newcomers = newcomers(scene.pod(), Scene::vip(), &finish);
    let mut new = impostor::connect(&scene.socket)?;
    impostor::say(&mut new, r#"{"protocol":1,"version":"trial","pid":1}"#)?;
    assert!(impostor::hear(&mut new)?.contains("Offer"));
    impostor::say(&mut new, r#""Take""#)?;
    assert!(impostor::hear(&mut new)?.contains("flows"));
    // It has the queues now, and dies.
    drop(new);
    let failed = scene
        .stage
        .proxy
        .wait_for_log("the hand-over has failed", LIMIT);
    assert!(failed.is_some(), "{}", scene.stage.proxy.log());
    pinged(&scene)?;
    // One that never comes back to take.
    let mut new = impostor::connect(&scene.socket)?;
    impostor::say(&mut new, r#"{"protocol":1,"version":"trial","pid":1}"#)?;
    assert!(impostor::hear(&mut new)?.contains("Offer"));
    drop(new);
    let failed = scene
        .stage
        .proxy
        .wait_for_log("the new process has failed", LIMIT);
    assert!(failed.is_some(), "{}", scene.stage.proxy.log());
    // One of another version.
    let mut new = impostor::connect(&scene.socket)?;
    impostor::say(&mut new, r#"{"protocol":99,"version":"trial","pid":1}"#)?;
    let answer = impostor::hear(&mut new)?;
    assert!(
        answer.contains("Refused") && answer.contains("protocol"),
        "{answer}"
    );
    pinged(&scene)?;
    finish.store(true, Ordering::Relaxed);
    assert!(joined(newcomers)? > 0);
    transfers.into_iter().try_for_each(Transfer::end)
}

/// The old one serves the flows it has to their end.
fn new_killed() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let finish = Arc::new(AtomicBool::new(false));
    let transfers = some_transfers(&scene, &finish)?;
    scene.take_over(&[])?;
    thread::sleep(Duration::from_millis(300));
    scene.stage.proxy.kill()?;
    let old = &scene.former[0];
    assert!(old.wait_for_log("the new process is gone", LIMIT).is_some());
    thread::sleep(Duration::from_millis(500));
    finish.store(true, Ordering::Relaxed);
    transfers.into_iter().try_for_each(Transfer::end)?;
    let status = old.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", old.log());
    Ok(())
}

/// Its flows are lost, and nothing else is.
fn old_killed() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let mut lost = client::connect(scene.pod(), Scene::vip(), LIMIT)?;
    lost.write_all(b"ping")?;
    lost.read_exact(&mut [0; 4])?;
    scene.take_over(&[])?;
    let finish = Arc::new(AtomicBool::new(false));
    let transfers = some_transfers(&scene, &finish)?;
    lost.write_all(b"ping")?;
    lost.read_exact(&mut [0; 4])?;
    scene.former[0].kill()?;
    let noticed = scene
        .stage
        .proxy
        .wait_for_log("the former process has ended", LIMIT);
    assert!(noticed.is_some(), "{}", scene.stage.proxy.log());
    // Its last ACK may have been answered with RST already.
    let written = lost.write_all(b"ping").map(|()| lost);
    assert!(is_reset(written));
    pinged(&scene)?;
    finish.store(true, Ordering::Relaxed);
    transfers.into_iter().try_for_each(Transfer::end)
}

/// While one new process is being programmed a second one is refused. One that asks a
/// proxy which ends waits for that.
fn one_at_a_time() -> Result<(), Failed> {
    let scene = Scene::new(&["pod-5"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let mut first = impostor::connect(&scene.socket)?;
    impostor::say(&mut first, r#"{"protocol":1,"version":"trial","pid":1}"#)?;
    assert!(impostor::hear(&mut first)?.contains("Offer"));
    let second = scene.spawn(&[])?;
    let status = second.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(1));
    assert!(second.log().contains("refuses"), "{}", second.log());
    drop(first);
    let mut held = client::connect(scene.pod(), Scene::vip(), LIMIT)?;
    held.write_all(b"ping")?;
    held.read_exact(&mut [0; 4])?;
    scene.stage.proxy.signal(Signal::SIGTERM)?;
    assert!(
        scene
            .stage
            .proxy
            .wait_for_log("flows drain", LIMIT)
            .is_some()
    );
    let mut scene = scene;
    let third = scene.spawn(&[])?;
    let waits = third.wait_for_log("about to end: this one waits", LIMIT);
    assert!(waits.is_some(), "{}", third.log());
    assert_eq!(third.status(), None);
    drop(held);
    let status = scene.stage.proxy.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(0), "{}", scene.stage.proxy.log());
    third.wait_until_ready()?;
    scene.stage.proxy = third;
    pinged(&scene)
}

/// A rotation over three goes on with the one whose turn it is.
fn schedulers() -> Result<(), Failed> {
    let pods = ["pod-5", "pod-6", "pod-7"];
    let mut scene = Scene::new(&pods, &Tcp::Who(String::new()), &[])?;
    let mut seen = Vec::new();
    for turn in 0..12 {
        if turn % 4 == 1 {
            scene.take_over(&[])?;
        }
        seen.push(client::who(scene.pod(), Scene::vip(), LIMIT)?.name);
    }
    for turn in 3..12 {
        assert_eq!(seen[turn], seen[turn - 3], "{seen:?}");
    }
    assert_ne!(seen[0], seen[1], "{seen:?}");
    assert_ne!(seen[1], seen[2], "{seen:?}");
    Ok(())
}

/// Reset by the client through the old process, and opened again from the same port.
fn tuple_again() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &["--drain-timeout", "60s"])?;
    let held = client::connect(scene.pod(), Scene::vip(), LIMIT)?;
    let connect = || super::sockets::connect_from_port(scene.pod(), 45_454, Scene::vip(), LIMIT);
    let mut stream = connect()?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    scene.take_over(&[])?;
    for _ in 0..3 {
        stream.write_all(b"ping")?;
        stream.read_exact(&mut [0; 4])?;
        // Without RST the port would be in TIME_WAIT at the client's own kernel.
        super::sockets::reset(stream)?;
        let connect =
            || super::sockets::connect_from_port(scene.pod(), 45_454, Scene::vip(), LIMIT);
        stream = eventually(connect, Result::is_ok)??;
    }
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    drop(held);
    Ok(())
}

/// A new process as far as its words go.
mod impostor {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(super::LIMIT))?;
        stream.write_all(
            b"GET /takeover HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
              Upgrade: kube-tun-proxy-takeover\r\n\r\n",
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&head)
        );
        Ok(stream)
    }

    pub(super) fn say(stream: &mut UnixStream, document: &str) -> io::Result<()> {
        let length = u32::try_from(document.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_le_bytes())?;
        stream.write_all(&[0; 4])?;
        stream.write_all(document.as_bytes())
    }

    /// The descriptors that come with it are closed by the kernel, since nothing takes
    /// them.
    pub(super) fn hear(stream: &mut UnixStream) -> io::Result<String> {
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let mut document = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
        stream.read_exact(&mut document)?;
        let descriptors = u32::from_le_bytes([e, f, g, h]) as usize;
        stream.read_exact(&mut vec![0; descriptors.div_ceil(253)])?;
        String::from_utf8(document).map_err(io::Error::other)
    }
}
