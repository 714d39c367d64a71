//! A new connection for each request: one thread, one event loop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::wire::{LAST_REQUEST, REQUEST, RESPONSE_LENGTH};
use super::{Closer, Outcome, Quantiles, Window, nanos};

pub(super) fn run(
    window: &Window,
    to: SocketAddr,
    at_a_time: usize,
    closer: Closer,
) -> Result<Outcome> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(at_a_time);
    let mut slots = Vec::with_capacity(at_a_time);
    for index in 0..at_a_time {
        slots.push(Attempt::start(to, &poll, index)?);
    }
    let mut outcome = Outcome::default();
    let mut latencies = Vec::new();
    let mut measured = None;
    let mut until = Instant::now() + window.warm_up;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            match measured.take() {
                None => {
                    let begun = window.begin()?;
                    until = begun.until;
                    measured = Some(begun);
                    latencies.clear();
                    outcome = Outcome::default();
                    continue;
                }
                Some(begun) => {
                    begun.end(&mut outcome)?;
                    break;
                }
            }
        }
        match poll.poll(&mut events, Some(left.max(Duration::from_millis(1)))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            let Token(index) = event.token();
            let attempt = &mut slots[index];
            match attempt.proceed(event.is_writable(), closer) {
                Ok(false) => continue,
                Ok(true) => latencies.push(nanos(attempt.started)),
                Err(error) => outcome.failed(&error),
            }
            // The new one's descriptor is made before the old one is closed, so
            // that no event of the old one can be taken for the new one's.
            *attempt = Attempt::start(to, &poll, index)?;
        }
    }
    if latencies.is_empty() {
        bail!("no connection was served ({:?})", outcome.first_error);
    }
    outcome.count = latencies.len() as u64;
    outcome.micros = Quantiles::of(latencies);
    Ok(outcome)
}

struct Attempt {
    stream: TcpStream,
    asked: bool,
    received: usize,
    started: Instant,
}

impl Attempt {
    fn start(to: SocketAddr, poll: &Poll, index: usize) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let started = Instant::now();
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                bail!("connect to {to}: {error}");
            }
            _ => {}
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        let fd = socket.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), Token(index), both)?;
        Ok(Self {
            stream: socket.into(),
            asked: false,
            received: 0,
            started,
        })
    }

    /// True when the request is answered and the connection may go.
    fn proceed(&mut self, writable: bool, closer: Closer) -> io::Result<bool> {
        if !self.asked {
            if !writable {
                return Ok(false);
            }
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            self.asked = true;
            return match closer {
                Closer::Client => self.stream.write_all(REQUEST),
                Closer::Server => self.stream.write_all(LAST_REQUEST),
            }
            .map(|()| false);
        }
        let mut bytes = [0; RESPONSE_LENGTH];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) if closer == Closer::Server && self.received == RESPONSE_LENGTH => {
                    return Ok(true);
                }
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if closer == Closer::Client && self.received == RESPONSE_LENGTH {
                return Ok(true);
            }
        }
    }
}
