//! Hints of EndpointSlices over the wire: which endpoints a client of this node's zone
//! meets (kubernetes `CategorizeEndpoints`; `test/e2e/network/traffic_distribution.go`).
//! `spec.trafficDistribution` tells the controller what to hint; a proxy goes by the
//! hints alone.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};

use kube_tun_proxy::lab::servers::Server;
use kube_tun_proxy::lab::{ClusterBuilder, Namespace, PodSpec, client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::kube::serve;
use crate::kube_stage::{KubeStage, Place, everywhere, node_object};
use crate::world::{FAMILIES, LIMIT, Trials};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_topology")
        .one("hints_for_zones", zones)
        .one("hints_for_nodes", nodes)
        .one("the_zone_of_the_node_changes", zone_changes)
        .one("policies_local_know_no_hints", policies)
        .done()
}

const ALL: [&str; 4] = ["here", "pod-5", "pod-6", "pod-7"];

/// Places at which policy Cluster is in force.
const PLACES: [Place; 3] = [Place::ClusterIp, Place::NodePort, Place::Balancer];

/// A cluster with a Service of four endpoints.
struct Scene {
    stage: KubeStage,
    /// Every one that has asked: from a port that is used again it would be the flow of
    /// before, which goes on.
    sockets: RefCell<Vec<UdpSocket>>,
    _servers: Vec<Server>,
}

fn scene(zone: Option<&str>, fields: &Value) -> Result<Scene, Failed> {
    let plan = ClusterBuilder::seed().pod("master", PodSpec::new("here", 20));
    let mut stage = KubeStage::of(plan.build()?)?;
    let servers = serve(&stage, &ALL)?;
    set_zone(&stage, zone);
    stage.serve_in_both(everywhere("web", 3, fields), &ALL);
    stage.start(&[])?;
    Ok(Scene {
        stage,
        sockets: RefCell::default(),
        _servers: servers,
    })
}

fn set_zone(stage: &KubeStage, zone: Option<&str>) {
    let mut node = node_object(stage.cluster.node("master"));
    if let Some(zone) = zone {
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
    }
    stage.api.apply("nodes", node);
}

/// An endpoint with hints: `z:a n:master`, letters behind one another are several.
fn hinted(stage: &KubeStage, pod: &str, hints: &str) -> Value {
    let mut endpoint = stage.endpoint(pod);
    for hint in hints.split_whitespace() {
        let (kind, name) = hint.split_at(2);
        let key = if kind == "z:" { "forZones" } else { "forNodes" };
        let list = &mut endpoint["hints"][key];
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            list.push(json!({"name": name}));
        }
    }
    endpoint
}

fn unready(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    endpoint
}

fn terminating(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    endpoint
}

impl Scene {
    /// Whom a client meets there, over TCP and UDP.
    fn meets(&self, from: &Namespace, to: SocketAddr) -> Result<Vec<String>, Failed> {
        let mut names = [BTreeSet::new(), BTreeSet::new()];
        for _ in 0..ALL.len() {
            names[0].insert(client::who(from, to, LIMIT)?.name);
            let socket = client::udp_socket(from, to, LIMIT)?;
            socket.send(b"who?")?;
            let mut answer = [0; 200];
            let length = socket.recv(&mut answer)?;
            let text = String::from_utf8_lossy(&answer[..length]);
            names[1].insert(client::Seen::parse(&text)?.name);
            self.sockets.borrow_mut().push(socket);
        }
        let [tcp, udp] = names;
        assert_eq!(tcp, udp, "{to}");
        Ok(tcp.into_iter().collect())
    }

    /// The node and a pod of it meet these and no others, in both families.
    fn expect(&self, expected: &[&str]) -> Result<(), Failed> {
        let stage = &self.stage;
        for family in FAMILIES {
            // Of all its addresses the last to be programmed.
            let at = stage.place(family, 3, Place::External).to_string();
            stage.wait_for_real_servers(&at, expected)?;
            for place in PLACES {
                for from in [stage.master(), stage.client()] {
                    let met = self.meets(from, stage.place(family, 3, place))?;
                    assert_eq!(met, expected, "{place:?} {family:?}");
                }
            }
        }
        Ok(())
    }
}

fn zones() -> Result<(), Failed> {
    let scene = scene(Some("a"), &json!({}))?;
    let stage = &scene.stage;
    let with = |hints: [&str; 4]| -> Vec<Value> {
        let pods = ALL.into_iter().zip(hints);
        pods.map(|(pod, hints)| hinted(stage, pod, hints)).collect()
    };
    scene.expect(&ALL)?;
    for distribution in [
        json!({"trafficDistribution": "PreferClose"}),
        json!({"trafficDistribution": "PreferSameZone"}),
        json!({}),
    ] {
        stage
            .api
            .apply("services", everywhere("web", 3, &distribution));
        stage.endpoints_in_both("web", &with(["z:a", "z:b", "z:c", "z:a"]));
        scene.expect(&["here", "pod-7"])?;
        // One is without: hints of a cluster that is half way are not followed.
        stage.endpoints_in_both("web", &with(["z:a", "z:b", "", "z:a"]));
        scene.expect(&ALL)?;
    }
    stage.endpoints_in_both("web", &with(["z:b", "z:a z:b", "z:b z:c", "z:a"]));
    scene.expect(&["pod-5", "pod-7"])?;
    // None is meant for this zone.
    stage.endpoints_in_both("web", &with(["z:b", "z:b", "z:c", "z:d"]));
    scene.expect(&ALL)?;
    // The one that is, is not ready.
    let mut endpoints = with(["z:a", "z:b", "z:b", "z:c"]);
    endpoints[0] = unready(endpoints[0].take());
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&["pod-5", "pod-6", "pod-7"])?;
    // What is not ready need have no hints.
    let mut endpoints = with(["", "z:a", "z:b", ""]);
    endpoints[0] = unready(endpoints[0].take());
    endpoints[3] = terminating(endpoints[3].take());
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&["pod-5"])?;
    // The last that serve do so wherever they are.
    let endpoints = with(["z:a", "z:b", "z:c", "z:a"]);
    let endpoints: Vec<_> = endpoints.into_iter().map(terminating).collect();
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&ALL)
}

