//! How connections end: in halves, with RST, and on a port that is used again.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Ended, How, Server, Tcp};
use kube_tun_proxy::lab::{PodSpec, client};
use libtest_mimic::{Failed, Trial};

use super::sockets::{connect_from_port, read_pattern, reset, write_pattern};
use super::world::{CLIENTS, Client, Family, LIMIT, Trials, World, expect_kind};

/// How long a half-closed connection is left idle: longer than the
/// `--ipvs-tcpfin-timeout` it is tried with, which does not concern it.
const IDLE: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("closing")
        .both("client_half_closes_first", client_first)
        .both("real_server_half_closes_first", server_first)
        .both("half_closed_and_idle", half_closed_and_idle)
        .both("real_server_resets", server_resets)
        .both("client_resets", client_resets)
        .both("client_closes_with_unread_data", unread_data)
        .both("real_server_goes_away", server_goes_away)
        .both("the_port_of_a_flow_in_time_wait", reuse_in_time_wait)
        .both("the_port_of_a_flow_that_was_reset", reuse_after_reset)
        .both("a_client_that_started_anew", restarted_client)
        .both(
            "a_client_that_started_anew_while_closing",
            restarted_while_closing,
        )
        .done()
}

/// A world with one service, 8:80, and its one real server.
pub(crate) fn world_with(server: Tcp, arguments: &[&str]) -> Result<(World, Server), Failed> {
    let mut world = World::other()?;
    world.serve("one", 8, &[Port::tcp("", 80, 7000)], &[world.pod(0)])?;
    let server = world.pod(0).serve_tcp(7000, server)?;
    world.start(arguments)?;
    Ok((world, server))
}

/// Waits until `count` connections of the server are over, and says how.
fn ended(server: &Server, count: usize) -> Result<Vec<Ended>, Failed> {
    if server.wait_for_ended(count, LIMIT) {
        Ok(server.ended())
    } else {
        Err(format!("{:?} over, not {count}", server.ended()).into())
    }
}

fn client_first(family: Family) -> Result<(), Failed> {
    const BYTES: u64 = 1 << 20;
    let (world, server) = world_with(Tcp::Digest, &[])?;
    for client in CLIENTS {
        let vip = world.vip_at(family, 8, 80);
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        let digest = write_pattern(&mut stream, BYTES)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer, format!("{digest} {BYTES}\n"), "{client:?}");
    }
    let ended = ended(&server, 2)?;
    assert!(ended.iter().all(|ended| ended.how == How::Closed));
    Ok(())
}

fn server_first(family: Family) -> Result<(), Failed> {
    const DOWN: u64 = 1 << 20;
    const UP: u64 = 3 << 20;
    let (world, server) = world_with(Tcp::Source(DOWN), &[])?;
    for client in CLIENTS {
        let vip = world.vip_at(family, 8, 80);
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        assert_eq!(read_pattern(&mut stream)?, DOWN, "{client:?}");
        // The other half is open still.
        write_pattern(&mut stream, UP)?;
    }
    for ended in ended(&server, 2)? {
        assert_eq!((ended.received, ended.how), (UP, How::Closed));
    }
    Ok(())
}

/// Neither half is cut for being idle: minutes are no different from seconds,
/// as no timer runs.
fn half_closed_and_idle(family: Family) -> Result<(), Failed> {
    let (world, hold) = world_with(Tcp::Hold, &["--ipvs-tcpfin-timeout", "1s"])?;
    let source = world.pod(1).serve_tcp(7000, Tcp::Source(10))?;
    world.serve("two", 9, &[Port::tcp("", 80, 7000)], &[world.pod(1)])?;
    let (by_client, by_server) = (world.vip_at(family, 8, 80), world.vip_at(family, 9, 80));
    world.wait_for_real_servers(by_server, &[family.at(world.pod(1), 7000)])?;
    let pod = world.from(Client::Pod);
    let mut client_closed = client::connect(pod, by_client, LIMIT)?;
    let mut server_closed = client::connect(pod, by_server, LIMIT)?;
    client_closed.write_all(b"the last words")?;
    client_closed.shutdown(Shutdown::Write)?;
    assert_eq!(read_pattern(&mut server_closed)?, 10);
    client_closed.set_read_timeout(Some(IDLE))?;
    expect_kind(
        client_closed.read(&mut [0]),
        ErrorKind::WouldBlock,
        "a read while the real server is silent",
    )?;
    hold.release();
    client_closed.set_read_timeout(Some(LIMIT))?;
    assert_eq!(client_closed.read(&mut [0])?, 0);
    assert_eq!(ended(&hold, 1)?[0].how, How::Closed);
    assert_eq!(hold.ended()[0].received, 14);

    server_closed.write_all(b"still here")?;
    drop(server_closed);
    let ended = ended(&source, 1)?;
    assert_eq!((ended[0].received, ended[0].how), (10, How::Closed));
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

fn server_resets(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Reset, &[])?;
    for client in CLIENTS {
        let vip = world.vip_at(family, 8, 80);
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        stream.write_all(b"x")?;
        expect_kind(
            stream.read(&mut [0]),
            ErrorKind::ConnectionReset,
            &format!("read of {client:?}"),
        )?;
    }
    assert_eq!(server.accepted(), 2);
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

fn client_resets(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Echo, &[])?;
    for client in CLIENTS {
        let vip = world.vip_at(family, 8, 80);
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        reset(stream)?;
    }
    for ended in ended(&server, 2)? {
        assert_eq!(ended.how, How::Reset);
    }
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

/// What the kernel does for a process that is killed: RST, as data is lost.
fn unread_data(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Source(64 << 20), &[])?;
    for client in CLIENTS {
        let vip = world.vip_at(family, 8, 80);
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        stream.read_exact(&mut [0; 1000])?;
        drop(stream);
    }
    for ended in ended(&server, 2)? {
        assert_eq!(ended.how, How::Reset);
    }
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

/// A server's process that ends closes its connections.
fn server_goes_away(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Who("red".to_owned()), &[])?;
    let vip = world.vip_at(family, 8, 80);
    let mut streams = Vec::new();
    for client in CLIENTS {
        let mut stream = client::connect(world.from(client), vip, LIMIT)?;
        stream.read_exact(&mut [0; 8])?;
        streams.push(stream);
    }
    drop(server);
    for mut stream in streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
    }
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

