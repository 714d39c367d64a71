//! ICMP errors to clients of node ports.
//!
//! A client of UDP is told that nobody is there by ICMP, which no UDP socket can send:
//! the kernel does it for a port that is closed, and ours is open. So the error is
//! written whole and sent through a raw socket of IPPROTO_RAW, which sends and never
//! receives (raw(7)). To open one needs CAP_NET_RAW, to use it nothing: [`RawSockets`] are
//! opened once, before privileges are given up, and shared by the workers. Without them
//! clients hear nothing, which is said once at debug level.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};

use crate::packet::{ErrorLimiter, ErrorLimits, OriginatedError, Unreachable, udp_unreachable};

/// What became of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Sent,
    /// Above the rate that we allow ourselves.
    Limited,
    /// There is no raw socket, or it did not take the error.
    Unable,
}

/// What ICMP errors are sent through, of each family, where it could be opened.
#[derive(Debug)]
pub struct RawSockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl RawSockets {
    /// Opens them, which takes CAP_NET_RAW: call it before that is given up.
    pub fn open() -> Self {
        let open = |domain| match raw(domain) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "no raw socket: UDP clients of node ports are not told that nobody is there"
                );
                None
            }
        };
        Self {
            v4: open(Domain::IPV4),
            v6: open(Domain::IPV6),
        }
    }
}

/// Sends ICMP errors; one for each worker.
#[derive(Debug)]
pub(super) struct Unreachables {
    sockets: Arc<RawSockets>,
    limiter: ErrorLimiter,
    packet: Vec<u8>,
}

impl Unreachables {
    pub(super) fn new(sockets: Arc<RawSockets>) -> Self {
        Self {
            sockets,
            limiter: ErrorLimiter::new(ErrorLimits::default()),
            packet: Vec::new(),
        }
    }

    /// Tells a client that what it sent to `local`, with so many bytes of payload, came
    /// to nobody.
    pub(super) fn tell(
        &mut self,
        now: Instant,
        client: SocketAddr,
        local: SocketAddr,
        payload_len: usize,
        what: Unreachable,
    ) -> Told {
        let socket = match client {
            SocketAddr::V4(_) => &self.sockets.v4,
            SocketAddr::V6(_) => &self.sockets.v6,
        };
        let Some(socket) = socket else {
            return Told::Unable;
        };
        if !self.limiter.allow(now, client.ip(), OriginatedError::Icmp) {
            return Told::Limited;
        }
        if udp_unreachable(client, local, payload_len, what, &mut self.packet).is_err() {
            return Told::Unable;
        }
        // Without a port: in IPv6 that is where a protocol would stand. The scope of a
        // link-local address is kept.
        let mut to = client;
        to.set_port(0);
        match socket.send_to(&self.packet, &to.into()) {
            Ok(_) => Told::Sent,
            Err(_) => Told::Unable,
        }
    }
}

fn raw(domain: Domain) -> io::Result<Socket> {
    let kind = Type::RAW.nonblocking().cloexec();
    Socket::new(domain, kind, Some(Protocol::from(libc::IPPROTO_RAW)))
}
