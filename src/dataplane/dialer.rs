//! Sockets towards real servers.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, Socket, Type};

use super::Masquerade;
use super::local_addresses::interface_addresses;
use super::server_socket::{HandshakeAck, KernelSocket};
use spare_ports::SparePorts;

mod spare_ports;

/// How long an interface's address is taken for granted.
const INTERFACE_MAX_AGE: Duration = Duration::from_secs(5);

/// Spare ports tried for one connection: each may be in use towards that real server.
const SPARE_TRIES: usize = 8;

/// Opens sockets whose source address is the node's, as `--masquerade-source` says.
#[derive(Debug)]
pub(crate) struct Dialer {
    masquerade: Masquerade,
    interface: Option<(Instant, Sources)>,
    spare: SparePorts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sources {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Dialer {
    pub(crate) fn new(masquerade: Masquerade) -> Self {
        Self {
            masquerade,
            interface: None,
            // Each worker's begin elsewhere.
            spare: SparePorts::of_node(RandomState::new().hash_one(0) as usize),
        }
    }

    /// Takes its source addresses so from now on.
    pub(crate) fn follow(&mut self, masquerade: &Masquerade) {
        if *masquerade != self.masquerade {
            *self = Self::new(masquerade.clone());
        }
    }

    /// Begins to connect to a real server. The outcome shows as writability. `when` is its
    /// word that the handshake is complete.
    ///
    /// # Errors
    /// What socket(2), bind(2) or connect(2) fail with at once: EADDRNOTAVAIL when
    /// no port is free, EMFILE, ENETUNREACH.
    pub(crate) fn connect(
        &mut self,
        to: SocketAddr,
        when: HandshakeAck,
        now: Instant,
    ) -> io::Result<KernelSocket> {
        let source = self.source(to.is_ipv4(), now)?;
        if !self.spare.is_needed(to, now) {
            let socket = automatic_port(to, source, Type::STREAM, Protocol::TCP)?;
            match begin(&socket, to, when) {
                Err(error) if is_unavailable(&error) && self.spare.need(to, now) => {}
                result => return result.map(|()| KernelSocket::connecting(socket, when)),
            }
        }
        for _ in 0..SPARE_TRIES {
            let Some(port) = self.spare.take() else { break };
            let attempt = port_by_hand(to, source, port).and_then(|socket| {
                begin(&socket, to, when)?;
                Ok(socket)
            });
            match attempt {
                Ok(socket) => return Ok(KernelSocket::connecting(socket, when)),
                // Held towards this real server, or by a program that shares no port.
                Err(error) if is_unavailable(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
    }

    /// A UDP socket connected to a real server.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub(crate) fn datagrams(&mut self, to: SocketAddr, now: Instant) -> io::Result<UdpSocket> {
        let source = self.source(to.is_ipv4(), now)?;
        let socket = automatic_port(to, source, Type::DGRAM, Protocol::UDP)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    /// The address to bind to; `None` leaves the choice to the route.
    fn source(&mut self, v4: bool, now: Instant) -> io::Result<Option<IpAddr>> {
        let sources = match &self.masquerade {
            Masquerade::Auto => return Ok(None),
            Masquerade::Address { v4, v6 } => Sources { v4: *v4, v6: *v6 },
            Masquerade::Interface(name) => match self.interface {
                Some((read, sources)) if now < read + INTERFACE_MAX_AGE => sources,
                _ => {
                    let sources = Sources::of(name);
                    self.interface = Some((now, sources));
                    sources
                }
            },
        };
        let source = if v4 {
            sources.v4.map(IpAddr::V4)
        } else {
            sources.v6.map(IpAddr::V6)
        };
        source
            .map(Some)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
    }
}

/// A socket whose port the kernel chooses when it connects.
fn automatic_port(
    to: SocketAddr,
    source: Option<IpAddr>,
    kind: Type,
    protocol: Protocol,
) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(to),
        kind.nonblocking().cloexec(),
        Some(protocol),
    )?;
    if let Some(source) = source {
        // Without it bind(2) would take a port away from all destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// A socket bound to `port`, which connections to other real servers may have as well.
fn port_by_hand(to: SocketAddr, source: Option<IpAddr>, port: u16) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    let any = match to {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    socket.bind(&SocketAddr::new(source.unwrap_or(any), port).into())?;
    Ok(socket)
}

fn begin(socket: &Socket, to: SocketAddr, when: HandshakeAck) -> io::Result<()> {
    if when == HandshakeAck::WithData {
        // Off for this one acknowledgment: the kernel leaves the mode again when it has
        // held it back (tcp_rcv_synsent_state_process, net/ipv4/tcp_input.c).
        socket.set_tcp_quickack(false)?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_unavailable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
}

impl Sources {
    fn of(interface: &str) -> Self {
        let mut addresses: Vec<_> = interface_addresses(Some(interface)).into_iter().collect();
        addresses.sort_unstable();
        let mut sources = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => sources.v4 = sources.v4.or(Some(v4)),
                IpAddr::V6(v6) if v6.is_unicast_link_local() => {}
                IpAddr::V6(v6) => sources.v6 = sources.v6.or(Some(v6)),
            }
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn many_sockets_bound_to_one_address_do_not_hold_a_port_each() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut dialer = Dialer::new(IpAddr::from(Ipv4Addr::new(127, 0, 0, 9)).into());
        let connect = |dialer: &mut Dialer, to: &TcpListener| {
            dialer.connect(
                to.local_addr().unwrap(),
                HandshakeAck::AtOnce,
                Instant::now(),
            )
        };
        let to_first = connect(&mut dialer, &first).unwrap();
        let to_second = connect(&mut dialer, &second).unwrap();
        for socket in [&to_first, &to_second] {
            let local = socket.local_address().unwrap();
            assert_eq!(local.ip(), IpAddr::from(Ipv4Addr::new(127, 0, 0, 9)));
            assert_ne!(local.port(), 0);
        }
        assert_eq!(first.accept().unwrap().1.ip().to_string(), "127.0.0.9");
    }

    #[test]
    fn a_family_without_a_source_cannot_be_reached() {
        let mut dialer = Dialer::new(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let error = dialer
            .connect(
                "[::1]:9".parse().unwrap(),
                HandshakeAck::AtOnce,
                Instant::now(),
            )
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
