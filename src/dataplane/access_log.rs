//! One event for each flow that ended, written by a thread of its own.
//!
//! A worker must not format text between packets. It hands over a record and goes
//! on; when the log is too slow, the record is lost and counted.

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
pub(crate) fn start() -> std::io::Result<(SyncSender<FlowRecord>, thread::JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(DEPTH);
    let thread = thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || run(&receiver))?;
    Ok((sender, thread))
}

fn run(receiver: &Receiver<FlowRecord>) {
    for record in receiver {
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
}
