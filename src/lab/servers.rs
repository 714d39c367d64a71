//! Real servers, over TCP and UDP, that say who they are and whom they see.
//!
//! Each [`Server`] owns one thread with a runtime of its own; its sockets were
//! bound in a namespace and stay there. Dropping the server ends the thread and
//! closes every socket, open connections included.

mod record;
mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

pub use record::{Ended, How};
pub use tcp::{Fnv1a, pattern};

use super::cluster::Pod;
use super::error::LabError;
use super::namespace::Namespace;
use record::Record;

/// Connections a TCP server serves at a time; more wait in the backlog.
pub const MAX_CONNECTIONS: usize = 4096;

/// Length of the accept queue; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Receive buffer asked for on UDP sockets, in bytes: several datagrams of full
/// size. The kernel cuts it to `net.core.rmem_max`.
const UDP_RECEIVE_BUFFER: usize = 4 << 20;

/// What a TCP server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// Sends `<name> saw <peer>\n` on connect and again for each line received,
    /// until the client closes its half.
    Who(String),
    /// HTTP/1.1 with keep-alive; the body is `<name> saw <peer>\n`.
    Http(String),
    /// Sends back what it receives, half-close included.
    Echo,
    /// Reads to the client's half-close, then sends `<FNV-1a/64, 16 hex digits>
    /// <bytes>\n` and closes.
    Digest,
    /// Sends so many bytes of [`pattern`], then closes its half, and reads to
    /// the client's.
    Source(u64),
    /// Waits for something to read, then closes with RST.
    Reset,
    /// Reads at this pace, in bytes a second, and answers as [`Tcp::Digest`].
    /// Its receive buffer is small, so that the pace is felt.
    Slow(NonZeroU64),
    /// Reads nothing and sends nothing until [`Server::release`], then closes.
    Hold,
}

/// What a UDP server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Udp {
    /// Answers each datagram with `<name> saw <peer>\n`.
    Who(String),
    /// Sends each datagram back.
    Echo,
    /// Receives and never answers.
    Mute,
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    record: Arc<Record>,
    /// Raised once for [`Self::release`], twice for the end.
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Released,
    Stopped,
}

impl Server {
    /// Starts a TCP server in a namespace. Port 0 takes a free one; the address
    /// `[::]` serves IPv4 too.
    ///
    /// # Errors
    ///
    /// [`LabError::Server`], as when the address is taken.
    pub fn tcp(namespace: &Namespace, address: SocketAddr, what: Tcp) -> Result<Self, LabError> {
        let named = what.to_string();
        Self::start(
            namespace,
            address,
            named,
            Type::STREAM,
            move |socket, record, phase| {
                let listener = tokio::net::TcpListener::from_std(socket.into())?;
                Ok(tcp::serve(listener, what, record, phase))
            },
        )
    }

    /// Starts a UDP server in a namespace; the address as for [`Self::tcp`].
    ///
    /// # Errors
    ///
    /// [`LabError::Server`], as when the address is taken.
    pub fn udp(namespace: &Namespace, address: SocketAddr, what: Udp) -> Result<Self, LabError> {
        let named = what.to_string();
        Self::start(
            namespace,
            address,
            named,
            Type::DGRAM,
            move |socket, record, _| {
                let socket = tokio::net::UdpSocket::from_std(socket.into())?;
                Ok(udp::serve(socket, what, record))
            },
        )
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it accepted, or datagrams it received.
    pub fn accepted(&self) -> usize {
        self.record.peers().len()
    }

    /// Who connected, or sent a datagram: in order, one entry each time. IPv4
    /// peers are IPv4 addresses also on a socket that serves both.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.record.peers()
    }

    /// The connections that are over, in the order they ended.
    pub fn ended(&self) -> Vec<Ended> {
        self.record.ended()
    }

