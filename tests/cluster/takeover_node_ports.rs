//! Hand-overs of what is reached from outside: node ports and health check node ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_tun_proxy::lab::servers::Tcp;
use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::{Failed, Trial};

use crate::node_port_stage::{PORT, Stage, is_refused, until, web};
use crate::takeover_stage::{Scene, again_and_again, conversation, newcomers};
use crate::world::{LIMIT, Trials, joined};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("takeover_node_ports")
        .one("connections_that_stay_are_counted", counted)
        .one("health_checks_are_never_refused", health_checks)
        .one("whoever_is_not_let_in_hears_nothing", restricted)
        .one("source_ranges_hold", source_ranges)
        .one("flows_without_endpoints_go_on", without_endpoints)
        .one("routes_that_fixed_routes_leave_are_named", left_routes)
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
    // An old process without a flow would end while it answers.
    let mut flows = vec![held(&scene)?];
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
        flows.push(held(&scene)?);
    }
    finish.store(true, Ordering::Relaxed);
    for one in asking {
        assert!(joined(one)? > 10);
    }
    let log = scene.stage.proxy.log();
    assert!(!log.contains("cannot be opened"), "{log}");
    drop(flows);
    // It is closed with its Service.
    scene.stage.manifests.remove("web.yaml")?;
    let ask = || client::http_get(scene.stage.master(), Stage::local(CHECKED), "/", LIMIT);
    until(ask, is_refused)
}

/// Connects all the time, which the kernel must not answer. Returns how often.
fn outsider(
    from: &Namespace,
    to: SocketAddr,
    finish: &Arc<AtomicBool>,
) -> JoinHandle<Result<usize, String>> {
    let from = from.clone();
    again_and_again(finish, move |count| {
        let seen = client::connect(&from, to, SILENCE).map_err(|error| error.kind());
        if matches!(seen, Err(ErrorKind::TimedOut)) {
            Ok(())
        } else {
            Err(format!("{} to {to}: {seen:?} after {count}", from.name()))
        }
    })
}

fn hears_nothing(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    let ask = || client::connect(from, to, SILENCE).map_err(|error| error.kind());
    until(ask, |seen| matches!(seen, Err(ErrorKind::TimedOut)))
}

fn is_served(from: &Namespace, to: SocketAddr) -> Result<(), Failed> {
    until(|| client::connect(from, to, SILENCE), Result::is_ok)
}

/// Policy Local without an endpoint on this node: this node and its pods alone.
fn restricted() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    let open = web(&scene.stage.cluster, &["pod-5"]);
    let mut local = open.clone();
    local.external_local = true;
    scene.stage.write(&local)?;
    let (outside, master) = (
        scene.stage.cluster.outside().clone(),
        scene.stage.master().clone(),
    );
    let places = [scene.stage.at(PORT), scene.stage.at6(PORT)];
    for to in places {
        hears_nothing(&outside, to)?;
    }
    let finish = Arc::new(AtomicBool::new(false));
    let outsiders = places.map(|to| outsider(&outside, to, &finish));
    let insiders = [
        newcomers(&master, Stage::local(PORT), &finish),
        newcomers(&master, places[0], &finish),
        newcomers(&master, places[1], &finish),
    ];
    for _ in 0..2 {
        scene.take_over(&[])?;
    }
    // Some more of both.
    thread::sleep(2 * SILENCE);
    finish.store(true, Ordering::Relaxed);
    for one in outsiders {
        assert!(joined(one)? > 1);
    }
    for one in insiders {
        assert!(joined(one)? > 10);
    }
    // The filter is the new process's to change.
    scene.stage.write(&open)?;
    for to in places {
        is_served(&outside, to)?;
    }
    scene.take_over(&[])?;
    scene.stage.write(&local)?;
    for to in places {
        hears_nothing(&outside, to)?;
    }
    is_served(&master, Stage::local(PORT))
}

