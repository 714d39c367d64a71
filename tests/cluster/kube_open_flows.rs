//! What becomes of open flows when endpoints, ports and Services change, at every kind
//! of address: connections of TCP go on; flows of UDP leave an endpoint that serves no
//! more where another serves, stay where none does, and end with the Service
//! (kubernetes `pkg/proxy/conntrack/cleanup.go`, `test/e2e/network/conntrack.go`).

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use kube_tun_proxy::lab::servers::{Server, Tcp, Udp};
use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::kube::{serve, until_refused, until_silent};
use crate::kube_stage::{KubeStage, Place, everywhere, slice, with};
use crate::node_port_stage::{is_refused, until};
use crate::world::{Family, LIMIT, Trials};

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// Every place that a pod of the node reaches.
const PLACES: [Place; 5] = [
    Place::ClusterIp,
    Place::Balancer,
    Place::External,
    Place::NodePort,
    Place::Bridge,
];

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("kube_open_flows")
        .both("udp_flows_follow_endpoints_that_serve", endpoints_of_udp)
        .both("udp_flows_end_with_their_service", udp_service_goes)
        .both("tcp_flows_outlast_their_service", tcp_service_goes)
        .both("the_number_of_a_port_changes", port_changes)
        .both("the_protocol_of_a_port_changes", protocol_changes)
        .both("the_target_of_a_port_changes", target_changes)
        .done()
}

/// A cluster with a Service of the first pod, and servers in three.
fn stage() -> Result<(KubeStage, Vec<Server>), Failed> {
    let mut stage = KubeStage::seed()?;
    let servers = serve(&stage, &["pod-5", "pod-6", "pod-7"])?;
    stage.serve_in_both(everywhere("web", 3, &json!({})), &["pod-5"]);
    stage.start(&[])?;
    Ok((stage, servers))
}

/// Writes the Service's endpoints and waits until they are those that new flows get.
fn set(stage: &KubeStage, endpoints: &[Value], takers: &[&str]) -> Result<(), Failed> {
    stage.endpoints_in_both("web", endpoints);
    for family in [Family::V4, Family::V6] {
        // Of all its addresses the last to be programmed.
        let at = stage.place(family, 3, Place::External).to_string();
        stage.wait_for_real_servers(&at, takers)?;
    }
    Ok(())
}

/// A connection to a server that says who it is, as often as it is asked.
struct Talk(BufReader<TcpStream>, SocketAddr);

impl Talk {
    fn open(from: &Namespace, to: SocketAddr) -> Result<Self, Failed> {
        let mut talk = Self(BufReader::new(client::connect(from, to, LIMIT)?), to);
        talk.hears("pod-5")?;
        Ok(talk)
    }

    fn asks(&mut self) -> Result<(), Failed> {
        self.0.get_mut().write_all(b"still you?\n")?;
        self.hears("pod-5")
    }

    fn hears(&mut self, name: &str) -> Result<(), Failed> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        read.map_err(|error| format!("{}: {error}", self.1))?;
        assert_eq!(client::Seen::parse(&line)?.name, name, "{}", self.1);
        Ok(())
    }
}

/// One at each place.
fn talks(stage: &KubeStage, family: Family) -> Result<Vec<Talk>, Failed> {
    let open = |place| Talk::open(stage.client(), stage.place(family, 3, place));
    PLACES.into_iter().map(open).collect()
}

fn all_go_on(talks: &mut [Talk]) -> Result<(), Failed> {
    talks.iter_mut().try_for_each(Talk::asks)
}

/// Asks over UDP, from the same port each time.
fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who?")?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    Ok(client::Seen::parse(&String::from_utf8_lossy(&answer[..length]))?.name)
}

/// One at each place.
fn sockets(stage: &KubeStage, family: Family) -> Result<Vec<(Place, UdpSocket)>, Failed> {
    let open = |place| {
        let to = stage.place(family, 3, place);
        let socket = client::udp_socket(stage.client(), to, LIMIT)?;
        assert_eq!(ask(&socket)?, "pod-5", "{to}");
        Ok((place, socket))
    };
    PLACES.into_iter().map(open).collect()
}

