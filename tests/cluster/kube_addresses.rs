//! Each address of a Service is a virtual server of its own, as in kube-proxy's IPVS
//! mode: it has its own rotation, and remembers its own clients. Two addresses of the
//! node are two, at the same node port.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use kube_tun_proxy::lab::servers::Server;
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::kube::serve;
use crate::kube_stage::{KubeStage, Place, everywhere};
use crate::world::{Family, LIMIT, Trials};

const PODS: [&str; 3] = ["pod-5", "pod-6", "pod-7"];

/// Every place that a pod of the node reaches.
const PLACES: [Place; 5] = [
    Place::ClusterIp,
    Place::Balancer,
    Place::External,
    Place::NodePort,
    Place::Bridge,
];

/// Connections that confirm affinity (kubernetes `AffinityConfirmCount`).
const CONFIRM: usize = 15;

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_addresses")
        .both("each_has_a_rotation_of_its_own", rotations)
        .both("each_remembers_its_own_clients", affinity)
        .both("affinity_ends_with_its_time_at_each", affinity_timeout)
        .both(
            "affinity_leaves_an_endpoint_that_goes_at_each",
            endpoint_goes,
        )
        .both("affinity_follows_a_fail_over_at_each", fail_over)
        .done()
}

#[derive(Clone, Copy, Debug)]
enum Over {
    Tcp,
    Udp,
}

const BOTH: [Over; 2] = [Over::Tcp, Over::Udp];

fn ask(from: &Namespace, to: SocketAddr, over: Over) -> io::Result<String> {
    let seen = match over {
        Over::Tcp => client::who(from, to, LIMIT),
        Over::Udp => client::who_udp(from, to, LIMIT),
    };
    Ok(seen?.name)
}

fn sticky(seconds: u32) -> Value {
    let config = json!({"clientIP": {"timeoutSeconds": seconds}});
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})
}

fn stage(fields: &Value) -> Result<(KubeStage, Vec<Server>), Failed> {
    let plan = ClusterBuilder::seed()
        .pod("master", PodSpec::new("one", 20))
        .pod("master", PodSpec::new("two", 21));
    let mut stage = KubeStage::of(plan.build()?)?;
    let servers = serve(&stage, &PODS)?;
    stage.serve_in_both(everywhere("web", 3, fields), &PODS);
    stage.start(&[])?;
    Ok((stage, servers))
}

fn rotations(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage(&json!({}))?;
    let from = stage.client();
    for over in BOTH {
        let turn = |place| ask(from, stage.place(family, 3, place), over);
        // Two of three each: one rotation for several would go on with the third.
        let mut seen = Vec::new();
        for place in PLACES {
            seen.push([turn(place)?, turn(place)?]);
        }
        for (place, its) in PLACES.iter().zip(&seen) {
            assert_eq!(its, &seen[0], "{place:?} {over:?}");
        }
        for (place, its) in PLACES.into_iter().zip(&seen) {
            let third = turn(place)?;
            let all = BTreeSet::from([&its[0], &its[1], &third]);
            assert_eq!(all.len(), 3, "{place:?} {over:?}");
            assert_eq!(turn(place)?, its[0], "{place:?} {over:?}");
        }
    }
    Ok(())
}

fn affinity(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage(&sticky(10_800))?;
    let others = ["one", "two"].map(|pod| stage.cluster.pod(pod).namespace());
    for over in BOTH {
        // Others come before, not as many at each place, so that the client meets
        // another real server.
        let mut mine = Vec::new();
        for (n, place) in PLACES.into_iter().enumerate() {
            let to = stage.place(family, 3, place);
            for other in &others[..n % 3] {
                ask(other, to, over)?;
            }
            mine.push(ask(stage.client(), to, over)?);
        }
        let all: BTreeSet<_> = mine[..3].iter().collect();
        assert_eq!(all.len(), 3, "{mine:?} {over:?}");
        assert_eq!(mine[3..], mine[..2], "{over:?}");
        for _ in 0..CONFIRM {
            for (place, mine) in PLACES.into_iter().zip(&mine) {
                let seen = ask(stage.client(), stage.place(family, 3, place), over)?;
                assert_eq!(seen, *mine, "{place:?} {over:?}");
            }
        }
    }
    Ok(())
}

