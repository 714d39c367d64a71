//! Sockets that a client of the lab does not have: with a port of one's choice,
//! with RST instead of FIN, and below the transport.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::Namespace;
use kube_tun_proxy::lab::servers::{Fnv1a, pattern};
use libtest_mimic::Failed;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// IP protocol number of SCTP (IANA).
pub(crate) const SCTP: i32 = 132;

/// IP protocol number of TCP (IANA).
const TCP: u8 = 6;

/// Bytes written or read at a time.
const CHUNK: usize = 256 << 10;

/// Connects from this port; another socket may have used it a moment ago.
pub(crate) fn connect_from_port(
    from: &Namespace,
    port: u16,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    from.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.connect_timeout(&to.into(), limit)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(limit))?;
        Ok(socket.into())
    })
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// A raw socket for one IP protocol, which sends what stands behind the IP
/// header.
pub(crate) fn raw(from: &Namespace, to: IpAddr, protocol: i32) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(to, 0));
    let socket = from.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    Ok(socket)
}

/// A SYN as it stands behind an IP header.
pub(crate) fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    // No acknowledgement; 5 words of header, SYN; a window; no checksum yet and
    // no urgent pointer (RFC 9293 section 3.1).
    segment.extend([0, 0, 0, 0, 0x50, 0x02, 0x40, 0x00, 0, 0, 0, 0]);
    let sum =
        kube_tun_proxy::packet::pseudo_header_sum(from.ip(), to.ip(), TCP, segment.len() as u32);
    let mut total = u32::from(sum);
    for pair in segment.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    segment[16..18].copy_from_slice(&(!(total as u16)).to_be_bytes());
    segment
}

/// Sends `payload` in one call as datagrams of `size` (UDP_SEGMENT).
pub(crate) fn send_segmented(socket: &UdpSocket, payload: &[u8], size: u16) -> io::Result<usize> {
    setsockopt(socket, sockopt::UdpGsoSegment, &i32::from(size))?;
    socket.send(payload)
}

/// Writes so many bytes of the pattern; returns their digest.
pub(crate) fn write_pattern(stream: &mut TcpStream, bytes: u64) -> io::Result<Fnv1a> {
    let mut digest = Fnv1a::default();
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let length = CHUNK.min((bytes - sent) as usize);
        pattern(sent, &mut buffer[..length]);
        digest.update(&buffer[..length]);
        stream.write_all(&buffer[..length])?;
        sent += length as u64;
    }
    Ok(digest)
}

/// Reads to EOF and checks that it is the pattern; returns how much it was.
pub(crate) fn read_pattern(stream: &mut TcpStream) -> Result<u64, Failed> {
    let mut buffer = vec![0; CHUNK];
    let mut expected = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(received);
        }
        pattern(received, &mut expected[..length]);
        if buffer[..length] != expected[..length] {
            return Err(format!("not the pattern after {received} bytes").into());
        }
        received += length as u64;
    }
}

/// Writes until the other end takes no more for `patience`; returns how many
/// bytes it took and their digest, at most `most`.
pub(crate) fn write_until_full(
    stream: &mut TcpStream,
    most: u64,
    patience: Duration,
) -> io::Result<(u64, Fnv1a)> {
    stream.set_nonblocking(true)?;
    let mut digest = Fnv1a::default();
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    let mut moved = Instant::now();
    while sent < most && moved.elapsed() < patience {
        pattern(sent, &mut buffer);
        match stream.write(&buffer) {
            Ok(length) => {
                digest.update(&buffer[..length]);
                sent += length as u64;
                moved = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    stream.set_nonblocking(false)?;
    Ok((sent, digest))
}
