//! The lab's servers, and what stands for their absence.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::servers::{Fnv1a, How, Tcp, Udp, pattern};
use kube_tun_proxy::lab::{ClusterBuilder, client};
use libtest_mimic::{Failed, Trial};

/// Longer than anything here takes; reached only by a failure.
const LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("lab::tcp_servers_do_as_said", tcp_servers_do_as_said),
        Trial::test("lab::http_server_keeps_alive", http_server_keeps_alive),
        Trial::test("lab::udp_servers_do_as_said", udp_servers_do_as_said),
        Trial::test("lab::refused_and_silent_differ", refused_and_silent_differ),
    ]
}

fn tcp_servers_do_as_said() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let from = cluster.node("master").namespace();
    let pod = cluster.pod("pod-5");

    let _echo = pod.serve_tcp(1, Tcp::Echo)?;
    let mut stream = client::connect(from, pod.at(1), LIMIT)?;
    stream.write_all(b"to and fro")?;
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(read_to_end(&mut stream)?, b"to and fro");

    let data = b"some bytes".repeat(10_000);
    let mut digest = Fnv1a::default();
    digest.update(&data);
    let expected = format!("{digest} {}\n", data.len());
    let pace = NonZeroU64::new(400_000).ok_or("not zero")?;
    for (port, what, at_least) in [
        (2, Tcp::Digest, Duration::ZERO),
        // 100 kB at 400 kB/s.
        (3, Tcp::Slow(pace), Duration::from_millis(250)),
    ] {
        let server = pod.serve_tcp(port, what)?;
        let begun = Instant::now();
        let mut stream = client::connect(from, pod.at6(port), LIMIT)?;
        stream.write_all(&data)?;
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(String::from_utf8(read_to_end(&mut stream)?)?, expected);
        assert!(begun.elapsed() >= at_least, "{:?}", begun.elapsed());
        assert!(server.wait_for_ended(1, LIMIT));
        assert_eq!(
            (server.ended()[0].received, server.ended()[0].how),
            (100_000, How::Closed)
        );
    }

    let _source = pod.serve_tcp(4, Tcp::Source(300_001))?;
    let received = read_to_end(&mut client::connect(from, pod.at(4), LIMIT)?)?;
    let mut whole = vec![0; 300_001];
    pattern(0, &mut whole);
    assert!(received == whole, "{} bytes", received.len());

    let reset = pod.serve_tcp(5, Tcp::Reset)?;
    let mut stream = client::connect(from, pod.at(5), LIMIT)?;
    stream.write_all(b"x")?;
    let error = stream.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(reset.wait_for_ended(1, LIMIT));
    assert_eq!(reset.ended()[0].how, How::ResetByUs);

    let hold = pod.serve_tcp(6, Tcp::Hold)?;
    let mut stream = client::connect(from, pod.at(6), LIMIT)?;
    assert!(hold.wait_for_accepted(1, LIMIT));
    stream.set_read_timeout(Some(SILENCE))?;
    let error = stream.read(&mut [0]).expect_err("held");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    hold.release();
    stream.set_read_timeout(Some(LIMIT))?;
    assert_eq!(read_to_end(&mut stream)?, b"");
    Ok(())
}

fn http_server_keeps_alive() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let from = cluster.node("master").namespace();
    let pod = cluster.pod("pod-7");
    let server = pod.serve_tcp(8080, Tcp::Http("web".to_owned()))?;
    let (status, body) = client::http_get(from, pod.at(8080), "/", LIMIT)?;
    assert_eq!(status, 200);
    assert!(body.starts_with("web saw 10.1.15.0:"), "{body}");

    let mut stream = client::connect(from, pod.at(8080), LIMIT)?;
    // Two requests at once, the first with a body.
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")?;
    stream.write_all(b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let answers = String::from_utf8(read_to_end(&mut stream)?)?;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(server.accepted(), 2);
    Ok(())
}

fn udp_servers_do_as_said() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let from = cluster.pod("client").namespace();
    let pod = cluster.pod("pod-5");
    let _who = pod.serve_udp(53, Udp::Who("dns".to_owned()))?;
    let _echo = pod.serve_udp(7, Udp::Echo)?;
    let mute = pod.serve_udp(9, Udp::Mute)?;
    for (dns, echo) in [(pod.at(53), pod.at(7)), (pod.at6(53), pod.at6(7))] {
        assert_eq!(client::who_udp(from, dns, LIMIT)?.name, "dns");
        for length in [0, 1, 1472, 65_507] {
            let datagram = vec![7; length];
            let answer = client::udp_exchange(from, echo, &datagram, LIMIT)?;
            assert!(answer == datagram, "{length} bytes became {}", answer.len());
        }
    }
    let error = client::udp_exchange(from, pod.at(9), b"?", SILENCE).expect_err("mute");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(mute.accepted(), 1);
    Ok(())
}

fn refused_and_silent_differ() -> Result<(), Failed> {
    let cluster = ClusterBuilder::seed().build()?;
    let from = cluster.node("master").namespace();
    let refused = client::connect(from, cluster.pod("pod-5").at(81), LIMIT).expect_err("no server");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let refused = client::udp_exchange(from, cluster.pod("pod-5").at(81), b"?", LIMIT);
    assert_eq!(
        refused.expect_err("no server").kind(),
        ErrorKind::ConnectionRefused
    );
    for silent in ["10.1.65.99:80", "[fd00:10:1:65::99]:80"] {
        let silent: SocketAddr = silent.parse()?;
        cluster.node("node2").silence(silent.ip())?;
        let error = client::connect(from, silent, SILENCE).expect_err("silent");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{silent}: {error}");
    }
    Ok(())
}

fn read_to_end(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}
