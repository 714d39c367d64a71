//! Requests on kept connections: one thread, one event loop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::wire::{REQUEST, RESPONSE_LENGTH};
use super::{Outcome, Quantiles, Window, nanos};

pub(super) fn run(window: &Window, to: SocketAddr, connections: usize) -> Result<Outcome> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        clients.push(Client::connect(to).with_context(|| format!("connect to {to}"))?);
    }
    if let [client] = &mut clients[..] {
        return alone(window, client);
    }
    let mut poll = Poll::new()?;
    for (index, client) in clients.iter_mut().enumerate() {
        let fd = client.stream.as_raw_fd();
        client.stream.set_nonblocking(true)?;
        poll.registry()
            .register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
        client.ask()?;
    }
    let mut outcome = Outcome::default();
    let mut events = Events::with_capacity(connections);
    let warm_until = Instant::now() + window.warm_up;
    turn(
        &mut poll,
        &mut events,
        &mut clients,
        warm_until,
        &mut |_| {},
    )?;
    let mut latencies = Vec::new();
    let measured = window.begin()?;
    turn(
        &mut poll,
        &mut events,
        &mut clients,
        measured.until,
        &mut |nanos| latencies.push(nanos),
    )?;
    measured.end(&mut outcome)?;
    finish(outcome, latencies)
}

/// One request on a connection that blocks; returns what the server calls itself.
pub(super) fn ask_once(mut stream: TcpStream) -> Result<String> {
    stream.write_all(REQUEST)?;
    let mut bytes = [0; RESPONSE_LENGTH];
    stream.read_exact(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, body) = text.split_once("\r\n\r\n").context("no HTTP head")?;
    let name = body.lines().next().unwrap_or_default();
    Ok(name.to_owned())
}

/// One connection needs no event loop: it blocks.
fn alone(window: &Window, client: &mut Client) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let warm_until = Instant::now() + window.warm_up;
    while Instant::now() < warm_until {
        client.ask()?;
        while client.answer()?.is_none() {}
    }
    let mut latencies = Vec::new();
    let measured = window.begin()?;
    while Instant::now() < measured.until {
        client.ask()?;
        loop {
            if let Some(nanos) = client.answer()? {
                latencies.push(nanos);
                break;
            }
        }
    }
    measured.end(&mut outcome)?;
    finish(outcome, latencies)
}

fn finish(mut outcome: Outcome, latencies: Vec<u32>) -> Result<Outcome> {
    if latencies.is_empty() {
        bail!("no request was answered");
    }
    outcome.count = latencies.len() as u64;
    outcome.micros = Quantiles::of(latencies);
    Ok(outcome)
}

fn turn(
    poll: &mut Poll,
    events: &mut Events,
    clients: &mut [Client],
    until: Instant,
    note: &mut impl FnMut(u32),
) -> Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        match poll.poll(events, Some(left.max(Duration::from_millis(1)))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in events.iter() {
            let Token(index) = event.token();
            if let Some(nanos) = clients[index].answer()? {
                note(nanos);
                clients[index].ask()?;
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    received: usize,
    asked: Instant,
}

impl Client {
    fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            received: 0,
            asked: Instant::now(),
        })
    }

    fn ask(&mut self) -> io::Result<()> {
        self.received = 0;
        self.asked = Instant::now();
        self.stream.write_all(REQUEST)
    }

    /// The latency in nanoseconds once the whole response is here.
    fn answer(&mut self) -> io::Result<Option<u32>> {
        let mut bytes = [0; RESPONSE_LENGTH];
        // No response follows this one, so that a short read is the only thing
        // that can make the edge-triggered poll tell twice.
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.received += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok((self.received == RESPONSE_LENGTH).then(|| nanos(self.asked)))
    }
}
