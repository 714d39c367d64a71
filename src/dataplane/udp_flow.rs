//! One UDP conversation: a connected socket towards the real server.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv, send};

use crate::packet::Unreachable;

/// A flow that has seen no reply ends after this much silence, as the kernel's
/// nf_conntrack_udp_timeout has it (net/netfilter/nf_conntrack_proto_udp.c).
const UNREPLIED_TIMEOUT: Duration = Duration::from_secs(30);

/// Datagrams of a client that only asks something: glibc asks for A and AAAA from one
/// socket, and repeats once.
const QUESTIONS: u64 = 4;

/// Payload of the largest datagram: what a 16-bit length leaves beside UDP's header.
pub(crate) const MAX_UDP_PAYLOAD: usize = 65_527;

/// A UDP flow. Datagrams pass whole, one for one.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    socket: UdpSocket,
    /// Datagrams sent and received.
    sent: u64,
    received: u64,
    active: Instant,
    /// Payload length of the last datagram sent: an ICMP error quotes it.
    last_sent: usize,
    bytes_in: u64,
    bytes_out: u64,
}

impl UdpFlow {
    pub(crate) fn new(socket: UdpSocket, now: Instant) -> Self {
        Self {
            socket,
            sent: 0,
            received: 0,
            active: now,
            last_sent: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// A flow that another process had, and that has seen replies, however many.
    pub(crate) fn resumed(socket: UdpSocket, now: Instant) -> Self {
        Self {
            received: 1,
            ..Self::new(socket, now)
        }
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends one datagram to the real server. A pending ICMP error, which the
    /// kernel reports instead of sending, is returned beside the second attempt.
    pub(crate) fn send(
        &mut self,
        payload: &[u8],
        now: Instant,
    ) -> (io::Result<()>, Option<io::Error>) {
        self.active = now;
        self.last_sent = payload.len();
        let first = self.try_send(payload);
        match first {
            Err(error) if is_icmp(&error) => (self.try_send(payload), Some(error)),
            other => (other, None),
        }
    }

    /// Receives one datagram; its length may be 0.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; an ICMP error that came back.
    pub(crate) fn receive(&mut self, room: &mut [u8], now: Instant) -> io::Result<usize> {
        let count = recv(self.socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT)?;
        self.received += 1;
        self.active = now;
        self.bytes_out += count as u64;
        Ok(count)
    }

    /// When the flow ends if nothing moves before.
    pub(crate) fn deadline(&self, timeout: Duration) -> Instant {
        self.active
            + if self.received > 0 {
                timeout
            } else {
                UNREPLIED_TIMEOUT.min(timeout)
            }
    }

    /// True when its first reply has come and nothing else.
    pub(crate) fn is_first_reply(&self) -> bool {
        self.received == 1
    }

    /// True for a question or two that were answered.
    pub(crate) fn has_its_answer(&self) -> bool {
        self.sent <= QUESTIONS && self.received >= self.sent
    }

    /// True for more than some questions.
    pub(crate) fn is_conversation(&self) -> bool {
        self.sent > QUESTIONS
    }

    pub(crate) fn last_sent(&self) -> usize {
        self.last_sent
    }

    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    fn try_send(&mut self, payload: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), payload, flags)?;
        self.bytes_in += payload.len() as u64;
        self.sent += 1;
        Ok(())
    }
}

/// True for what a connected UDP socket reports of ICMP errors that came back.
pub(crate) fn is_icmp(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

/// What such an error says of the real server.
pub(crate) fn unreachable_of(error: &io::Error) -> Unreachable {
    if error.kind() == ErrorKind::HostUnreachable {
        Unreachable::Host
    } else if error.kind() == ErrorKind::NetworkUnreachable {
        Unreachable::Network
    } else {
        Unreachable::Port
    }
}

#[cfg(test)]
mod tests;
