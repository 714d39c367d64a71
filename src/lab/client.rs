//! Short questions to a server, asked from inside a namespace.
//!
//! Each socket is made in the namespace and stays there; every wait has a limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::namespace::Namespace;

/// What a server of [`super::servers`] says: who it is and whom it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The server's name.
    pub name: String,
    /// The address and port it saw.
    pub peer: SocketAddr,
}

impl Seen {
    /// Parses `<name> saw <peer>`.
    ///
    /// # Errors
    ///
    /// With the text, when it is something else.
    pub fn parse(line: &str) -> io::Result<Self> {
        let parsed = line
            .trim_end()
            .rsplit_once(" saw ")
            .and_then(|(name, peer)| {
                Some(Self {
                    name: name.to_owned(),
                    peer: peer.parse().ok()?,
                })
            });
        parsed.ok_or_else(|| io::Error::other(format!("not who saw whom: {line:?}")))
    }
}

/// Connects; later reads and writes on the stream have the limit too.
///
/// # Errors
///
/// As connect(2), or TimedOut.
pub fn connect(from: &Namespace, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Connects to a [`super::servers::Tcp::Who`], reads its answer and closes.
///
/// # Errors
///
/// As [`connect`] and read; [`Seen::parse`].
pub fn who(from: &Namespace, to: SocketAddr, limit: Duration) -> io::Result<Seen> {
    let mut line = String::new();
    BufReader::new(connect(from, to, limit)?).read_line(&mut line)?;
    Seen::parse(&line)
}

/// Sends a datagram to a [`super::servers::Udp::Who`] and reads its answer.
///
/// # Errors
///
/// As [`udp_exchange`]; [`Seen::parse`].
pub fn who_udp(from: &Namespace, to: SocketAddr, limit: Duration) -> io::Result<Seen> {
    Seen::parse(&String::from_utf8_lossy(&udp_exchange(
        from, to, b"who?", limit,
    )?))
}

/// Gets a path over HTTP/1.1; returns status and body.
///
/// # Errors
///
/// As [`connect`], read and write; an answer that is not HTTP.
pub fn http_get(
    from: &Namespace,
    to: SocketAddr,
    path: &str,
    limit: Duration,
) -> io::Result<(u16, String)> {
    let mut stream = connect(from, to, limit)?;
    // In one piece, and so in one segment.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| io::Error::other(format!("not HTTP: {answer:?}")))
}

/// A UDP socket connected to `to`, so that ICMP errors come back as errors;
/// reads and writes have the limit.
///
/// # Errors
///
/// As bind(2) and connect(2).
pub fn udp_socket(from: &Namespace, to: SocketAddr, limit: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = from.run(|| UdpSocket::bind((any, 0)))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    Ok(socket)
}

/// Sends a datagram and returns the answer.
///
/// # Errors
///
/// WouldBlock when none comes within the limit; ConnectionRefused when ICMP says
/// that the port is unreachable.
pub fn udp_exchange(
    from: &Namespace,
    to: SocketAddr,
    datagram: &[u8],
    limit: Duration,
) -> io::Result<Vec<u8>> {
    let socket = udp_socket(from, to, limit)?;
    socket.send(datagram)?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Sends an ICMP or ICMPv6 echo request with so many bytes of payload; returns
/// how long the reply took. Needs no privilege: the lab opens ICMP sockets to
/// its namespaces.
///
/// # Errors
///
/// WouldBlock when no reply comes within the limit; an answer that is not the
/// reply; what ICMP errors become.
pub fn ping(from: &Namespace, to: IpAddr, payload: usize, limit: Duration) -> io::Result<Duration> {
    /// Type, code, checksum, identifier, sequence (RFC 792, RFC 4443).
    const HEADER: usize = 8;
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = from.run(|| Socket::new(domain, Type::DGRAM, Some(protocol)))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    SockRef::from(&socket).set_read_timeout(Some(limit))?;
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend((0..payload).map(|at| at as u8));
    let sent_at = Instant::now();
    // The kernel fills in checksum and identifier.
    socket.send(&message)?;
    let mut answer = vec![0; 65_535];
    let length = (&socket).read(&mut answer)?;
    let took = sent_at.elapsed();
    if answer.first() == Some(&reply) && answer[..length].get(HEADER..) == message.get(HEADER..) {
        Ok(took)
    } else {
        Err(io::Error::other(format!(
            "not the echo reply: {:02x?}",
            &answer[..length.min(64)]
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_saw_whom() {
        let seen = Seen::parse("pod-5 saw 10.1.15.0:49036\n").unwrap();
        assert_eq!(seen.name, "pod-5");
        assert_eq!(seen.peer, "10.1.15.0:49036".parse().unwrap());
        assert!(
            Seen::parse("pod-5 saw nobody")
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
        assert!(Seen::parse("").is_err());
    }
}
