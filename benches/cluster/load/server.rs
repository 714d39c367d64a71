//! The real server: one thread with an event loop for HTTP, one for each bulk
//! stream, one for datagrams.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::{Context, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::wire::{DOWN, LAST_REQUEST, REQUEST, REQUEST_END, RESPONSE_LENGTH, UP, response};

/// Length of the accept queue; `net.core.somaxconn` cuts it.
const BACKLOG: i32 = 4096;

/// The listener's token; connections have theirs from 0 on.
const LISTENER: Token = Token(usize::MAX - 1);

/// Bytes that a bulk stream reads or writes at a time.
pub(super) const CHUNK: usize = 128 << 10;

/// Serves until the process is killed.
pub(super) fn serve(address: SocketAddr, name: &str) -> Result<()> {
    let at = || format!("listen at {address}");
    let listener = listen(address).with_context(at)?;
    let datagrams = UdpSocket::bind(address).with_context(at)?;
    thread::spawn(move || echo(&datagrams));
    let server = HttpServer::new(listener, name)?;
    writeln!(io::stdout(), "ready")?;
    server.run()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sends each datagram back with as many bytes again: an answer of DNS is longer
/// than its question.
fn echo(socket: &UdpSocket) {
    let mut datagram = [0; 2048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut datagram[..1024]) {
            // A peer that is gone costs one answer.
            let _ = socket.send_to(&datagram[..2 * length], peer);
        }
    }
}

struct HttpServer {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    response: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// The part of a request that came so far, when it came in parts.
    partial: Vec<u8>,
    started: bool,
}

impl HttpServer {
    fn new(listener: TcpListener, name: &str) -> Result<Self> {
        let poll = Poll::new()?;
        let fd = listener.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            response: response(name),
        })
    }

    fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(index) => self.ready(index),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let fd = stream.as_raw_fd();
            self.connections[index] = Some(Connection {
                stream,
                partial: Vec::new(),
                started: false,
            });
            // Edge-triggered: what has come already is told at once.
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
        }
    }

    fn ready(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        match connection.read(&self.response) {
            Ok(Fate::Stays) => {}
            Ok(Fate::IsBulk(mode)) => {
                if let Some(connection) = self.connections[index].take() {
                    let fd = connection.stream.as_raw_fd();
                    // It was registered above; if not, there is nothing to undo.
                    let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
                    thread::spawn(move || {
                        // The client's end tells how it went.
                        let _ = bulk(connection.stream, mode);
                    });
                }
                self.free.push(index);
            }
            // Closing the descriptor takes it off the epoll as well.
            Ok(Fate::Over) | Err(_) => {
                self.connections[index] = None;
                self.free.push(index);
            }
        }
    }
}

enum Fate {
    Stays,
    Over,
    IsBulk(u8),
}

impl Connection {
    fn read(&mut self, response: &[u8]) -> io::Result<Fate> {
        let mut bytes = [0; 4096];
        loop {
            let length = match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(Fate::Over),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Fate::Stays),
                Err(error) => return Err(error),
            };
            let bytes = &bytes[..length];
            if !self.started {
                self.started = true;
                if bytes[0] == UP || bytes[0] == DOWN {
                    return Ok(Fate::IsBulk(bytes[0]));
                }
            }
            if self.partial.is_empty() && (bytes == REQUEST || bytes == LAST_REQUEST) {
                self.stream.write_all(response)?;
                if bytes == LAST_REQUEST {
                    return Ok(Fate::Over);
                }
                // Nobody sends the next request before it has the response.
                return Ok(Fate::Stays);
            }
            self.partial.extend_from_slice(bytes);
            if self.partial.ends_with(REQUEST_END) {
                let close = contains(&self.partial, b"onnection: close");
                let count = count(&self.partial, REQUEST_END);
                self.partial.clear();
                for _ in 0..count {
                    self.stream.write_all(response)?;
                }
                if close {
                    return Ok(Fate::Over);
                }
            }
        }
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

fn count(text: &[u8], what: &[u8]) -> usize {
    text.windows(what.len()).filter(|&w| w == what).count()
}

fn bulk(mut stream: TcpStream, mode: u8) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut bytes = vec![0x5a; CHUNK];
    if mode == UP {
        while stream.read(&mut bytes)? > 0 {}
        stream.shutdown(Shutdown::Write)
    } else {
        loop {
            stream.write_all(&bytes)?;
        }
    }
}

// A response fits the buffer of any socket that has acknowledged the last one,
// so that write_all never meets a full one.
const _: () = assert!(RESPONSE_LENGTH < 2048);