fn nodes() -> Result<(), Failed> {
    let scene = scene(Some("a"), &json!({"trafficDistribution": "PreferSameNode"}))?;
    let stage = &scene.stage;
    let with = |hints: [&str; 4]| -> Vec<Value> {
        let pods = ALL.into_iter().zip(hints);
        pods.map(|(pod, hints)| hinted(stage, pod, hints)).collect()
    };
    let complete = [
        "z:a n:master",
        "z:a n:node2",
        "z:b n:node2",
        "z:a z:c n:node2",
    ];
    stage.endpoints_in_both("web", &with(complete));
    scene.expect(&["here"])?;
    // It becomes unavailable, and those of the zone take over.
    let mut endpoints = with(complete);
    endpoints[0] = unready(endpoints[0].take());
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&["pod-5", "pod-7"])?;
    let mut endpoints = with(complete);
    endpoints[0] = terminating(endpoints[0].take());
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&["pod-5", "pod-7"])?;
    // One has no hint for a node; all have one for a zone.
    let partial = ["z:a n:master", "z:a", "z:b n:node2", "z:b n:node2"];
    stage.endpoints_in_both("web", &with(partial));
    scene.expect(&["here", "pod-5"])?;
    // One has none at all.
    let partial = ["z:a n:master", "", "z:b n:node2", "z:b n:node2"];
    stage.endpoints_in_both("web", &with(partial));
    scene.expect(&ALL)?;
    // None is for this node, nor for its zone.
    let elsewhere = ["z:b n:other", "z:b n:node2", "z:b n:node2", "z:c n:node2"];
    stage.endpoints_in_both("web", &with(elsewhere));
    scene.expect(&ALL)?;
    // Hints for nodes without any for zones.
    let bare = ["n:node2", "n:master", "n:node2", "n:node2"];
    stage.endpoints_in_both("web", &with(bare));
    scene.expect(&["pod-5"])
}

fn zone_changes() -> Result<(), Failed> {
    let scene = scene(None, &json!({}))?;
    let stage = &scene.stage;
    let hints = ["z:a", "z:b", "z:b", "z:c"];
    let endpoints = ALL.into_iter().zip(hints);
    let endpoints: Vec<_> = endpoints
        .map(|(pod, hints)| hinted(stage, pod, hints))
        .collect();
    stage.endpoints_in_both("web", &endpoints);
    scene.expect(&ALL)?;
    for (zone, expected) in [
        (Some("b"), &["pod-5", "pod-6"][..]),
        (Some("c"), &["pod-7"]),
        (Some(""), &ALL),
        (Some("a"), &["here"]),
        (Some("d"), &ALL),
        (Some("b"), &["pod-5", "pod-6"]),
        (None, &ALL),
    ] {
        set_zone(stage, zone);
        scene.expect(expected)?;
    }
    set_zone(stage, Some("c"));
    scene.expect(&["pod-7"])?;
    stage.api.delete("nodes", "master");
    scene.expect(&ALL)
}

/// Hints decide about those who may go anywhere.
fn policies() -> Result<(), Failed> {
    let external = json!({"externalTrafficPolicy": "Local"});
    let scene = scene(Some("a"), &external)?;
    let stage = &scene.stage;
    let endpoints = [hinted(stage, "here", "z:b"), hinted(stage, "pod-5", "z:a")];
    stage.endpoints_in_both("web", &endpoints);
    for family in FAMILIES {
        let vip = stage.place(family, 3, Place::ClusterIp);
        stage.wait_for_real_servers(&vip.to_string(), &["pod-5"])?;
        let on_node = stage.place(family, 3, Place::NodePort);
        assert_eq!(scene.meets(stage.client(), vip)?, ["pod-5"]);
        assert_eq!(scene.meets(stage.client(), on_node)?, ["pod-5"]);
        assert_eq!(scene.meets(stage.cluster.outside(), on_node)?, ["here"]);
    }
    let internal = json!({"internalTrafficPolicy": "Local"});
    stage.api.apply("services", everywhere("web", 3, &internal));
    for family in FAMILIES {
        let vip = stage.place(family, 3, Place::ClusterIp);
        stage.wait_for_real_servers(&vip.to_string(), &["here"])?;
        let on_node = stage.place(family, 3, Place::NodePort);
        assert_eq!(scene.meets(stage.client(), vip)?, ["here"]);
        assert_eq!(scene.meets(stage.client(), on_node)?, ["pod-5"]);
        assert_eq!(scene.meets(stage.cluster.outside(), on_node)?, ["pod-5"]);
    }
    Ok(())
}