/// What each place gives the client, over these protocols.
fn everybody(stage: &KubeStage, family: Family, over: &[Over]) -> Result<Vec<String>, Failed> {
    let mut seen = Vec::new();
    for place in PLACES {
        for &over in over {
            let to = stage.place(family, 3, place);
            let name = ask(stage.client(), to, over).map_err(|e| format!("{to} {over:?}: {e}"))?;
            seen.push(name);
        }
    }
    Ok(seen)
}

/// Over TCP: a UDP flow holds its client for as long as it is remembered itself.
fn affinity_timeout(family: Family) -> Result<(), Failed> {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let (stage, _servers) = stage(&sticky(3))?;
    let first = everybody(&stage, family, &[Over::Tcp])?;
    // Each connection begins the time anew: thrice half of it is more than all.
    for _ in 0..3 {
        thread::sleep(TIMEOUT / 2);
        assert_eq!(everybody(&stage, family, &[Over::Tcp])?, first);
    }
    thread::sleep(TIMEOUT * 3 / 2);
    // Nothing holds the client any more, and it is another's turn everywhere.
    let then = everybody(&stage, family, &[Over::Tcp])?;
    for (first, then) in first.iter().zip(&then) {
        assert_ne!(first, then);
    }
    Ok(())
}

fn endpoint_goes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage(&sticky(10_800))?;
    let first = everybody(&stage, family, &BOTH)?;
    let gone = first[0].clone();
    assert!(first.iter().all(|name| *name == gone), "{first:?}");
    let rest: Vec<_> = PODS.into_iter().filter(|pod| *pod != gone).collect();
    let endpoints = |pods: &[&str]| -> Vec<_> {
        let pods = pods.iter();
        pods.map(|pod| stage.endpoint(pod)).collect()
    };
    let wait = |pods: &[&str]| -> Result<(), Failed> {
        let at = stage.place(family, 3, Place::Balancer).to_string();
        stage.wait_for_real_servers(&at, pods)
    };
    stage.endpoints_in_both("web", &endpoints(&rest));
    wait(&rest)?;
    let then = everybody(&stage, family, &BOTH)?;
    assert!(then.iter().all(|name| *name != gone), "{then:?}");
    // It comes back, and nobody who has another goes back to it.
    stage.endpoints_in_both("web", &endpoints(&PODS));
    wait(&PODS)?;
    for _ in 0..CONFIRM {
        assert_eq!(everybody(&stage, family, &BOTH)?, then);
    }
    Ok(())
}

fn fail_over(family: Family) -> Result<(), Failed> {
    let plan = ClusterBuilder::seed();
    let mut stage = KubeStage::of(plan.build()?)?;
    let mut servers = Vec::new();
    for pod in PODS {
        servers.push((pod, serve(&stage, &[pod])?));
    }
    stage.serve_in_both(everywhere("web", 3, &sticky(10_800)), &PODS);
    stage.start(&[])?;
    let asked = |place| ask(stage.client(), stage.place(family, 3, place), Over::Tcp);
    let dead = asked(PLACES[0])?;
    for place in PLACES {
        assert_eq!(asked(place)?, dead, "{place:?}");
    }
    // It refuses and is listed still.
    servers.retain(|(pod, _)| *pod != dead);
    let mut then = Vec::new();
    for place in PLACES {
        let name = asked(place)?;
        assert_ne!(name, dead, "{place:?}");
        then.push(name);
    }
    // It serves again, and the client has moved.
    let name = PODS.into_iter().find(|pod| *pod == dead).ok_or("no pod")?;
    let _again = serve(&stage, &[name])?;
    for _ in 0..CONFIRM {
        for (place, name) in PLACES.into_iter().zip(&then) {
            assert_eq!(asked(place)?, *name, "{place:?}");
        }
    }
    Ok(())
}
