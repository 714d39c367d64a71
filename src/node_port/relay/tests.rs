use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use std::time::Duration;

use super::*;

/// Longer than anything here takes; reached only by a failure.
const LIMIT: Duration = Duration::from_secs(10);

const TIMEOUTS: TcpTimeouts = TcpTimeouts {
    idle: None,
    closing: Duration::from_secs(120),
};

/// A relay on loopback with the peers at its two ends.
struct Joined {
    relay: Relay,
    pipes: Pipes,
    poll: Poll,
    client: TcpStream,
    server: TcpStream,
    ended: Option<Ending>,
}

impl Joined {
    fn new(preface: &[u8]) -> Self {
        let (client, client_leg) = pair();
        let (server, server_leg) = pair();
        let poll = Poll::new().unwrap();
        for (socket, token) in [(&client_leg, Token(0)), (&server_leg, Token(1))] {
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(&mut SourceFd(&socket.as_raw_fd()), token, interest)
                .unwrap();
        }
        let leg = Leg::new(client_leg);
        Self {
            relay: Relay::new(leg, server_leg, preface.to_vec(), Instant::now()),
            pipes: Pipes::default(),
            poll,
            client,
            server,
            ended: None,
        }
    }

    /// Turns until `done`, or the end.
    fn run(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut events = Events::with_capacity(16);
        while !done(self) && self.ended.is_none() {
            assert!(Instant::now() < deadline, "{:?}", self.relay);
            self.poll
                .poll(&mut events, Some(Duration::from_millis(5)))
                .unwrap();
            for event in &events {
                let side = if event.token() == Token(0) {
                    Side::Client
                } else {
                    Side::Server
                };
                let readiness = Readiness {
                    readable: event.is_readable() || event.is_read_closed(),
                    writable: event.is_writable(),
                    failed: event.is_error(),
                };
                self.relay.ready(side, readiness);
            }
            let progress = self.relay.turn(&mut self.pipes, &TIMEOUTS, Instant::now());
            if let Progress::Ended(ending) = progress {
                self.ended = Some(ending);
            }
        }
    }

    fn run_to_end(&mut self) -> Ending {
        self.run(|_| false);
        self.ended.unwrap()
    }
}

/// A connected pair: a blocking end for the test and one for a relay.
fn pair() -> (TcpStream, KernelSocket) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (leg, _) = listener.accept().unwrap();
    leg.set_nonblocking(true).unwrap();
    (peer, KernelSocket::new(OwnedFd::from(leg).into()))
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// What can be read at once.
fn available(stream: &mut TcpStream, into: &mut Vec<u8>) {
    stream.set_nonblocking(true).unwrap();
    let mut room = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut room) {
        into.extend(&room[..count]);
    }
    stream.set_nonblocking(false).unwrap();
}

#[test]
fn both_directions_end_on_their_own() {
    let mut joined = Joined::new(b"");
    joined.client.write_all(b"question").unwrap();
    joined.client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut asked = Vec::new();
    joined.run(|joined| {
        available(&mut joined.server, &mut asked);
        asked == b"question" && joined.relay.inward.passed
    });
    assert_eq!(joined.relay.state_name(), "CLOSE_WAIT");
    // The other half goes on.
    joined.server.write_all(b"answer").unwrap();
    let mut answer = Vec::new();
    joined.run(|joined| {
        available(&mut joined.client, &mut answer);
        answer == b"answer"
    });
    drop(joined.server.shutdown(std::net::Shutdown::Write));
    assert_eq!(joined.run_to_end(), Ending::Closed);
    assert_eq!((joined.relay.bytes_in(), joined.relay.bytes_out()), (8, 6));
    // Nothing is left in a pipe, so both were kept.
    assert_eq!(joined.relay.held(), 0);
    drop(joined.relay);
    assert_eq!(joined.client.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(joined.server.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_reset_of_the_real_server_comes_after_its_bytes() {
    let mut joined = Joined::new(b"");
    joined.server.write_all(b"last words").unwrap();
    let (other, _) = pair();
    reset(std::mem::replace(&mut joined.server, other));
    assert_eq!(joined.run_to_end(), Ending::ServerReset);
    drop(joined.relay);
    let mut heard = Vec::new();
    let error = joined.client.read_to_end(&mut heard).unwrap_err();
    // Linux gives bytes out before the error, unless RST overtook the reader.
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(heard, b"last words");
}

#[test]
fn a_reset_of_the_client_reaches_the_real_server() {
    let mut joined = Joined::new(b"");
    let (other, _) = pair();
    reset(std::mem::replace(&mut joined.client, other));
    assert_eq!(joined.run_to_end(), Ending::ClientReset);
    drop(joined.relay);
    let error = joined.server.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_real_server_that_does_not_read_stops_the_client() {
    check_back_pressure(Joined::new(b""));
}

#[test]
fn without_a_pipe_bytes_are_copied() {
    let mut joined = Joined::new(b"");
    joined.pipes = Pipes::none();
    check_back_pressure(joined);
}

fn check_back_pressure(mut joined: Joined) {
    joined.client.set_nonblocking(true).unwrap();
    let chunk: Vec<u8> = (0..64 << 10).map(|at| (at % 251) as u8).collect();
    let mut sent: Vec<u8> = Vec::new();
    let mut stalled = 0;
    // Stalled when neither end has moved for a while of turns.
    joined.run(|joined| {
        match joined.client.write(&chunk) {
            Ok(count) => {
                sent.extend(&chunk[..count]);
                stalled = 0;
            }
            Err(_) => stalled += 1,
        }
        stalled > 20
    });
    assert!(joined.relay.held() <= PIPE_BYTES);
    assert_eq!(joined.ended, None);
    joined.client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut received = Vec::new();
    joined.run(|joined| {
        available(&mut joined.server, &mut received);
        joined.relay.inward.passed && received.len() == sent.len()
    });
    assert!(received == sent, "{} of {}", received.len(), sent.len());
    assert_eq!(joined.relay.bytes_in(), sent.len() as u64);
}

#[test]
fn the_preface_goes_first_and_is_not_counted() {
    let mut joined = Joined::new(b"PROXY ");
    joined.client.write_all(b"hello").unwrap();
    let mut heard = Vec::new();
    joined.run(|joined| {
        available(&mut joined.server, &mut heard);
        heard.len() == 11
    });
    assert_eq!(heard, b"PROXY hello");
    assert_eq!(joined.relay.bytes_in(), 5);
}

#[test]
fn a_real_server_may_speak_first() {
    let mut joined = Joined::new(b"PROXY ");
    joined.server.write_all(b"220 ready").unwrap();
    let mut heard = Vec::new();
    joined.run(|joined| {
        available(&mut joined.client, &mut heard);
        heard == b"220 ready"
    });
    assert_eq!(joined.ended, None);
}

#[test]
fn an_idle_relay_ends_only_where_that_is_configured() {
    let mut joined = Joined::new(b"");
    let start = Instant::now();
    let late = start + Duration::from_secs(1 << 20);
    joined.run(|joined| joined.relay.client.writable);
    assert_eq!(joined.relay.deadline(&TIMEOUTS), None);
    let progress = joined.relay.turn(&mut joined.pipes, &TIMEOUTS, late);
    assert_eq!(progress, Progress::Waiting);
    let timeouts = TcpTimeouts {
        idle: Some(Duration::from_secs(900)),
        ..TIMEOUTS
    };
    assert!(joined.relay.deadline(&timeouts).unwrap() < late);
    let progress = joined.relay.turn(&mut joined.pipes, &timeouts, late);
    assert_eq!(progress, Progress::Ended(Ending::Idle));
}
