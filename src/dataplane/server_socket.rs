//! The connection to a real server: a kernel socket, or a stand-in in tests.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{SockRef, Socket, TcpKeepalive};

/// A connected stream that never blocks.
pub trait ServerSocket {
    /// Sends some of `bytes`; `WouldBlock` when the socket takes none now.
    ///
    /// # Errors
    /// As send(2).
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Receives into `room`; 0 when the real server has finished sending.
    ///
    /// # Errors
    /// As recv(2).
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize>;

    /// Sends FIN: no more bytes go to the real server.
    fn finish(&mut self);

    /// Makes dropping this socket send RST instead of FIN.
    fn reset_on_close(&mut self);

    /// Watches for a real server that died without a word.
    fn keep_alive(&mut self);

    /// True while the acknowledgment that completes the handshake waits for data.
    fn owes_ack(&self) -> bool;

    /// Sends that acknowledgment without data.
    fn acknowledge(&mut self);
}

/// When the real server hears that the handshake with it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeAck {
    /// As soon as its SYN-ACK has come.
    AtOnce,
    /// Together with the first data. A client that has something to say has said it
    /// by the time a connection would be accepted, and a packet less passes all of the
    /// way: 16 to 20 % more short connections a second.
    WithData,
}

/// After this much silence a real server is probed: as Telepresence and tun2socks
/// do (kube-proxy itself leaves it to the ends).
pub(super) const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between two probes.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Unanswered probes after which the real server is dead.
const KEEP_ALIVE_COUNT: u32 = 9;

/// A connected kernel socket.
#[derive(Debug)]
pub struct KernelSocket {
    socket: Socket,
    delay: Delay,
    owes_ack: bool,
}

/// Where Nagle's algorithm (RFC 9293, 3.7.4) stands. It holds back only what follows
/// something unacknowledged, so that the system call can wait for a second send: many
/// connections have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    NothingSent,
    SentOnce,
    Off,
}

impl KernelSocket {
    /// Takes over a non-blocking socket.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            delay: Delay::NothingSent,
            owes_ack: false,
        }
    }

    /// Takes over a non-blocking socket that is about to connect.
    pub(super) fn connecting(socket: Socket, ack: HandshakeAck) -> Self {
        Self {
            owes_ack: ack == HandshakeAck::WithData,
            ..Self::new(socket)
        }
    }

    /// As [`ServerSocket::receive`], but what was received stays.
    ///
    /// # Errors
    /// As recv(2).
    pub fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        Ok(recv(self.socket.as_raw_fd(), room, flags)?)
    }

    /// Gives the socket back.
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// Ends Nagle's algorithm, for bytes that do not pass [`ServerSocket::send`].
    pub fn send_at_once(&mut self) {
        // Where it fails the connection is slower, not wrong.
        let _ = self.socket.set_tcp_nodelay(true);
        self.delay = Delay::Off;
    }

    /// Our own address on this connection: what the real server sees.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// The outcome of a connect that was under way: an error, or connected.
    ///
    /// # Errors
    /// What connect(2) failed with.
    pub fn connect_result(&self) -> io::Result<()> {
        self.socket.take_error()?.map_or(Ok(()), Err)
    }
}

impl AsFd for KernelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for KernelSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl ServerSocket for KernelSocket {
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.delay {
            Delay::NothingSent => self.delay = Delay::SentOnce,
            Delay::SentOnce => self.send_at_once(),
            Delay::Off => {}
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = send(self.socket.as_raw_fd(), bytes, flags)?;
        self.owes_ack = false;
        Ok(sent)
    }

    #[inline]
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT)?)
    }

    fn finish(&mut self) {
        // Fails only when the connection is gone already, which receive() reports.
        let _ = self.socket.shutdown(Shutdown::Write);
        self.owes_ack = false;
    }

    fn reset_on_close(&mut self) {
        // In SYN-RECEIVED it would hear of no connection at all, where it heard of one that
        // was reset if the client had connected to it itself.
        self.acknowledge();
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    fn keep_alive(&mut self) {
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_IDLE)
            .with_interval(KEEP_ALIVE_INTERVAL)
            .with_retries(KEEP_ALIVE_COUNT);
        // Without it a dead real server is found when data is sent: no reason to fail.
        let _ = SockRef::from(&self.socket).set_tcp_keepalive(&keep_alive);
    }

    fn owes_ack(&self) -> bool {
        self.owes_ack
    }

    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.owes_ack) {
            // Where it fails the kernel does it after 200 ms (TCP_DELACK_MAX).
            let _ = self.socket.set_tcp_quickack(true);
        }
    }
}
