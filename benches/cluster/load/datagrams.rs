//! Queries over UDP, shaped as those of DNS: one thread, one event loop.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use super::{Outcome, Quantiles, Window, nanos};

/// Length of a query in bytes: a header of 12, a name of 24, type and class. The
/// server answers with twice as much.
const QUERY: [u8; 40] = [0x71; 40];

/// After so long a query counts as lost and is asked anew.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked for lost ones.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

pub(super) fn run(
    window: &Window,
    to: SocketAddr,
    at_a_time: usize,
    kept: bool,
) -> Result<Outcome> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(at_a_time);
    let mut slots = Vec::with_capacity(at_a_time);
    for index in 0..at_a_time {
        slots.push(Query::start(to, &poll, index)?);
    }
    let mut outcome = Outcome::default();
    let mut latencies = Vec::new();
    let mut measured = None;
    let mut until = Instant::now() + window.warm_up;
    let mut looked = Instant::now();
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
        let wait = left.clamp(Duration::from_millis(1), LOOK_PERIOD);
        match poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            let Token(index) = event.token();
            let query = &mut slots[index];
            match query.answer() {
                Ok(false) => continue,
                Ok(true) => latencies.push(nanos(query.asked)),
                Err(error) => outcome.failed(&error),
            }
            if kept {
                query.ask()?;
            } else {
                *query = Query::start(to, &poll, index)?;
            }
        }
        if looked.elapsed() >= LOOK_PERIOD {
            looked = Instant::now();
            for (index, query) in slots.iter_mut().enumerate() {
                if query.asked.elapsed() >= LOST_AFTER {
                    outcome.failed(&io::Error::new(ErrorKind::TimedOut, "no answer within 1 s"));
                    *query = Query::start(to, &poll, index)?;
                }
            }
        }
    }
    if latencies.is_empty() {
        bail!("no query was answered ({:?})", outcome.first_error);
    }
    outcome.count = latencies.len() as u64;
    outcome.micros = Quantiles::of(latencies);
    Ok(outcome)
}

struct Query {
    socket: UdpSocket,
    asked: Instant,
}

impl Query {
    /// A fresh socket, and a query on it.
    fn start(to: SocketAddr, poll: &Poll, index: usize) -> Result<Self> {
        let asked = Instant::now();
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&to.into())?;
        let fd = socket.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
        let mut query = Self {
            socket: socket.into(),
            asked,
        };
        query.send()?;
        Ok(query)
    }

    fn ask(&mut self) -> io::Result<()> {
        self.asked = Instant::now();
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        match self.socket.send(&QUERY) {
            // A full send queue is a lost query, an ICMP error of an earlier one
            // is told when the answer is looked for.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            sent => sent.map(|_| ()),
        }
    }

    fn answer(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 512];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Ok(length == 2 * QUERY.len()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}
