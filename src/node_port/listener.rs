//! Kernel sockets that take connections and datagrams for a service.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use super::audience::restrict;
use crate::dataplane::{KernelSocket, ServerSocket};
use crate::ipvs::{Protocol, ServicePortName, VirtualAddress};

/// Connections that wait for us; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Receive buffer asked for on UDP sockets, in bytes, since all clients of a port
/// share one: as much as several hundred datagrams of full Ethernet frames count. The
/// kernel cuts it to net.core.rmem_max.
const UDP_RECEIVE_BUFFER: usize = 1 << 20;

/// First and longest wait before a port that is taken is tried again: kube-proxy
/// tries with each sync, which comes every 30 s at least.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// First and longest wait before connections are accepted again after the process
/// ran out of descriptors.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where one socket listens, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    /// Where it is bound.
    pub(super) at: ListenAddress,
    /// The virtual server in the table.
    pub(super) server: VirtualAddress,
    /// Whose it is.
    pub(super) service: Arc<ServicePortName>,
    /// Who may connect, if not everybody.
    pub(super) only: Option<Arc<[IpNet]>>,
}

/// Address, port and protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ListenAddress {
    pub(super) protocol: Protocol,
    pub(super) address: SocketAddr,
}

/// A listener, open or waiting for its port.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) listen: Listen,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    Tcp {
        socket: mio::net::TcpListener,
        /// There may be more to accept.
        ready: bool,
        /// Not before this time, and how long the next wait is.
        pause: Option<Pause>,
    },
    Udp {
        /// Shared with the flows that answer through it.
        socket: Rc<UdpSocket>,
        ready: bool,
    },
    /// The port is not to be had.
    Taken(Pause),
}

/// When to try again, and the wait after that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) until: Instant,
    next: Duration,
    max: Duration,
}

impl Pause {
    pub(super) fn taken(now: Instant) -> Self {
        Self::new(now, RETRY_FIRST, RETRY_MAX)
    }

    pub(super) fn descriptors(now: Instant) -> Self {
        Self::new(now, PAUSE_FIRST, PAUSE_MAX)
    }

    fn new(now: Instant, first: Duration, max: Duration) -> Self {
        Self {
            until: now + first,
            next: (first * 2).min(max),
            max,
        }
    }

    /// The next, twice as long.
    pub(super) fn again(self, now: Instant) -> Self {
        Self {
            until: now + self.next,
            next: (self.next * 2).min(self.max),
            max: self.max,
        }
    }
}

impl Listener {
    pub(super) fn fd(&self) -> Option<RawFd> {
        match &self.state {
            State::Tcp { socket, .. } => Some(socket.as_raw_fd()),
            State::Udp { socket, .. } => Some(socket.as_raw_fd()),
            State::Taken(_) => None,
        }
    }

    /// The socket is for this from now on.
    ///
    /// # Errors
    ///
    /// As setsockopt(2) where others are to be let in than before; it lets in those
    /// of before then.
    pub(super) fn pass_to(&mut self, listen: Listen) -> io::Result<()> {
        let changed = listen.only != self.listen.only;
        self.listen = listen;
        match &self.state {
            State::Tcp { socket, .. } if changed => {
                let v4 = self.listen.at.address.is_ipv4();
                restrict(&SockRef::from(socket), self.listen.only.as_deref(), v4)
            }
            State::Tcp { .. } | State::Udp { .. } | State::Taken(_) => Ok(()),
        }
    }

    /// When it wants to be looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Tcp { pause, .. } => pause.map(|pause| pause.until),
            State::Taken(pause) => Some(pause.until),
            State::Udp { .. } => None,
        }
    }
}

/// Opens the socket.
///
/// # Errors
/// As bind(2) and listen(2): EADDRINUSE when somebody has the port, EADDRNOTAVAIL when
/// the address has gone.
pub(super) fn open(at: ListenAddress, only: Option<&[IpNet]>) -> io::Result<State> {
    match at.protocol {
        Protocol::Tcp => {
            let socket = socket(at.address, Type::STREAM)?;
            // Connections of ours in TIME_WAIT keep nobody from listening again.
            socket.set_reuse_address(true)?;
            socket.set_tcp_nodelay(true)?;
            socket.bind(&at.address.into())?;
            if only.is_some()
                && let Err(error) = restrict(&socket, only, at.address.is_ipv4())
            {
                tell_unfiltered(at, &error);
            }
            socket.listen(BACKLOG)?;
            // Accepted sockets inherit this, as TCP_NODELAY: no call for each.
            let mut socket = KernelSocket::new(socket);
            socket.keep_alive();
            let socket: std::net::TcpListener = OwnedFd::from(socket.into_socket()).into();
            Ok(State::Tcp {
                socket: mio::net::TcpListener::from_std(socket),
                ready: true,
                pause: None,
            })
        }
        Protocol::Udp => {
            let socket = socket(at.address, Type::DGRAM)?;
            socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)?;
            socket.bind(&at.address.into())?;
            Ok(State::Udp {
                socket: Rc::new(socket.into()),
                ready: true,
            })
        }
        Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Goes on with the socket of another process, and lets in whom this one would.
pub(super) fn inherit(at: ListenAddress, only: Option<&[IpNet]>, socket: OwnedFd) -> State {
    if at.protocol == Protocol::Udp {
        return State::Udp {
            socket: Rc::new(socket.into()),
            ready: true,
        };
    }
    if let Err(error) = restrict(&SockRef::from(&socket), only, at.address.is_ipv4()) {
        tell_unfiltered(at, &error);
    }
    State::Tcp {
        socket: mio::net::TcpListener::from_std(socket.into()),
        ready: true,
        pause: None,
    }
}

/// It is served all the same: who is not meant is reset by what the table says.
pub(super) fn tell_unfiltered(at: ListenAddress, error: &io::Error) {
    tracing::warn!(
        address = %at.address, %error,
        "the kernel does not take the filter of who may connect here: others are reset"
    );
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// True when the process or the system has no descriptor or memory left for a
/// connection, as opposed to a connection that is gone already.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(protocol: Protocol, address: &str) -> ListenAddress {
        ListenAddress {
            protocol,
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let error = open(at(Protocol::Tcp, &address.to_string()), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(holder);
        open(at(Protocol::Tcp, &address.to_string()), None).unwrap();
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let error = open(at(Protocol::Udp, &address.to_string()), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        open(at(Protocol::Sctp, "127.0.0.1:0"), None).unwrap_err();
    }

    #[test]
    fn waits_double_up_to_their_limit() {
        let start = Instant::now();
        let mut pause = Pause::taken(start);
        let mut waits = vec![pause.until - start];
        for _ in 0..6 {
            let now = pause.until;
            pause = pause.again(now);
            waits.push(pause.until - now);
        }
        let seconds: Vec<_> = waits.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }
}
