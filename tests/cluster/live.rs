//! Endpoints and services that change while connections are open.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Server, Udp};
use kube_tun_proxy::lab::{Namespace, client};
use libtest_mimic::{Failed, Trial};

use super::world::{
    CLIENTS, Client, Family, LIMIT, SILENCE, Trials, World, expect_kind, expect_silence,
};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("live")
        .both("an_endpoint_comes_and_another_goes", tcp_endpoints)
        .both("the_rotation_survives_changes", rotation)
        .both("the_last_endpoint_goes", last_endpoint)
        .both("a_service_goes", service_goes)
        .both("a_udp_flow_moves", udp_moves)
        .both("udp_flows_stay_while_nobody_serves", udp_stays)
        .both("udp_flows_end_with_their_service", udp_service_goes)
        .done()
}

const PORTS: [u16; 2] = [443, 10_250];

fn ports() -> [Port; 2] {
    let [port, target] = PORTS;
    [
        Port::tcp("tcp", port, target),
        Port::udp("udp", port, target),
    ]
}

/// A world with the service 33:443, TCP and UDP, and servers in all three pods,
/// of which the first `serving` are its endpoints.
fn world_with(serving: usize) -> Result<(World, Vec<Server>), Failed> {
    let mut world = World::other()?;
    let mut servers = world.who_servers(PORTS[1])?;
    for number in 0..3 {
        let pod = world.pod(number);
        servers.push(pod.serve_udp(PORTS[1], Udp::Who(pod.name().to_owned()))?);
    }
    world.serve("app", 33, &ports(), &pods(&world)[..serving])?;
    world.start(&[])?;
    Ok((world, servers))
}

fn pods(world: &World) -> [&kube_tun_proxy::lab::Pod; 3] {
    [0, 1, 2].map(|number| world.pod(number))
}

/// Makes the pods with these numbers the endpoints, and waits until they are.
fn endpoints(world: &World, family: Family, numbers: &[usize]) -> Result<(), Failed> {
    let pods: Vec<_> = numbers.iter().map(|&number| world.pod(number)).collect();
    world.serve("app", 33, &ports(), &pods)?;
    let at: Vec<SocketAddr> = pods.iter().map(|pod| family.at(pod, PORTS[1])).collect();
    world.wait_for_real_servers(vip(world, family), &at)
}

fn vip(world: &World, family: Family) -> SocketAddr {
    world.vip_at(family, 33, PORTS[0])
}

/// A connection to a server that says who it is, as often as it is asked.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn open(from: &Namespace, to: SocketAddr) -> Result<(Self, String), Failed> {
        let mut talk = Self(BufReader::new(client::connect(from, to, LIMIT)?));
        let name = talk.hear()?;
        Ok((talk, name))
    }

    fn ask(&mut self) -> Result<String, Failed> {
        self.0.get_mut().write_all(b"still you?\n")?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String, Failed> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(client::Seen::parse(&line)?.name)
    }
}

/// Asks over UDP, from the same port each time.
fn ask_udp(socket: &UdpSocket) -> Result<String, Failed> {
    socket.send(b"who?")?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    Ok(client::Seen::parse(&String::from_utf8_lossy(&answer[..length]))?.name)
}

fn tcp_endpoints(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(1)?;
    let mut talks = Vec::new();
    for client in CLIENTS {
        let (talk, name) = Talk::open(world.from(client), vip(&world, family))?;
        assert_eq!(name, "red");
        talks.push(talk);
    }
    endpoints(&world, family, &[1, 2])?;
    for client in CLIENTS {
        for _ in 0..2 {
            let seen = client::who(world.from(client), vip(&world, family), LIMIT)?;
            assert_ne!(seen.name, "red");
        }
    }
    endpoints(&world, family, &[2])?;
    for (talk, client) in talks.iter_mut().zip(CLIENTS) {
        assert_eq!(talk.ask()?, "red", "{client:?}");
        let seen = client::who(world.from(client), vip(&world, family), LIMIT)?;
        assert_eq!(seen.name, "blue");
    }
    Ok(())
}

