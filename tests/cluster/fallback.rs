//! `--mode fallback`: routes that come and go as the kernel carries services.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use kube_tun_proxy::admin::api::{self, Services};
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::Tcp;
use kube_tun_proxy::lab::{ProxyOptions, client};
use kube_tun_proxy::node::fallback::{LOOK, TAKE_AFTER, TAKE_OVER_AFTER, YIELD_AFTER};
use kube_tun_proxy::node::kernel_proxy::Kernel;
use libtest_mimic::{Failed, Trial};

use super::kernel::{KubeProxy, add_device, kube_proxy_table};
use super::world::{CLIENTS, Client, FAMILIES, Family, LIMIT, TUN, Trials, World, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("fallback")
        .one("comes_and_goes_with_the_kernel", comes_and_goes)
        .one("stands_by_from_the_start", stands_by)
        .one("each_change_waits_its_time_and_says_why", reasons)
        .one("a_kube_proxy_that_alternates_changes_nothing", alternates)
        .done()
}

pub(crate) fn options(world: &World) -> ProxyOptions {
    world
        .options()
        .healthz(([127, 0, 0, 1], 10_266).into())
        .argument("--mode")
        .argument("fallback")
}

/// Whether anything is routed into the TUN, of both families.
pub(crate) fn is_routed(world: &World) -> Result<bool, Failed> {
    let mut found = false;
    // Routes come and go one after the other.
    wait_until("one family like the other", || {
        let (v4, v6) = routed(world)?;
        found = v4;
        Ok(v4 == v6)
    })?;
    Ok(found)
}

/// Whether anything is routed into the TUN, for IPv4 and for IPv6.
fn routed(world: &World) -> Result<(bool, bool), Failed> {
    let node = world.node().namespace();
    let read = |file: &'static str| node.run(move || fs::read_to_string(file));
    let v4 = read("/proc/thread-self/net/route")?;
    let v6 = read("/proc/thread-self/net/ipv6_route")?;
    let range = world.cluster.service_cidr6().network().octets();
    let range: String = range.iter().map(|byte| format!("{byte:02x}")).collect();
    let v4 = v4.lines().any(|line| line.starts_with(TUN));
    let v6 = v6
        .lines()
        .any(|line| line.starts_with(&range) && line.ends_with(TUN));
    Ok((v4, v6))
}

pub(crate) fn is_served(world: &World) -> Result<(), Failed> {
    for family in FAMILIES {
        for from in CLIENTS {
            client::who(world.from(from), world.vip_at(family, 1, 80), LIMIT)?;
        }
    }
    Ok(())
}

pub(crate) fn standing(world: &World) -> Result<api::Standing, Failed> {
    let services: Services = world.ask(api::SERVICES)?;
    Ok(services.fallback.ok_or("no standing")?)
}

fn readyz(world: &World) -> Result<String, Failed> {
    let proxy = world.proxy();
    let node = world.node().namespace();
    let (status, body) = client::http_get(node, proxy.healthz(), "/readyz", LIMIT)?;
    assert_eq!(status, 200, "{body}");
    Ok(body)
}

fn log_has(world: &World, words: &str, times: usize) {
    let log = world.proxy().log();
    let found = log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(found, times, "{words:?}:\n{log}");
}

fn comes_and_goes() -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [Port::tcp("web", 80, 8000), Port::tcp("echo", 81, 8001)];
    world.serve("web", 1, &ports, &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let _echo = world.pod(0).serve_tcp(8001, Tcp::Echo)?;
    world.start_with(&options(&world))?;
    wait_until("routes", || is_routed(&world))?;
    is_served(&world)?;
    assert!(readyz(&world)?.starts_with("ready, takes part: the kernel carries no services"));
    assert!(standing(&world)?.active);

    // Neither alone is a kernel that carries: these have no IPVS to use it.
    let node = world.node().namespace().clone();
    add_device(&node, "kube-ipvs0", &["172.20.0.77".parse()?])?;
    let kube_proxy = KubeProxy::start(&node)?;
    let at = world.vip_at(Family::V4, 1, 81);
    let mut open = client::connect(world.from(Client::Pod), at, LIMIT)?;
    kube_proxy_table(&node, true)?;
    let stands_by = "fallback: stands by";
    let said = world.proxy().wait_for_log(stands_by, LIMIT);
    let said = said.ok_or("it does not stand by")?;
    assert!(said.contains("netfilter"), "{said}");
    let now = standing(&world)?;
    assert_eq!((now.active, now.changes), (false, 1));
    assert!(readyz(&world)?.starts_with("ready, stands by: kube-proxy is well"));
    let listed = world.proxy().command(&["list"])?;
    let listed = String::from_utf8(listed.stdout)?;
    assert!(listed.starts_with("Fallback stands by for "), "{listed}");

    // The flow that is open goes on, and then the routes go.
    assert!(is_routed(&world)?);
    open.write_all(b"still here")?;
    let mut answer = [0; 10];
    open.read_exact(&mut answer)?;
    assert_eq!(&answer, b"still here");
    drop(open);
    wait_until("no routes", || Ok(!is_routed(&world)?))?;

    drop(kube_proxy);
    kube_proxy_table(&node, false)?;
    wait_until("routes again", || is_routed(&world))?;
    is_served(&world)?;
    let now = standing(&world)?;
    assert_eq!((now.active, now.changes), (true, 2));
    log_has(&world, stands_by, 1);
    log_has(&world, "fallback: takes part", 2);
    Ok(())
}

