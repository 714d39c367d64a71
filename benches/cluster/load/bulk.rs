//! Streams that move as much as the way takes, a thread each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::server::CHUNK;
use super::wire::{DOWN, UP};
use super::{Direction, Outcome, Window};

pub(super) fn run(
    window: &Window,
    to: SocketAddr,
    streams: usize,
    direction: Direction,
) -> Result<Outcome> {
    let moved: Vec<Arc<AtomicU64>> = (0..streams).map(|_| Arc::default()).collect();
    let (failed, failures) = sync_channel(streams);
    for count in &moved {
        let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
        let (count, failed) = (count.clone(), failed.clone());
        thread::spawn(move || {
            let error = match direction {
                Direction::Up => send(&mut stream, &count),
                Direction::Down => receive(&mut stream, &count),
            };
            // The channel has room for one failure of each stream.
            let _ = failed.send(error);
        });
    }
    let total = || -> u64 {
        moved
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    };
    let mut outcome = Outcome::default();
    window.warm();
    let measured = window.begin()?;
    let before = total();
    thread::sleep(measured.until.saturating_duration_since(Instant::now()));
    outcome.count = total() - before;
    measured.end(&mut outcome)?;
    while let Ok(error) = failures.try_recv() {
        outcome.failed(&error);
    }
    if outcome.count == 0 {
        bail!("nothing moved ({:?})", outcome.first_error);
    }
    Ok(outcome)
}

/// Ends with an error only.
fn send(stream: &mut TcpStream, count: &AtomicU64) -> io::Error {
    let bytes = vec![0x5a; CHUNK];
    if let Err(error) = stream.write_all(&[UP]) {
        return error;
    }
    loop {
        match stream.write(&bytes) {
            Ok(length) => count.fetch_add(length as u64, Ordering::Relaxed),
            Err(error) => return error,
        };
    }
}

fn receive(stream: &mut TcpStream, count: &AtomicU64) -> io::Error {
    let mut bytes = vec![0; CHUNK];
    if let Err(error) = stream.write_all(&[DOWN]) {
        return error;
    }
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(length) => count.fetch_add(length as u64, Ordering::Relaxed),
            Err(error) => return error,
        };
    }
}