/// The real server closes first, so that it is the proxy whose side of the
/// client's connection is in TIME_WAIT, and the client may use its port again
/// at once.
fn reuse_in_time_wait(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Source(5), &[])?;
    let vip = world.vip_at(family, 8, 80);
    for turn in 1..=5 {
        for client in CLIENTS {
            // A second SYN would go out after 1 s.
            let limit = Duration::from_millis(900);
            let mut stream = connect_from_port(world.from(client), 40_400, vip, limit)
                .map_err(|error| format!("turn {turn} of {client:?}: {error}"))?;
            assert_eq!(read_pattern(&mut stream)?, 5);
        }
        ended(&server, 2 * turn)?;
    }
    assert!(server.ended().iter().all(|ended| ended.how == How::Closed));
    Ok(())
}

fn reuse_after_reset(family: Family) -> Result<(), Failed> {
    let (world, server) = world_with(Tcp::Echo, &[])?;
    let vip = world.vip_at(family, 8, 80);
    for turn in 1..=5 {
        for client in CLIENTS {
            let limit = Duration::from_millis(900);
            let mut stream = connect_from_port(world.from(client), 40_400, vip, limit)
                .map_err(|error| format!("turn {turn} of {client:?}: {error}"))?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            reset(stream)?;
        }
    }
    let ended = ended(&server, 10)?;
    assert!(ended.iter().all(|ended| ended.how == How::Reset));
    Ok(())
}

/// Its pod is made anew with the same address, and comes from the same port: the
/// flow that the proxy has open is over, whatever its sequence numbers.
fn restarted_client(family: Family) -> Result<(), Failed> {
    restarted(family, |_| Ok(()))
}

fn restarted_while_closing(family: Family) -> Result<(), Failed> {
    restarted(family, |stream| Ok(stream.shutdown(Shutdown::Write)?))
}

fn restarted(
    family: Family,
    before: impl FnOnce(&std::net::TcpStream) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let (mut world, server) = world_with(Tcp::Hold, &["--log-format", "json"])?;
    let vip = world.vip_at(family, 8, 80);
    let mut lost = connect_from_port(world.from(Client::Pod), 40_400, vip, LIMIT)?;
    lost.write_all(b"x")?;
    before(&lost)?;
    world.wait_for_flows("the first byte", |flows| {
        flows.iter().any(|flow| flow.bytes_to_real_server == 1)
    })?;
    let (name, node) = (
        world.client_pod().name().to_owned(),
        world.node().name().to_owned(),
    );
    world.cluster.remove_pod(&name)?;
    world.cluster.add_pod(&node, PodSpec::new(&name, 21))?;
    let overlay = world.capture_overlay()?;
    let limit = Duration::from_millis(900);
    let anew = connect_from_port(world.from(Client::Pod), 40_400, vip, limit)?;
    assert!(server.wait_for_accepted(2, LIMIT));
    assert!(world.proxy().wait_for_log("\"replaced\"", LIMIT).is_some());
    // The real server is told that the old one is over.
    let old = server.peers()[0];
    let told = overlay.wait_for(LIMIT, |packet| {
        packet.from() == old && packet.tcp_flags().is_some_and(|flags| flags.rst)
    });
    assert!(told.is_some(), "no RST from {old}");
    server.release();
    assert_eq!((&anew).read(&mut [0])?, 0);
    drop((anew, lost));
    ended(&server, 2)?;
    Ok(())
}
