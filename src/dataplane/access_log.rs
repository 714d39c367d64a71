//! One event for each flow that ended, written by a thread of its own.
//!
//! A worker must not format text between packets. It hands over a record and goes
//! on; when the log is too slow, the record is lost and counted.

use std::cell::RefCell;
use std::io::{self, Stderr, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::ending::Ending;
use crate::ipvs::{Protocol, ServicePortName};

/// Records that wait to be written: a tenth of a second at 80,000 flows a second.
/// When it is full the worker drops the record and counts it.
const DEPTH: usize = 8192;

/// How long records gather before they are written together. A thread that waits for
/// each costs two switches and a system call a flow: 9 % of the CPU that short connections
/// took of the proxy. With it no more than 400,000 flows a second fit into [`DEPTH`].
const GATHER: Duration = Duration::from_millis(20);

/// Bytes that are written at once, at most.
const BLOCK: usize = 64 << 10;

/// What became of one flow.
#[derive(Clone, Debug)]
pub(crate) struct FlowRecord {
    pub(crate) protocol: Protocol,
    pub(crate) service: Arc<ServicePortName>,
    pub(crate) client: SocketAddr,
    pub(crate) virtual_server: SocketAddr,
    pub(crate) real_server: Option<SocketAddr>,
    pub(crate) source: Option<SocketAddr>,
    /// Real servers tried.
    pub(crate) attempts: u32,
    /// From the first SYN to the connected real server.
    pub(crate) dial_time: Option<Duration>,
    pub(crate) duration: Duration,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) ending: Ending,
}

/// Starts the thread. It ends when all senders are gone.
pub(crate) fn start() -> io::Result<(SyncSender<FlowRecord>, thread::JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(DEPTH);
    let thread = thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || run(&receiver))?;
    Ok((sender, thread))
}

fn run(receiver: &Receiver<FlowRecord>) {
    while let Ok(first) = receiver.recv() {
        gather();
        for record in std::iter::once(first).chain(receiver.try_iter()) {
            write(&record);
        }
        release();
        thread::sleep(GATHER);
    }
}

fn write(record: &FlowRecord) {
    tracing::info!(
        target: "access",
        protocol = record.protocol.as_str(),
        service = %record.service,
        client = %record.client,
        virtual_server = %record.virtual_server,
        real_server = record.real_server.map(tracing::field::display),
        source = record.source.map(tracing::field::display),
        attempts = record.attempts,
        dial_us = record.dial_time.map(|time| time.as_micros() as u64),
        duration_ms = record.duration.as_millis() as u64,
        bytes_in = record.bytes_in,
        bytes_out = record.bytes_out,
        ending = record.ending.as_str(),
    );
}

thread_local! {
    /// What this thread has logged and not yet written, while it gathers.
    static GATHERED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// From now on what this thread logs is written in blocks.
fn gather() {
    GATHERED.with_borrow_mut(|gathered| {
        gathered.get_or_insert_default();
    });
}

/// Writes what was gathered.
fn release() {
    if let Some(gathered) = GATHERED.take() {
        // A log that cannot be written cannot be told of.
        let _ = io::stderr().write_all(&gathered);
    }
}

/// Standard error, where a log is written to: line by line, but for the events of flows
/// that ended, which this module writes in blocks.
#[derive(Debug)]
pub struct LogWriter(Stderr);

impl Default for LogWriter {
    fn default() -> Self {
        Self(io::stderr())
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let full = GATHERED.with_borrow_mut(|gathered| {
            let gathered = gathered.as_mut()?;
            gathered.extend_from_slice(line);
            Some(gathered.len() >= BLOCK)
        });
        match full {
            None => self.0.write(line),
            Some(full) => {
                if full {
                    release();
                    gather();
                }
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