fn endpoints_of_udp(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let of = |pod: &str| stage.endpoint(pod);
    let flows = sockets(&stage, family)?;
    let all_at = |pod: &str| -> Result<(), Failed> {
        for (place, socket) in &flows {
            assert_eq!(ask(socket)?, pod, "{place:?}");
        }
        Ok(())
    };
    // An answer that is on its way when its flow ends is lost: asked again.
    let all_move_to = |pod: &'static str| -> Result<(), Failed> {
        for (_, socket) in &flows {
            socket.set_read_timeout(Some(SILENCE))?;
            until(
                || ask(socket),
                |name| matches!(name, Ok(name) if name == pod),
            )?;
            socket.set_read_timeout(Some(LIMIT))?;
        }
        Ok(())
    };
    // One that comes changes nothing for them, nor does that theirs terminates, or is
    // not ready, as long as it serves.
    set(&stage, &[of("pod-5"), of("pod-6")], &["pod-5", "pod-6"])?;
    all_at("pod-5")?;
    set(
        &stage,
        &[stage.terminating("pod-5"), of("pod-6")],
        &["pod-6"],
    )?;
    all_at("pod-5")?;
    // It serves no more, and another does.
    let mut gone = stage.terminating("pod-5");
    gone["conditions"]["serving"] = false.into();
    set(&stage, &[gone, of("pod-6")], &["pod-6"])?;
    all_move_to("pod-6")?;
    set(&stage, &[of("pod-7")], &["pod-7"])?;
    all_move_to("pod-7")?;
    // Nobody serves: what flows is left alone, and nothing new begins.
    let mut unready = of("pod-7");
    unready["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    for nobody in [&[unready][..], &[]] {
        set(&stage, nobody, &[])?;
        all_at("pod-7")?;
        for place in PLACES {
            let to = stage.place(family, 3, place);
            let ask = || client::who_udp(stage.client(), to, SILENCE);
            until(ask, is_refused)?;
        }
        all_at("pod-7")?;
    }
    // Even the slices go.
    for slice in ["default/web-a", "default/web-a6"] {
        stage.api.delete("endpointslices", slice);
    }
    all_at("pod-7")?;
    // Somebody serves, and not whom they are with.
    set(&stage, &[of("pod-5")], &["pod-5"])?;
    all_move_to("pod-5")
}

fn udp_service_goes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let flows = sockets(&stage, family)?;
    stage.api.delete("services", "default/web");
    for (place, socket) in &flows {
        socket.set_read_timeout(Some(SILENCE))?;
        // Its port is closed at the node's own addresses; for the others there is
        // nobody who would say so.
        let on_node = matches!(place, Place::NodePort | Place::Bridge);
        until(
            || ask(socket).map_err(|error| error.kind()),
            |answer| match answer {
                Err(io::ErrorKind::ConnectionRefused) => on_node,
                // By the default route they may leave the node.
                Err(_) => !on_node,
                Ok(_) => false,
            },
        )?;
    }
    let ended = stage.proxy().log();
    assert_eq!(
        ended.matches("ending=\"endpoint_removed\"").count(),
        5,
        "{ended}"
    );
    // It is there again, and they are served from the same ports.
    stage.serve_in_both(everywhere("web", 3, &json!({})), &["pod-6"]);
    for (_, socket) in &flows {
        until(
            || ask(socket),
            |name| matches!(name, Ok(name) if name == "pod-6"),
        )?;
    }
    Ok(())
}

fn tcp_service_goes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let mut open = talks(&stage, family)?;
    stage.api.delete("services", "default/web");
    until_silent(stage.client(), stage.place(family, 3, Place::ClusterIp))?;
    until_refused(stage.client(), stage.place(family, 3, Place::NodePort))?;
    all_go_on(&mut open)?;
    for slice in ["default/web-a", "default/web-a6"] {
        stage.api.delete("endpointslices", slice);
    }
    all_go_on(&mut open)?;
    // Another takes the name and the addresses.
    stage.serve_in_both(everywhere("web", 3, &json!({})), &["pod-6"]);
    for place in PLACES {
        let to = stage.place(family, 3, place);
        let ask = || client::who(stage.client(), to, SILENCE);
        until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "pod-6"))?;
    }
    all_go_on(&mut open)
}

