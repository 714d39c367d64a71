//! `capture`, beside the real proxy: what is in the file, and what is not.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use kube_tun_proxy::lab::capture::{Commented, Packet, PcapngFile, read_pcapng};
use kube_tun_proxy::lab::client;
use kube_tun_proxy::lab::manifests::Port;
use kube_tun_proxy::lab::servers::{Tcp, Udp};
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::world::{
    BINARY, CLIENTS, Client, Family, LIMIT, TUN, Trials, World, expect_refused, wait_until,
};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("capture")
        .both("both_sides_of_one_service_and_nothing_else", both_sides)
        .both("a_client_and_a_real_server_are_chosen", chosen)
        .both("a_refused_client_is_seen", refused)
        .one("a_short_flow_has_both_sides", short)
        .one("a_pipe_ends_after_so_many_packets", pipe)
        .both("headers_of_a_bulk_transfer_are_all_there", bulk)
        .done()
}

const PAYLOAD: &[u8] = b"as much as matters";

fn both_sides(family: Family) -> Result<(), Failed> {
    for client in CLIENTS {
        let mut world = World::other()?;
        let ports = [Port::tcp("web", 80, 8000), Port::udp("ask", 53, 8053)];
        let pod = world.pod(0);
        world.serve("wanted", 2, &ports, &[pod])?;
        world.serve("other", 3, &[Port::tcp("web", 80, 8000)], &[pod])?;
        let _tcp = pod.serve_tcp(8000, Tcp::Echo)?;
        let _udp = pod.serve_udp(8053, Udp::Echo)?;
        world.start(&[])?;
        let service = service(&world, family, 2)?;

        let capture = Running::start(&world, &["--service", &service])?;
        let from = world.from(client);
        let vip = world.vip_at(family, 2, 80);
        let open = echo(client::connect(from, vip, LIMIT)?)?;
        let foreign = echo(client::connect(from, world.vip_at(family, 3, 80), LIMIT)?)?;
        let asker = client::udp_socket(from, world.vip_at(family, 2, 53), LIMIT)?;
        asker.send(PAYLOAD)?;
        asker.recv(&mut [0; 100])?;
        let opener = open.local_addr()?;
        capture.wait_until("both sides of both flows", |file| {
            let has = |text: &str, side: &str| {
                let of = |packet: &&Commented| {
                    packet.comment.contains(text) && packet.comment.ends_with(side)
                };
                file.packets.iter().any(|packet| of(&packet))
            };
            ["/TCP; ", "/UDP; "].iter().all(|protocol| {
                has(protocol, "; client's side") && has(protocol, "; real server's side")
            })
        })?;
        drop((open, foreign));
        world.wait_for_flows("no TCP", |flows| {
            flows.iter().all(|flow| flow.protocol == "UDP")
        })?;
        let (status, told, file) = capture.interrupt()?;
        assert!(status.success(), "{status}: {told}");
        assert!(told.contains("; 0 packets dropped by the kernel"), "{told}");

        let real_server = family.at(world.pod(0), 8000);
        let source = world.overlay_address(family);
        let tcp = format!(
            "service {service}:web, real server {real_server}, client {opener}, \
             virtual server {vip}/TCP; "
        );
        let mut syns = Vec::new();
        let mut fins = 0;
        for packet in &file.packets {
            let (ip, interface) = (parsed(packet), &file.interfaces[packet.interface]);
            assert!(packet.comment.contains(&service), "{}", packet.comment);
            assert!(!ip.touches(world.vip(family, 3)), "{ip:?}");
            let on_tun = interface == TUN;
            let is_clients = packet.comment.ends_with("; client's side");
            assert_eq!(on_tun, is_clients, "{interface}: {}", packet.comment);
            assert!(
                on_tun || interface == world.cluster.overlay(),
                "{interface}"
            );
            if ip.is_syn() {
                syns.push((ip.from(), ip.to(), packet.comment.clone()));
            }
            fins += usize::from(ip.tcp_flags().is_some_and(|flags| flags.fin));
        }
        // SYN to the virtual server, SYN from the node's overlay address to the real
        // server, each once, in this order.
        assert_eq!(syns.len(), 2, "{syns:?}");
        assert_eq!((syns[0].0, syns[0].1), (opener, vip));
        assert_eq!(syns[0].2, format!("{tcp}client's side"));
        assert_eq!((syns[1].0.ip(), syns[1].1), (source, real_server));
        assert_eq!(syns[1].2, format!("{tcp}real server's side"));
        assert_eq!(fins, 4, "each end of both sides closes");
        // The payload passes four times: there and back on each side.
        let of_payload = file
            .packets
            .iter()
            .map(parsed)
            .filter(|packet| packet.tcp_flags().is_some() && packet.payload == PAYLOAD);
        assert_eq!(of_payload.count(), 4);
        assert_eq!(file.dropped, [0]);
    }
    Ok(())
}

