//! Hand-over from a running proxy to a new one: `run --takeover`.
//!
//! The new process asks over the admin socket of the former one, and gets descriptors of
//! the TUN's queues and of the listeners, which it does not use yet. It programs its first
//! full state, then asks for the rest. The former process stops reading and lending, and
//! tells its flows, where its schedulers stand and which clients stay where. The new
//! process begins to read and says so; only then the former one gives its part up, and
//! drains. Until it has heard that, it goes on as before whenever the other one fails, and
//! packets meanwhile wait in the device.
//!
//! ```text
//! new                             former
//!  │ ── Hello ───────────────────▶ │
//!  │ ◀── Offer, queues, listeners─ │
//!  │ (programs its first state)    │ (serves)
//!  │ ── Take ────────────────────▶ │ stops reading
//!  │ ◀── State, sockets ────────── │
//!  │ begins to read                │
//!  │ ── Reading ─────────────────▶ │ lets go of listeners, routes, admin socket
//!  │ ◀── Committed ─────────────── │
//!  │ serves all that is new        │ serves what it has, then ends
//! ```
//!
//! No task of its own: each side is driven by [`App`](super::App).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::dataplane::HandedFlow;
use crate::ipvs::ServerMemory;
use crate::node_port::LentList;
use crate::tun::Offloads;

mod channel;
mod former;
mod new;
mod waiting;

pub(super) use former::{FormerSide, Taking};
pub(super) use new::{Predecessor, greet};
pub(super) use waiting::gone;
pub use waiting::until_gone;

/// Of the messages below. Another number, and the two do not understand each other.
const PROTOCOL: u32 = 1;

/// How long a new process may take to program its first full state.
const PROGRAMMING: Duration = Duration::from_secs(300);

/// Why the running proxy was not taken over from. It goes on as before.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// It said no.
    #[error("--takeover: the running proxy refuses: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// It is a newer one.
    #[error(
        "--takeover: the running proxy is of generation {generation}, and this one older: it does \
         not take over"
    )]
    Superseded {
        /// Its `--generation`.
        generation: u64,
    },
    /// It knows of no hand-over.
    #[error("--takeover: the running proxy does not know how to hand over")]
    Unknown,
    /// It speaks another version of the protocol.
    #[error(
        "--takeover: the running proxy (version {version}) hands over by protocol {protocol}, \
         this one by {PROTOCOL}"
    )]
    Protocol {
        /// Its version.
        version: String,
        /// Its protocol.
        protocol: u32,
    },
    /// Its device is not the one that this configuration names.
    #[error("--tun-name {wanted}: the device of the running proxy is {found}")]
    Device {
        /// What was given.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The admin socket cannot be used.
    #[error("--takeover: cannot ask on {}", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The two lost each other on the way.
    #[error("--takeover: {step} failed; the running proxy goes on")]
    Broken {
        /// What was being done.
        step: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Names of listeners that are handed over besides the admin socket.
pub(super) const HEALTHZ: &str = "healthz";
pub(super) const METRICS: &str = "metrics";

#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    version: String,
    pid: u32,
    /// `--generation`.
    #[serde(default)]
    generation: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Nothing is handed over, and why.
    Refused { reason: String },
    /// Nothing is handed over to an older process; with the `--generation` of this one.
    Superseded { generation: u64 },
    /// With the queues, the admin socket's listener and the others as descriptors.
    Offer(Offer),
}

#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    protocol: u32,
    version: String,
    pid: u32,
    tun: String,
    checksum: bool,
    tcp_segmentation: bool,
    udp_segmentation: bool,
    queues: usize,
    listeners: Vec<(String, SocketAddr)>,
}

impl Offer {
    fn offloads(&self) -> Offloads {
        Offloads {
            checksum: self.checksum,
            tcp_segmentation: self.tcp_segmentation,
            udp_segmentation: self.udp_segmentation,
        }
    }
}

/// With a socket for each worker of the former process, then what the node ports lend,
/// then the health checks.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    flows: Vec<HandedFlow>,
    workers: usize,
    servers: Vec<ServerMemory>,
    node_ports: LentList,
    /// Where health check node ports listen.
    #[serde(default)]
    health_checks: Vec<SocketAddr>,
}

/// Messages without anything in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Take,
    Reading,
    Committed,
}

/// A listener by name, for the other process.
#[derive(Debug)]
pub(super) struct NamedListener {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) socket: OwnedFd,
}

impl NamedListener {
    /// Those that there are.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub(super) fn all<'a>(
        listeners: impl IntoIterator<Item = (&'static str, Option<&'a TcpListener>)>,
    ) -> io::Result<Vec<Self>> {
        let there = listeners
            .into_iter()
            .filter_map(|(name, listener)| Some((name, listener?)));
        let named = there.map(|(name, listener)| {
            Ok(Self {
                name,
                address: listener.local_addr()?,
                socket: listener.as_fd().try_clone_to_owned()?,
            })
        });
        named.collect()
    }
}

fn unexpected(word: Word) -> io::Error {
    let what = format!("the other process said {word:?} out of turn");
    io::Error::new(io::ErrorKind::InvalidData, what)
}