/// The same Service with other ports.
fn with_ports(ports: &Value) -> Value {
    let mut service = everywhere("web", 3, &json!({}));
    service["spec"]["ports"] = ports.clone();
    service
}

fn port_changes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let mut open = talks(&stage, family)?;
    let flows = sockets(&stage, family)?;
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": 81, "targetPort": 80, "nodePort": 30_103},
        {"name": "udp", "protocol": "UDP", "port": 81, "targetPort": 80, "nodePort": 30_103},
    ]);
    stage.api.apply("services", with_ports(&ports));
    for place in PLACES {
        let before = stage.place(family, 3, place);
        let port = if before.port() == 80 { 81 } else { 30_103 };
        let now = SocketAddr::new(before.ip(), port);
        for ask in [client::who, client::who_udp] {
            until(
                || ask(stage.client(), now, SILENCE),
                |seen| matches!(seen, Ok(seen) if seen.name == "pod-5"),
            )?;
            until(|| ask(stage.client(), before, SILENCE), is_refused)?;
        }
    }
    all_go_on(&mut open)?;
    // A flow of UDP is one of the port that was: there is nobody any more.
    for (_, socket) in &flows {
        until(|| ask(socket), is_refused)?;
    }
    Ok(())
}

fn protocol_changes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let mut open = talks(&stage, family)?;
    let flows = sockets(&stage, family)?;
    let only = |name: &str, protocol: &str| json!([{"name": name, "protocol": protocol, "port": 80, "nodePort": 30_003}]);
    let refused = |ask: Ask| -> Result<(), Failed> {
        for place in PLACES {
            let to = stage.place(family, 3, place);
            until(|| ask(stage.client(), to, SILENCE), is_refused)?;
        }
        Ok(())
    };
    // TCP goes, and what is open goes on beside UDP.
    stage.api.apply("services", with_ports(&only("udp", "UDP")));
    refused(client::who)?;
    all_go_on(&mut open)?;
    for (place, socket) in &flows {
        assert_eq!(ask(socket)?, "pod-5", "{place:?}");
    }
    // The one becomes the other, under one name; the slices follow.
    stage.api.apply("services", with_ports(&only("tcp", "TCP")));
    refused(client::who_udp)?;
    for (_, socket) in &flows {
        until(|| ask(socket), is_refused)?;
    }
    for place in PLACES {
        let to = stage.place(family, 3, place);
        let ask = || client::who(stage.client(), to, SILENCE);
        until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "pod-5"))?;
    }
    all_go_on(&mut open)
}

type Ask = fn(&Namespace, SocketAddr, Duration) -> io::Result<client::Seen>;

/// The pods listen at another number: flows of UDP follow, open connections have theirs.
fn target_changes(family: Family) -> Result<(), Failed> {
    let (stage, _servers) = stage()?;
    let pod = stage.cluster.pod("pod-5");
    let _moved = [
        pod.serve_tcp(8080, Tcp::Who("moved".to_owned()))?,
        pod.serve_udp(8080, Udp::Who("moved".to_owned()))?,
    ];
    let mut open = talks(&stage, family)?;
    let flows = sockets(&stage, family)?;
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": 8080},
        {"name": "udp", "protocol": "UDP", "port": 8080},
    ]);
    let endpoint = stage.endpoint("pod-5");
    let six = json!({"addresses": [pod.address6().to_string()]});
    let of_six = slice("web", "a6", &ports, &[with(endpoint.clone(), &six)]);
    stage
        .api
        .apply("endpointslices", slice("web", "a", &ports, &[endpoint]));
    stage.api.apply(
        "endpointslices",
        with(of_six, &json!({"addressType": "IPv6"})),
    );
    for (_, socket) in &flows {
        socket.set_read_timeout(Some(SILENCE))?;
        until(
            || ask(socket),
            |name| matches!(name, Ok(name) if name == "moved"),
        )?;
    }
    for place in PLACES {
        let to = stage.place(family, 3, place);
        let ask = || client::who(stage.client(), to, SILENCE);
        until(ask, |seen| matches!(seen, Ok(seen) if seen.name == "moved"))?;
    }
    all_go_on(&mut open)
}