fn chosen(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    let pods = [world.pod(0), world.pod(1)];
    world.serve("app", 2, &[Port::tcp("web", 80, 8000)], &pods)?;
    let _servers = [
        pods[0].serve_tcp(8000, Tcp::Echo)?,
        pods[1].serve_tcp(8000, Tcp::Echo)?,
    ];
    world.start(&[])?;
    let real_server = family.at(world.pod(1), 8000);
    let by_server = Running::start(&world, &["--real-server", &real_server.to_string()])?;
    let client_ip = match family {
        Family::V4 => world.client_pod().address().into(),
        Family::V6 => world.client_pod().address6().into(),
    };
    let by_client = Running::start(&world, &["--client", &IpAddr::to_string(&client_ip)])?;
    let vip = world.vip_at(family, 2, 80);
    let mut open = Vec::new();
    // Round robin: each real server gets one flow of each client.
    for client in [Client::Pod, Client::Node, Client::Node, Client::Pod] {
        open.push(echo(client::connect(world.from(client), vip, LIMIT)?)?);
    }
    let flows = world.flows()?;
    assert_eq!(flows.len(), open.len());
    let sides = |file: &PcapngFile| {
        let end = |side: &str| file.packets.iter().any(|p| p.comment.ends_with(side));
        end("; client's side") && end("; real server's side")
    };
    by_server.wait_until("both sides", sides)?;
    by_client.wait_until("both sides", sides)?;
    let (status, told, file) = by_server.interrupt()?;
    assert!(status.success(), "{told}");
    let wanted = flows
        .iter()
        .filter(|flow| flow.real_server == Some(real_server));
    assert_eq!(wanted.clone().count(), 2);
    for flow in wanted {
        let text = format!("real server {real_server}, client {},", flow.client);
        let has = file.packets.iter().any(|p| p.comment.contains(&text));
        assert!(has, "{text}");
    }
    let text = format!("real server {real_server},");
    assert!(file.packets.iter().all(|p| p.comment.contains(&text)));

    let (status, told, file) = by_client.interrupt()?;
    assert!(status.success(), "{told}");
    for packet in &file.packets {
        let flow = flows.iter().find(|flow| {
            let text = format!("client {},", flow.client);
            flow.client.ip() == client_ip && packet.comment.contains(&text)
        });
        assert!(flow.is_some(), "{}", packet.comment);
    }
    Ok(())
}

fn refused(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("dead", 2, &[Port::tcp("web", 80, 8000)], &[])?;
    world.start(&[])?;
    let service = service(&world, family, 2)?;
    let capture = Running::start(&world, &["--service", &service])?;
    expect_refused(world.from(Client::Pod), world.vip_at(family, 2, 80))?;
    // The last question is asked before the end: nothing has to be waited for.
    let (status, told, file) = capture.interrupt()?;
    assert!(status.success(), "{told}");
    assert!(told.contains("2 packets written, 2 of them"), "{told}");
    let seen: Vec<_> = file.packets.iter().map(parsed).collect();
    assert!(seen[0].is_syn(), "{seen:?}");
    assert!(
        seen[1].tcp_flags().is_some_and(|flags| flags.rst),
        "{seen:?}"
    );
    for packet in &file.packets {
        assert!(packet.comment.contains("real server not known"));
    }
    Ok(())
}