/// At a load balancer's IP that the node has itself.
fn source_ranges() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    let cluster = &scene.stage.cluster;
    let own = IpAddr::from(cluster.node("master").bridge_address());
    let to = SocketAddr::new(own, 8443);
    let (client, endpoint) = (
        cluster.pod("client").address(),
        cluster.pod("pod-5").address(),
    );
    let (pod, master) = (scene.pod().clone(), scene.stage.master().clone());
    let write = |scene: &Scene, range: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: balanced}}\nspec:\n  \
             type: LoadBalancer\n  clusterIP: 10.0.9.9\n  clusterIPs: [10.0.9.9]\n  \
             ipFamilies: [IPv4]\n  loadBalancerSourceRanges: ['{range}']\n  ports:\n  \
             - {{name: tcp, protocol: TCP, port: 8443}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: '{own}'}}]}}}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: balanced-ipv4\n  labels: {{kubernetes.io/service-name: balanced}}\n\
             addressType: IPv4\nports:\n- {{name: tcp, protocol: TCP, port: 80}}\n\
             endpoints:\n- addresses: ['{endpoint}']\n"
        );
        scene.stage.manifests.write("balanced.yaml", &text)
    };
    write(&scene, &format!("{client}/32"))?;
    is_served(&pod, to)?;
    hears_nothing(&master, to)?;
    let finish = Arc::new(AtomicBool::new(false));
    let outsider = outsider(&master, to, &finish);
    let insider = newcomers(&pod, to, &finish);
    for _ in 0..2 {
        scene.take_over(&[])?;
    }
    thread::sleep(2 * SILENCE);
    finish.store(true, Ordering::Relaxed);
    assert!(joined(outsider)? > 1);
    assert!(joined(insider)? > 10);
    write(&scene, "192.0.2.0/24")?;
    hears_nothing(&pod, to)?;
    write(&scene, "0.0.0.0/0")?;
    is_served(&pod, to)?;
    is_served(&master, to)
}

/// UDP flows of a service that has lost its endpoints, by a listener for them alone.
fn without_endpoints() -> Result<(), Failed> {
    let arguments = ["--drain-timeout", "60s"];
    let mut scene = Scene::new(&["pod-5", "pod-6"], &Tcp::Echo, &arguments)?;
    scene.stage.write(&web(&scene.stage.cluster, &["pod-5"]))?;
    let (outside, to) = (scene.stage.cluster.outside().clone(), scene.stage.at(PORT));
    until(
        || scene.counts().ok().map(|counts| counts.len()),
        |count| *count == Some(1),
    )?;
    let finish = Arc::new(AtomicBool::new(false));
    let talk = conversation(&outside, to, &finish)?;
    let none = web(&scene.stage.cluster, &[]);
    scene.stage.write(&none)?;
    let refused = || {
        until(|| client::connect(&outside, to, LIMIT), is_refused)?;
        until(
            || client::who_udp(&outside, to, SILENCE).map(|seen| seen.name),
            is_refused,
        )
    };
    refused()?;
    for _ in 0..2 {
        scene.take_over(&arguments)?;
        refused()?;
        let flows = scene.flows()?;
        assert!(
            flows.iter().any(|flow| flow.virtual_address == to),
            "{flows:?}"
        );
    }
    thread::sleep(SILENCE);
    finish.store(true, Ordering::Relaxed);
    assert!(joined(talk)? > 10);
    // Flows to whom is not there any more end when another serves.
    scene.stage.write(&web(&scene.stage.cluster, &["pod-6"]))?;
    let ask = || client::who_udp(&outside, to, SILENCE).map(|seen| seen.name);
    until(ask, |name| matches!(name, Ok(name) if name == "pod-6"))?;
    let flows = || scene.flows().map(|flows| flows.len());
    until(flows, |count| matches!(count, Ok(1)))
}

/// Set by a process without the option, and no one's to remove.
fn left_routes() -> Result<(), Failed> {
    let mut scene = Scene::new(&["pod-5"], &Tcp::Echo, &[])?;
    let mut service = web(&scene.stage.cluster, &["pod-5"]);
    let external: IpAddr = "198.51.100.7".parse()?;
    service.external_ips = vec![external];
    scene.stage.write(&service)?;
    let (pod, to) = (scene.pod().clone(), SocketAddr::new(external, 80));
    is_served(&pod, to)?;
    scene.take_over(&["--fixed-routes"])?;
    let told = scene.stage.proxy.wait_for_log("routes that stay", LIMIT);
    let told = told.ok_or_else(|| scene.stage.proxy.log())?;
    for part in ["198.51.100.7/32", "--fixed-routes", "ip route del"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.contains("10.0.0.0/16"), "{told}");
    is_served(&pod, to)?;
    let log = scene.stage.proxy.log();
    assert!(!log.contains("a route cannot be removed"), "{log}");
    // Between two with the option it is the same.
    scene.take_over(&["--fixed-routes"])?;
    assert!(scene.stage.proxy.log().contains("198.51.100.7/32"));
    is_served(&pod, to)
}