/// The pick after a change is the next one, not the first again.
fn rotation(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(3)?;
    let from = world.from(Client::Node);
    let pick =
        || -> Result<String, Failed> { Ok(client::who(from, vip(&world, family), LIMIT)?.name) };
    let (first, second) = (pick()?, pick()?);
    // What was picked first goes; the turn is the third's.
    let numbers: Vec<usize> = (0..3).filter(|&n| world.pod(n).name() != first).collect();
    endpoints(&world, family, &numbers)?;
    let third = pick()?;
    assert!(
        third != first && third != second,
        "{first} {second} {third}"
    );
    assert_eq!(pick()?, second);
    endpoints(&world, family, &[0, 1, 2])?;
    let mut turn = [pick()?, pick()?, pick()?];
    turn.sort();
    assert_eq!(turn, ["blue", "green", "red"]);
    Ok(())
}

fn last_endpoint(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(1)?;
    let (mut talk, _) = Talk::open(world.from(Client::Pod), vip(&world, family))?;
    endpoints(&world, family, &[])?;
    super::world::expect_refused(world.from(Client::Pod), vip(&world, family))?;
    assert_eq!(talk.ask()?, "red");
    endpoints(&world, family, &[1])?;
    let seen = client::who(world.from(Client::Pod), vip(&world, family), LIMIT)?;
    assert_eq!(seen.name, "green");
    assert_eq!(talk.ask()?, "red");
    Ok(())
}

fn service_goes(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(2)?;
    let (mut talk, name) = Talk::open(world.from(Client::Pod), vip(&world, family))?;
    world.manifests.remove("app.yaml")?;
    world.wait_for_no_service(vip(&world, family))?;
    expect_silence(world.from(Client::Pod), vip(&world, family))?;
    expect_kind(
        client::ping(
            world.from(Client::Node),
            vip(&world, family).ip(),
            8,
            SILENCE / 3,
        ),
        ErrorKind::WouldBlock,
        "ping",
    )?;
    assert_eq!(talk.ask()?, name);
    // And when it comes back, the open connection is still the same.
    endpoints(&world, family, &[2])?;
    let seen = client::who(world.from(Client::Pod), vip(&world, family), LIMIT)?;
    assert_eq!(seen.name, "blue");
    assert_eq!(talk.ask()?, name);
    Ok(())
}

/// Ended when the endpoint goes, and with the next datagram it is another's.
fn udp_moves(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(1)?;
    let sockets: Vec<UdpSocket> = CLIENTS
        .into_iter()
        .map(|client| client::udp_socket(world.from(client), vip(&world, family), LIMIT))
        .collect::<Result<_, _>>()?;
    for socket in &sockets {
        assert_eq!(ask_udp(socket)?, "red");
    }
    // One that comes changes nothing for them.
    endpoints(&world, family, &[0, 1])?;
    for socket in &sockets {
        assert_eq!(ask_udp(socket)?, "red");
    }
    endpoints(&world, family, &[1])?;
    // Without another datagram.
    world.wait_for_flows("no flow", <[_]>::is_empty)?;
    let ended = "ending=\"endpoint_removed\"";
    assert!(world.proxy().wait_for_log(ended, LIMIT).is_some());
    for socket in &sockets {
        assert_eq!(ask_udp(socket)?, "green");
    }
    endpoints(&world, family, &[2])?;
    for socket in &sockets {
        assert_eq!(ask_udp(socket)?, "blue");
    }
    Ok(())
}

/// As kube-proxy, which clears conntrack only where somebody else serves: better
/// one that is going away than nobody.
fn udp_stays(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(1)?;
    let from = world.from(Client::Pod);
    let socket = client::udp_socket(from, vip(&world, family), LIMIT)?;
    assert_eq!(ask_udp(&socket)?, "red");
    endpoints(&world, family, &[])?;
    assert_eq!(ask_udp(&socket)?, "red");
    expect_kind(
        client::who_udp(from, vip(&world, family), LIMIT),
        ErrorKind::ConnectionRefused,
        "a new flow",
    )?;
    assert_eq!(ask_udp(&socket)?, "red");
    endpoints(&world, family, &[1])?;
    assert_eq!(ask_udp(&socket)?, "green");
    Ok(())
}

fn udp_service_goes(family: Family) -> Result<(), Failed> {
    let (world, _servers) = world_with(1)?;
    let from = world.from(Client::Pod);
    let socket = client::udp_socket(from, vip(&world, family), SILENCE)?;
    assert_eq!(ask_udp(&socket)?, "red");
    world.manifests.remove("app.yaml")?;
    world.wait_for_no_service(vip(&world, family))?;
    world.wait_for_flows("no flow", <[_]>::is_empty)?;
    socket.send(b"who?")?;
    expect_kind(
        socket.recv(&mut [0; 100]),
        ErrorKind::WouldBlock,
        "an answer",
    )
}
