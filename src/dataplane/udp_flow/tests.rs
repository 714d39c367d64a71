//! On loopback: a real server is a socket of the test.

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(300);

fn pair(now: Instant) -> (UdpFlow, UdpSocket) {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server.local_addr().unwrap()).unwrap();
    server.connect(socket.local_addr().unwrap()).unwrap();
    (UdpFlow::new(socket, now), server)
}

#[test]
fn datagrams_pass_whole_from_empty_to_largest() {
    let now = Instant::now();
    let (mut flow, server) = pair(now);
    let mut room = vec![0; 65_535];
    let mut total = 0;
    for len in [0, 1, 1_400, 65_507] {
        let payload = vec![len as u8; len];
        let (sent, error) = flow.send(&payload, now);
        sent.unwrap();
        assert!(error.is_none());
        assert_eq!(flow.last_sent(), len);
        let got = server.recv(&mut room).unwrap();
        assert_eq!(room[..got], payload);
        server.send(&payload).unwrap();
        let got = flow.receive(&mut room, now).unwrap();
        assert_eq!(room[..got], payload);
        total += len as u64;
    }
    assert_eq!((flow.bytes_in(), flow.bytes_out()), (total, total));
    let error = flow.receive(&mut room, now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_reply_makes_a_flow_live_longer() {
    let start = Instant::now();
    let (mut flow, server) = pair(start);
    assert_eq!(flow.deadline(TIMEOUT), start + UNREPLIED_TIMEOUT);
    // A shorter setting holds before the reply as well.
    let short = Duration::from_secs(5);
    assert_eq!(flow.deadline(short), start + short);
    let later = start + Duration::from_secs(20);
    flow.send(b"question", later).0.unwrap();
    assert_eq!(flow.deadline(TIMEOUT), later + UNREPLIED_TIMEOUT);
    let mut room = [0; 100];
    server.recv(&mut room).unwrap();
    server.send(b"answer").unwrap();
    let latest = start + Duration::from_secs(40);
    flow.receive(&mut room, latest).unwrap();
    assert_eq!(flow.deadline(TIMEOUT), latest + TIMEOUT);
}

/// The kernel reports an ICMP error instead of sending: the datagram is sent
/// nevertheless, and the error is not lost.
#[test]
fn a_pending_icmp_error_does_not_swallow_a_datagram() {
    let now = Instant::now();
    let (mut flow, server) = pair(now);
    let address = server.local_addr().unwrap();
    let back = flow.socket().local_addr().unwrap();
    drop(server);
    // On loopback the error has arrived when send returns.
    flow.send(b"into the void", now).0.unwrap();
    let server = UdpSocket::bind(address).unwrap();
    server.connect(back).unwrap();
    let (sent, error) = flow.send(b"hello", now);
    sent.unwrap();
    assert_eq!(error.unwrap().kind(), ErrorKind::ConnectionRefused);
    let mut room = [0; 100];
    assert_eq!(server.recv(&mut room).unwrap(), 5);
    // Counted once each.
    assert_eq!(flow.bytes_in(), 18);
}
