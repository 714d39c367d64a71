//! Several workers, each with a queue of its own: whatever queue a packet comes
//! to, it reaches its flow.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use libtest_mimic::{Failed, Trial};

use super::sockets::{read_pattern, write_pattern};
use super::world::{
    CLIENTS, Client, FAMILIES, LIMIT, Trials, World, expect_refused, expect_silence, joined,
};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("workers")
        .one("one", || basic_set("1"))
        .one("two", || basic_set("2"))
        .one("four", || basic_set("4"))
        .one("many_flows_on_four", many_flows)
        .done()
}

/// Everything once, from everywhere, in both families.
fn basic_set(workers: &str) -> Result<(), Failed> {
    let mut world = World::other()?;
    let ports = [
        Port::tcp("who", 80, 8000),
        Port::tcp("digest", 81, 8001),
        Port::tcp("source", 82, 8002),
        Port::udp("echo", 53, 5300),
    ];
    let pod = world.pod(0);
    world.serve("app", 2, &ports, &[pod])?;
    let _servers = [
        pod.serve_tcp(8000, Tcp::Who("red".to_owned()))?,
        pod.serve_tcp(8001, Tcp::Digest)?,
        pod.serve_tcp(8002, Tcp::Source(3 << 20))?,
        pod.serve_udp(5300, Udp::Echo)?,
    ];
    world.start(&["--workers", workers])?;
    for family in FAMILIES {
        let at = |port| world.vip_at(family, 2, port);
        for client in CLIENTS {
            let from = world.from(client);
            for _ in 0..8 {
                let seen = client::who(from, at(80), LIMIT)?;
                assert_eq!(seen.peer.ip(), world.overlay_address(family));
            }
            let mut stream = client::connect(from, at(81), LIMIT)?;
            let digest = write_pattern(&mut stream, 3 << 20)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            assert_eq!(answer, format!("{digest} {}\n", 3 << 20));
            let mut stream = client::connect(from, at(82), LIMIT)?;
            assert_eq!(read_pattern(&mut stream)?, 3 << 20);
            drop(stream);
            for length in [0, 1, 1472, 8000, 60_000] {
                let sent = vec![7; length];
                assert_eq!(client::udp_exchange(from, at(53), &sent, LIMIT)?, sent);
            }
            client::ping(from, at(0).ip(), 5000, LIMIT)?;
            expect_refused(from, at(83))?;
        }
        expect_silence(world.from(Client::Pod), world.vip_at(family, 3, 80))?;
    }
    world.wait_for_flows("UDP flows only", |flows| {
        flows.len() == 20 && flows.iter().all(|flow| flow.protocol == "UDP")
    })
}

/// Flows enough that each worker has some; each datagram of every other is cut
/// into fragments, which the kernel steers by addresses alone: to one worker,
/// whoever has the flow.
fn many_flows() -> Result<(), Failed> {
    const FLOWS: usize = 24;
    let mut world = World::other()?;
    let ports = [Port::tcp("echo", 80, 8000), Port::udp("echo-udp", 53, 5300)];
    world.serve("app", 2, &ports, &[world.pod(0)])?;
    let _tcp = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    let _udp = world.pod(0).serve_udp(5300, Udp::Echo)?;
    world.start(&["--workers", "4"])?;
    let threads: Vec<_> = FAMILIES
        .into_iter()
        .flat_map(|family| CLIENTS.map(|client| (family, client)))
        .map(|(family, client)| {
            let from = world.from(client).clone();
            let (tcp, udp) = (world.vip_at(family, 2, 80), world.vip_at(family, 2, 53));
            thread::spawn(move || -> std::io::Result<()> {
                let mut streams = Vec::new();
                let mut sockets = Vec::new();
                for _ in 0..FLOWS {
                    streams.push(client::connect(&from, tcp, LIMIT)?);
                    sockets.push(client::udp_socket(&from, udp, LIMIT)?);
                }
                let mut back = vec![0; 65_535];
                for turn in 0..4 {
                    for stream in &mut streams {
                        stream.write_all(b"0123456789")?;
                        stream.read_exact(&mut back[..10])?;
                    }
                    for (number, socket) in sockets.iter().enumerate() {
                        // Small and large take turns within a flow as well.
                        let length = if (number + turn) % 2 == 0 { 10 } else { 4000 };
                        socket.send(&vec![turn as u8; length])?;
                        assert_eq!(socket.recv(&mut back)?, length);
                    }
                }
                Ok(())
            })
        })
        .collect();
    threads.into_iter().try_for_each(joined)?;
    world.wait_for_flows("a UDP flow for each socket", |flows| {
        flows.len() == 4 * FLOWS && flows.iter().all(|flow| flow.protocol == "UDP")
    })
}