    /// Waits until `count` connections were accepted (datagrams received); false
    /// when that takes longer than `limit`.
    #[must_use]
    pub fn wait_for_accepted(&self, count: usize, limit: Duration) -> bool {
        self.record.wait(limit, |peers, _| peers.len() >= count)
    }

    /// Waits until `count` connections are over; false when that takes longer
    /// than `limit`.
    #[must_use]
    pub fn wait_for_ended(&self, count: usize, limit: Duration) -> bool {
        self.record.wait(limit, |_, ended| ended.len() >= count)
    }

    /// Lets the connections of a [`Tcp::Hold`] go, those to come included.
    pub fn release(&self) {
        self.phase
            .send_modify(|phase| *phase = (*phase).max(Phase::Released));
    }

    fn start<F>(
        namespace: &Namespace,
        address: SocketAddr,
        behaviour: String,
        kind: Type,
        serve: impl FnOnce(Socket, Arc<Record>, watch::Receiver<Phase>) -> io::Result<F>
        + Send
        + 'static,
    ) -> Result<Self, LabError>
    where
        F: Future<Output = ()>,
    {
        let record = Arc::new(Record::default());
        let (phase, phases) = watch::channel(Phase::Serving);
        let started = (|| {
            let socket = namespace.run(|| bind(address, kind))?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()?;
            let record = record.clone();
            let thread = std::thread::Builder::new().name(format!("serve {address}"));
            let thread = thread.spawn(move || {
                runtime.block_on(async {
                    let mut stop = phases.clone();
                    match serve(socket, record, phases) {
                        Ok(serving) => tokio::select! {
                            () = serving => {}
                            // An error is a sender that is gone: stopped too.
                            _ = stop.wait_for(|phase| *phase == Phase::Stopped) => {}
                        },
                        Err(error) => tracing::error!(%error, "lab: server not started"),
                    }
                });
            })?;
            Ok((bound, thread))
        })();
        match started {
            Ok((address, thread)) => Ok(Self {
                address,
                record,
                phase,
                thread: Some(thread),
            }),
            Err(cause) => Err(LabError::Server {
                address,
                behaviour,
                cause,
            }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stopped);
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported there.
            drop(thread.join());
        }
    }
}

impl Pod {
    /// Starts a TCP server on a port of this pod, over IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`LabError::Server`], as when the port is taken.
    pub fn serve_tcp(&self, port: u16, what: Tcp) -> Result<Server, LabError> {
        Server::tcp(self.namespace(), both_families(port), what)
    }

    /// Starts a UDP server on a port of this pod, over IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`LabError::Server`], as when the port is taken.
    pub fn serve_udp(&self, port: u16, what: Udp) -> Result<Server, LabError> {
        Server::udp(self.namespace(), both_families(port), what)
    }

    /// Address and port of this pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address().into(), port)
    }

    /// IPv6 address and port of this pod.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address6().into(), port)
    }
}

impl fmt::Display for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Who(name) => write!(f, "who ({name})"),
            Self::Http(name) => write!(f, "http ({name})"),
            Self::Echo => f.write_str("echo"),
            Self::Digest => f.write_str("digest"),
            Self::Source(bytes) => write!(f, "source ({bytes} bytes)"),
            Self::Reset => f.write_str("reset"),
            Self::Slow(pace) => write!(f, "slow ({pace} bytes/s)"),
            Self::Hold => f.write_str("hold"),
        }
    }
}

impl fmt::Display for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Who(name) => write!(f, "who over udp ({name})"),
            Self::Echo => f.write_str("echo over udp"),
            Self::Mute => f.write_str("mute over udp"),
        }
    }
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    } else {
        socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn both_families(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// `::ffff:10.1.15.0` as 10.1.15.0: what a socket of both families calls it.
fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), peer.port()),
        IpAddr::V6(_) => peer,
    }
}

/// The line by which a server says who it is and whom it sees.
fn who_line(name: &str, peer: SocketAddr) -> String {
    format!("{name} saw {peer}\n")
}