fn stands_by() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let node = world.node().namespace().clone();
    let kube_proxy = KubeProxy::start(&node)?;
    kube_proxy_table(&node, true)?;
    // It is ready, beside a kube-proxy that has the usual port.
    world.start_with(&options(&world))?;
    assert!(!is_routed(&world)?);
    assert!(!standing(&world)?.active);
    drop(kube_proxy);
    kube_proxy_table(&node, false)?;
    wait_until("routes", || is_routed(&world))?;
    is_served(&world)
}

/// How much later than it must a change may come: the look after it, the look's own time
/// (kube-proxy's health has a second for each of two answers), and a busy machine.
const LATE: Duration = Duration::from_secs(6);

/// Waits for the decision, which comes after `wait` and not before, and holds everything
/// that tells of it against it: log, metrics, `/readyz`, `list`, and the JSON.
fn expect_change(
    world: &World,
    from: Instant,
    wait: Duration,
    active: bool,
    kernel: Kernel,
    changes: u64,
) -> Result<(), Failed> {
    let until = from + wait + LATE;
    let now = loop {
        let now = standing(world)?;
        if now.changes == changes {
            break now;
        }
        assert!(Instant::now() < until, "{now:?} {:?} after", from.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    };
    // What is seen first is seen up to one look later than it was made.
    let took = from.elapsed();
    assert!(took >= wait, "{took:?} is less than {wait:?}");
    assert_eq!(
        (now.active, now.reason.as_str()),
        (active, &*kernel.to_string())
    );

    let what = if active { "takes part" } else { "stands by" };
    let says = format!("ready, {what}: {kernel}");
    wait_until(
        "readiness says so",
        || Ok(readyz(world)?.starts_with(&says)),
    )?;
    let listed = world.proxy().command(&["list"])?;
    let listed = String::from_utf8(listed.stdout)?;
    let first = listed.lines().next().unwrap_or_default();
    assert!(
        first.starts_with(&format!("Fallback {what} for ")),
        "{first}"
    );
    assert!(first.contains(&kernel.to_string()), "{first}");
    let log = world.proxy().log();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("fallback: "))
        .collect();
    assert_eq!(said.len() as u64, changes + 1, "{said:?}");
    let last = said.last().copied().unwrap_or_default();
    assert!(last.contains(&format!("fallback: {what}")), "{last}");
    assert!(last.contains(&kernel.to_string()), "{last}");

    let at = world.proxy().metrics();
    let (status, text) = client::http_get(world.node().namespace(), at, "/metrics", LIMIT)?;
    assert_eq!(status, 200);
    let mut expected = vec![
        format!("kube_tun_proxy_fallback_active {}", u8::from(active)),
        format!("kube_tun_proxy_fallback_changes_total {changes}"),
    ];
    expected.extend(Kernel::ALL.iter().map(|one| {
        let is = u8::from(*one == kernel);
        let reason = one.as_str();
        format!("kube_tun_proxy_fallback_reason{{reason=\"{reason}\"}} {is}")
    }));
    for line in expected {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    Ok(())
}

fn reasons() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let node = world.node().namespace().clone();
    let start = Instant::now();
    world.start_with(&options(&world))?;
    let at_once = Duration::ZERO;
    expect_change(&world, start, at_once, true, Kernel::Absent, 0)?;

    // kube-proxy comes: well, and its rules.
    let came = Instant::now();
    kube_proxy_table(&node, true)?;
    let kube_proxy = KubeProxy::start(&node)?;
    let carries = Kernel::CarriesByNetfilter;
    // The last look may have been just before.
    expect_change(&world, came, YIELD_AFTER, false, carries, 1)?;

    // It loses its rules, and stays.
    let gone = Instant::now();
    kube_proxy_table(&node, false)?;
    expect_change(&world, gone, TAKE_AFTER, true, Kernel::Empty, 2)?;

    // It writes them anew. That it did not last is held against it.
    let back = Instant::now();
    kube_proxy_table(&node, true)?;
    expect_change(&world, back, 2 * YIELD_AFTER, false, carries, 3)?;

    // It ends, and leaves its rules behind.
    let ended = Instant::now();
    drop(kube_proxy);
    expect_change(&world, ended, TAKE_OVER_AFTER, true, Kernel::Orphaned, 4)
}

/// Well and not well, from one look to the next: neither a proxy that stands by takes part
/// nor one that takes part stands by.
fn alternates() -> Result<(), Failed> {
    for active in [false, true] {
        let mut world = World::other()?;
        world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
        let node = world.node().namespace().clone();
        kube_proxy_table(&node, true)?;
        let kube_proxy = KubeProxy::start(&node)?;
        kube_proxy.set_well(!active);
        world.start_with(&options(&world))?;
        let before = standing(&world)?;
        assert_eq!((before.active, before.changes), (active, 0));
        // Longer than the kernel must carry for it to leave.
        let until = Instant::now() + YIELD_AFTER + Duration::from_secs(4);
        let mut well = !active;
        while Instant::now() < until {
            well = !well;
            kube_proxy.set_well(well);
            std::thread::sleep(LOOK);
        }
        let after = standing(&world)?;
        assert_eq!((after.active, after.changes), (active, 0));
        assert_eq!(is_routed(&world)?, active);
        log_has(&world, "fallback: ", 1);
    }
    Ok(())
}