fn pipe() -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("app", 2, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&[])?;
    let mut child = command(&world, &["-c", "5", "-w", "-"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().ok_or("no stdout")?;
    let mut running = Running::of(child, PathBuf::new())?;
    let open = client::connect(
        world.from(Client::Pod),
        world.vip_at(Family::V4, 2, 80),
        LIMIT,
    )?;
    let _open = echo(open)?;
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    let status = running.child.wait()?;
    assert!(status.success(), "{status}");
    let file = read_pcapng(&bytes)?;
    assert_eq!(file.packets.len(), 5);
    assert_eq!(file.dropped, [0]);
    Ok(())
}

/// A capture that runs until it is interrupted, or dropped.
struct Running {
    child: Child,
    told: BufReader<std::process::ChildStderr>,
    file: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

impl Running {
    /// When it returns, what passes is seen.
    fn start(world: &World, arguments: &[&str]) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("flows.pcapng");
        let mut command = command(world, arguments);
        let child = command.arg("-w").arg(&file).spawn()?;
        let mut running = Self::of(child, file)?;
        running._directory = Some(directory);
        Ok(running)
    }

    fn of(mut child: Child, file: PathBuf) -> Result<Self, Failed> {
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let mut running = Self {
            child,
            told: BufReader::new(stderr),
            file,
            _directory: None,
        };
        let mut line = String::new();
        running.told.read_line(&mut line)?;
        if line.starts_with("capturing") {
            Ok(running)
        } else {
            Err(line.into())
        }
    }

    fn wait_until(&self, what: &str, fits: impl Fn(&PcapngFile) -> bool) -> Result<(), Failed> {
        wait_until(what, || {
            // The end may be half written.
            let file = read_pcapng(&fs::read(&self.file)?);
            Ok(file.is_ok_and(|file| fits(&file)))
        })
    }

    /// Ends it as Ctrl-C does. Its status, what it said, and the file.
    fn interrupt(mut self) -> Result<(ExitStatus, String, PcapngFile), Failed> {
        let began = Instant::now();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        let mut told = String::new();
        self.told.read_to_string(&mut told)?;
        let status = self.child.wait()?;
        assert!(began.elapsed() < LIMIT);
        let file = read_pcapng(&fs::read(Path::new(&self.file))?)?;
        Ok((status, told, file))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing happens to one that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.node().namespace().command(BINARY);
    command
        .arg("capture")
        .args(arguments)
        .arg("--admin-socket")
        .arg(world.proxy().admin_socket())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn echo(mut stream: TcpStream) -> Result<TcpStream, Failed> {
    stream.write_all(PAYLOAD)?;
    let mut answer = vec![0; PAYLOAD.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, PAYLOAD);
    Ok(stream)
}

/// `namespace/name` of the service at this number.
fn service(world: &World, family: Family, number: u16) -> Result<String, Failed> {
    let ip = world.vip(family, number);
    let services = world.services()?;
    let at = |address: SocketAddr| address.ip() == ip;
    let server = services.iter().find(|server| at(server.address));
    let name = &server.ok_or("no virtual server")?.service;
    let (service, _port) = name.split_once(':').ok_or("no port name")?;
    Ok(service.to_owned())
}

fn parsed(packet: &Commented) -> Packet {
    packet.frame.packet().expect("an IP packet")
}

/// Bytes that come down, in packets of which the capture keeps the headers.
const BULK: u64 = 48 << 20;
const SNAPLEN: usize = 128;

fn bulk(family: Family) -> Result<(), Failed> {
    let mut world = World::other()?;
    world.serve("app", 2, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Source(BULK))?;
    // Trace lines for each packet are not wanted here.
    let options = world.options().environment("RUST_LOG", "info");
    world.start_with(&options)?;
    let capture = Running::start(&world, &["--snaplen", &SNAPLEN.to_string()])?;
    let vip = world.vip_at(family, 2, 80);
    let mut stream = client::connect(world.from(Client::Pod), vip, LIMIT)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let got = std::io::copy(&mut stream, &mut std::io::sink())?;
    assert_eq!(got, BULK);
    drop(stream);
    world.wait_for_flows("no flow", <[_]>::is_empty)?;
    let (status, told, file) = capture.interrupt()?;
    assert!(status.success(), "{told}");
    assert!(
        told.contains(" packets received by filter; 0 packets dropped"),
        "{told}"
    );
    assert_eq!(file.dropped, [0]);
    // What went down, on each side: from the virtual server, and from the real one.
    let header = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    for (side, port) in [("client's side", 80), ("real server's side", 8000_u16)] {
        let mut payload = 0;
        for packet in file.packets.iter().filter(|p| p.comment.ends_with(side)) {
            let bytes = &packet.frame.bytes;
            assert_eq!(bytes.len(), packet.original_length.min(SNAPLEN));
            let tcp = &bytes[header..];
            if tcp[..2] == port.to_be_bytes() {
                payload += packet.original_length - header - usize::from(tcp[12] >> 4) * 4;
            }
        }
        // Some may have been sent twice.
        assert!(payload as u64 >= BULK, "{side}: {payload}");
    }
    Ok(())
}

/// They are over before the proxy can be asked for them.
fn short() -> Result<(), Failed> {
    const FLOWS: usize = 50;
    let mut world = World::other()?;
    world.serve("app", 2, &[Port::tcp("web", 80, 8000)], &[world.pod(0)])?;
    let _server = world.pod(0).serve_tcp(8000, Tcp::Echo)?;
    world.start(&[])?;
    let capture = Running::start(&world, &[])?;
    let vip = world.vip_at(Family::V4, 2, 80);
    let mut clients = Vec::new();
    for _ in 0..FLOWS {
        let flow = echo(client::connect(world.from(Client::Pod), vip, LIMIT)?)?;
        clients.push(flow.local_addr()?);
    }
    world.wait_for_flows("no flow", <[_]>::is_empty)?;
    let (status, told, file) = capture.interrupt()?;
    assert!(status.success(), "{told}");
    for client in clients {
        for side in ["client's side", "real server's side"] {
            let of = |packet: &&Commented| {
                packet.comment.contains(&format!("client {client},"))
                    && packet.comment.ends_with(side)
            };
            let packets: Vec<_> = file.packets.iter().filter(of).map(parsed).collect();
            let syns = packets.iter().filter(|packet| packet.is_syn()).count();
            let fin = |packet: &&Packet| packet.tcp_flags().is_some_and(|flags| flags.fin);
            let fins = packets.iter().filter(fin).count();
            assert_eq!((syns, fins), (1, 2), "{client} {side}: {packets:?}");
        }
    }
    Ok(())
}
