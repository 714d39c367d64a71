//! Hand-overs between processes with fewer privileges, in fallback mode, and with
//! metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Server, Tcp};
use kube_tun_proxy::lab::{ProxyOptions, ProxyProcess, client};
use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use super::fallback::{is_routed, is_served, standing};
use super::init::{BIND, NONE, Place, threads};
use super::kernel::{KubeProxy, kube_proxy_table};
use super::world::{BINARY, Client, Family, LIMIT, Trials, World, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("takeover")
        .one("without_privilege_on_a_prepared_device", prepared)
        .one("with_fixed_routes", fixed_routes)
        .one("in_fallback_mode_the_routes_stay", in_fallback)
        .one("a_successor_that_stands_by_waits_for_flows", stands_by)
        .one("metrics_are_the_new_ones", metrics)
        .done()
}

/// Port 80 says who answers, port 81 echoes.
pub(crate) fn serve(world: &World) -> Result<Vec<Server>, Failed> {
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("echo", 81, 8001)];
    world.serve("web", 1, &ports, &[world.pod(0)])?;
    let mut servers = world.who_servers(8000)?;
    servers.push(world.pod(0).serve_tcp(8001, Tcp::Echo)?);
    Ok(servers)
}

/// A connection that is open during the hand-over.
fn open(world: &World) -> Result<TcpStream, Failed> {
    let at = world.vip_at(Family::V4, 1, 81);
    let mut open = client::connect(world.from(Client::Pod), at, LIMIT)?;
    echoes(&mut open)?;
    Ok(open)
}

fn echoes(open: &mut TcpStream) -> Result<(), Failed> {
    open.write_all(b"still here")?;
    let mut answer = [0; 10];
    open.read_exact(&mut answer)?;
    assert_eq!(&answer, b"still here");
    Ok(())
}

/// A new process takes over; the former one is returned.
fn take_over(world: &mut World, options: &ProxyOptions) -> Result<ProxyProcess, Failed> {
    let options = options.clone().argument("--takeover");
    let node = world.node().namespace();
    let new = ProxyProcess::spawn(node, Path::new(BINARY), &options)?;
    if new.wait_for_log("taken over: ", LIMIT).is_none() {
        let old = world.proxy().log();
        return Err(format!("not taken over:\n{}\nthe old one:\n{old}", new.log()).into());
    }
    new.wait_until_ready()?;
    Ok(std::mem::replace(world.proxy_mut(), new))
}

/// Where both processes are asked.
fn socket() -> Result<(TempDir, PathBuf), Failed> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("admin.sock");
    Ok((directory, socket))
}

/// The former process ends by itself once its last flow has.
fn ends(mut open: TcpStream, old: &ProxyProcess) -> Result<(), Failed> {
    echoes(&mut open)?;
    assert_eq!(old.status(), None, "{}", old.log());
    drop(open);
    let status = old.wait(LIMIT).ok_or("the old one runs")?;
    assert_eq!(status.code(), Some(0), "{}", old.log());
    Ok(())
}

fn prepared() -> Result<(), Failed> {
    let mut place = Place::new()?;
    let _servers = serve(&place.world)?;
    place.prepare(&place.cidrs())?;
    place.open_directory()?;
    let options = place.options();
    place.world.start_with(&options)?;
    let open = open(&place.world)?;
    let old = take_over(&mut place.world, &options)?;
    for (name, capabilities) in threads(place.world.proxy())? {
        assert_eq!(capabilities, NONE, "{name}");
    }
    is_served(&place.world)?;
    ends(open, &old)?;
    is_served(&place.world)
}

fn fixed_routes() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = serve(&world)?;
    let (_directory, socket) = socket()?;
    let options = world.options().admin_socket(&socket);
    let options = options.argument("--fixed-routes");
    world.start_with(&options)?;
    let open = open(&world)?;
    let old = take_over(&mut world, &options)?;
    for (name, capabilities) in threads(world.proxy())? {
        assert!([NONE, BIND].contains(&capabilities.as_str()), "{name}");
    }
    is_served(&world)?;
    ends(open, &old)?;
    is_served(&world)
}

fn falling_back(world: &World, socket: &Path) -> ProxyOptions {
    let options = super::fallback::options(world);
    options.admin_socket(socket)
}

fn in_fallback() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = serve(&world)?;
    let (_directory, socket) = socket()?;
    let options = falling_back(&world, &socket);
    world.start_with(&options)?;
    wait_until("routes", || is_routed(&world))?;
    let open = open(&world)?;
    let old = take_over(&mut world, &options)?;
    assert!(is_routed(&world)?);
    let log = world.proxy().log();
    assert!(!log.contains("route removed"), "{log}");
    assert!(standing(&world)?.active);
    is_served(&world)?;
    ends(open, &old)?;

    // The routes are the new one's to take away.
    let node = world.node().namespace().clone();
    let _kube_proxy = KubeProxy::start(&node)?;
    kube_proxy_table(&node, true)?;
    wait_until("no routes", || Ok(!is_routed(&world)?))
}

fn stands_by() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = serve(&world)?;
    let (_directory, socket) = socket()?;
    // Whatever the kernel does.
    let always = world.options().admin_socket(&socket);
    let always = always.healthz(([127, 0, 0, 1], 10_266).into());
    world.start_with(&always)?;
    let open = open(&world)?;
    let node = world.node().namespace().clone();
    let _kube_proxy = KubeProxy::start(&node)?;
    kube_proxy_table(&node, true)?;
    let options = falling_back(&world, &socket);
    let old = take_over(&mut world, &options)?;
    assert!(!standing(&world)?.active);
    assert!(is_routed(&world)?);
    ends(open, &old)?;
    wait_until("no routes", || Ok(!is_routed(&world)?))
}

fn metrics() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = serve(&world)?;
    let (_directory, socket) = socket()?;
    let at = ([127, 0, 0, 1], 20_249).into();
    let options = world.options().admin_socket(&socket).metrics(at);
    world.start_with(&options)?;
    let started = |world: &World| -> Result<String, Failed> {
        let node = world.node().namespace();
        let (status, text) = client::http_get(node, at, "/metrics", LIMIT)?;
        assert_eq!(status, 200, "{text}");
        let mut lines = text.lines();
        let line = lines.find(|line| line.starts_with("process_start_time_seconds "));
        Ok(line.ok_or("no start time")?.to_owned())
    };
    let first = started(&world)?;
    let open = open(&world)?;
    let old = take_over(&mut world, &options)?;
    let second = started(&world)?;
    assert_ne!(second, first);
    // Only one of the two is asked.
    for _ in 0..20 {
        assert_eq!(started(&world)?, second);
    }
    ends(open, &old)?;
    assert_eq!(started(&world)?, second);
    Ok(())
}
