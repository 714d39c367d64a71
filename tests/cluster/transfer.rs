//! Much data, and readers that are slow: what comes out is what went in, and
//! what waits does not wait in the proxy.

use std::fs;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU64;
use std::time::Duration;

use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{How, Server, Tcp};
use libtest_mimic::{Failed, Trial};

use super::sockets::{read_pattern, write_pattern, write_until_full};
use super::world::{Client, Family, LIMIT, Trials, World, wait_until};

/// How long bulk may take on a busy machine.
const BULK_LIMIT: Duration = Duration::from_secs(60);

/// The two rings of a flow, 1 MiB each, and what an allocator and a few
/// buffers of the worker may add.
const MEMORY_OF_A_FLOW: u64 = (2 << 20) + (1 << 20);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("transfer")
        .both("sixty_four_mib_up_from_a_pod", |family| {
            up(family, Client::Pod)
        })
        .both("sixty_four_mib_up_from_the_node", |family| {
            up(family, Client::Node)
        })
        .both("hundred_mb_down_to_a_pod", |family| {
            down(family, Client::Pod)
        })
        .both("hundred_mb_down_to_the_node", |family| {
            down(family, Client::Node)
        })
        .both("both_ways_at_once", both_ways)
        .both("a_real_server_that_reads_slowly", slow_server)
        .both("a_real_server_that_waits", server_that_waits)
        .both("a_client_that_waits", client_that_waits)
        .done()
}

fn world_with(server: Tcp) -> Result<(World, Server), Failed> {
    let mut world = World::other()?;
    world.serve("bulk", 8, &[Port::tcp("", 80, 7000)], &[world.pod(0)])?;
    let server = world.pod(0).serve_tcp(7000, server)?;
    // Trace lines for each packet are not wanted here.
    let options = world.options().environment("RUST_LOG", "info");
    world.start_with(&options)?;
    Ok((world, server))
}

fn connect(world: &World, family: Family, client: Client) -> Result<TcpStream, Failed> {
    let vip = world.vip_at(family, 8, 80);
    Ok(client::connect(world.from(client), vip, BULK_LIMIT)?)
}

/// The digest comes back after EOF: through a connection that is half closed.
fn up(family: Family, client: Client) -> Result<(), Failed> {
    const BYTES: u64 = 64 << 20;
    let (world, _server) = world_with(Tcp::Digest)?;
    let mut stream = connect(&world, family, client)?;
    let digest = write_pattern(&mut stream, BYTES)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert_eq!(answer, format!("{digest} {BYTES}\n"));
    Ok(())
}

fn down(family: Family, client: Client) -> Result<(), Failed> {
    const BYTES: u64 = 100_000_000;
    let (world, server) = world_with(Tcp::Source(BYTES))?;
    let mut stream = connect(&world, family, client)?;
    assert_eq!(read_pattern(&mut stream)?, BYTES);
    drop(stream);
    assert!(server.wait_for_ended(1, LIMIT));
    assert_eq!(server.ended()[0].how, How::Closed);
    Ok(())
}

/// An echo, so that each direction waits for the other.
fn both_ways(family: Family) -> Result<(), Failed> {
    const BYTES: u64 = 16 << 20;
    let (world, _server) = world_with(Tcp::Echo)?;
    let mut reader = connect(&world, family, Client::Pod)?;
    let mut writer = reader.try_clone()?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            write_pattern(&mut writer, BYTES)?;
            writer.shutdown(Shutdown::Write)
        });
        let received = read_pattern(&mut reader);
        writing.join().map_err(|_| "the writer panicked")??;
        assert_eq!(received?, BYTES);
        Ok(())
    })
}

/// A pace that is felt: each way to it is full most of the time.
fn slow_server(family: Family) -> Result<(), Failed> {
    const PACE: NonZeroU64 = NonZeroU64::new(6_000_000).unwrap();
    const BYTES: u64 = 8 << 20;
    let (world, _server) = world_with(Tcp::Slow(PACE))?;
    let mut stream = connect(&world, family, Client::Pod)?;
    let digest = write_pattern(&mut stream, BYTES)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert_eq!(answer, format!("{digest} {BYTES}\n"));
    Ok(())
}

/// Nothing is read until the client can write no more.
fn server_that_waits(family: Family) -> Result<(), Failed> {
    const MOST: u64 = 64 << 20;
    let (world, server) = world_with(Tcp::Hold)?;
    warm_up(&world, family)?;
    let before = resident(&world)?;
    let mut stream = connect(&world, family, Client::Pod)?;
    let (sent, _) = write_until_full(&mut stream, MOST, Duration::from_millis(500))?;
    assert!(sent < MOST / 2, "{sent} bytes were taken");
    let grown = resident(&world)?.saturating_sub(before);
    assert!(grown < MEMORY_OF_A_FLOW, "{grown} bytes more for one flow");
    server.release();
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(stream.read(&mut [0])?, 0);
    assert!(server.wait_for_ended(2, LIMIT));
    assert!(server.ended().iter().any(|ended| ended.received == sent));
    Ok(())
}

fn client_that_waits(family: Family) -> Result<(), Failed> {
    const BYTES: u64 = 64 << 20;
    let (world, server) = world_with(Tcp::Source(BYTES))?;
    warm_up(&world, family)?;
    let before = resident(&world)?;
    let mut stream = connect(&world, family, Client::Pod)?;
    // Nothing is read until nothing moves any more.
    let mut last = 0;
    wait_until("the flow to stand still", || {
        std::thread::sleep(Duration::from_millis(200));
        let flows = world.flows()?;
        let moved = flows.first().map_or(0, |flow| flow.bytes_to_client);
        let still = moved > 0 && moved == last;
        last = moved;
        Ok(still)
    })?;
    assert!(last < BYTES / 2, "{last} bytes were taken");
    let grown = resident(&world)?.saturating_sub(before);
    assert!(grown < MEMORY_OF_A_FLOW, "{grown} bytes more for one flow");
    assert_eq!(read_pattern(&mut stream)?, BYTES);
    drop(stream);
    assert!(server.wait_for_ended(1, LIMIT));
    Ok(())
}

/// What a first connection costs whatever its size.
fn warm_up(world: &World, family: Family) -> Result<(), Failed> {
    super::sockets::reset(connect(world, family, Client::Pod)?)?;
    world.wait_for_flows("no flow", <[_]>::is_empty)
}

/// Bytes of the proxy that are in memory (VmRSS of proc_pid_status(5)).
fn resident(world: &World) -> Result<u64, Failed> {
    let status = fs::read_to_string(format!("/proc/{}/status", world.proxy().pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kibibytes.ok_or("no VmRSS")? << 10)
}
