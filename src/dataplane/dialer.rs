//! Sockets towards real servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, Socket, Type};

use super::Masquerade;
use super::local_addresses::interface_addresses;
use super::server_socket::KernelSocket;

/// How long an interface's address is taken for granted.
const INTERFACE_MAX_AGE: Duration = Duration::from_secs(5);

/// Opens sockets whose source address is the node's, as `--masquerade-source` says.
#[derive(Debug)]
pub(crate) struct Dialer {
    masquerade: Masquerade,
    interface: Option<(Instant, Sources)>,
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
        }
    }

    /// Begins to connect to a real server. The outcome shows as writability.
    ///
    /// # Errors
    /// What socket(2), bind(2) or connect(2) fail with at once: EADDRNOTAVAIL when
    /// no port is free, EMFILE, ENETUNREACH.
    pub(crate) fn connect(&mut self, to: SocketAddr, now: Instant) -> io::Result<KernelSocket> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP, now)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(KernelSocket::new(socket))
    }

    /// A UDP socket connected to a real server.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub(crate) fn datagrams(&mut self, to: SocketAddr, now: Instant) -> io::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM, Protocol::UDP, now)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    fn socket(
        &mut self,
        to: SocketAddr,
        kind: Type,
        protocol: Protocol,
        now: Instant,
    ) -> io::Result<Socket> {
        let kind = kind.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
        if let Some(source) = self.source(to.is_ipv4(), now)? {
            // Without it bind(2) would take a port away from all destinations.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
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
        let now = Instant::now();
        let to_first = dialer.connect(first.local_addr().unwrap(), now).unwrap();
        let to_second = dialer.connect(second.local_addr().unwrap(), now).unwrap();
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
            .connect("[::1]:9".parse().unwrap(), Instant::now())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
