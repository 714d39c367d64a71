//! Which real servers a flow is tried on, one after the other, and how that goes.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::DataplaneConfig;
use super::ending::Ending;
use super::flow::{Conversation, Flow};
use super::flow_table::FlowId;
use super::flows::Flows;
use super::server_socket::KernelSocket;
use super::stats::{WorkerStats, add};
use super::udp_flow::UdpFlow;
use crate::ipvs::{Connection, RejectReason, Verdict, VirtualServer};

/// The real servers that one flow has been tried on.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<SocketAddr>);

/// A TCP connection to a real server that is being opened.
#[derive(Debug)]
pub(crate) struct Dial {
    /// Of the attempt that runs.
    pub(crate) socket: Option<KernelSocket>,
    /// When that attempt has lasted too long.
    pub(crate) deadline: Instant,
    tried: Tried,
    /// Some real server said no, as opposed to nothing.
    refused: bool,
    unreachable: bool,
}

/// How all attempts went, when no real server has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none to try.
    NoneTried,
    /// One said no.
    Refused,
    /// There was no way to one, and none said no.
    Unreachable,
    /// Each stayed silent.
    Silent,
}

impl Tried {
    /// The next real server, which counts the flow from now on. `None` if `most` have been
    /// tried, or no other is left.
    pub(crate) fn next(
        &mut self,
        server: &VirtualServer,
        client: SocketAddr,
        most: u32,
        now: Instant,
    ) -> Option<Connection> {
        if self.count() >= most {
            return None;
        }
        let real_server = server.schedule(client, now, &self.0)?;
        self.0.push(real_server.address);
        Some(Connection::new(real_server))
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// There was no UDP socket to a real server. The caller tries the next.
    pub(crate) fn no_socket(
        &self,
        server: &VirtualServer,
        client: SocketAddr,
        connection: &Connection,
        error: &io::Error,
        stats: &WorkerStats,
    ) {
        add(&stats.failovers);
        stats.attempt_failed(error);
        server.attempt_failed(connection.real_server());
        tracing::debug!(
            service = %server.service, real_server = %connection.real_server().address, %client,
            %error,
            "no socket to a real server"
        );
    }

    /// What a UDP flow is refused with that has found no real server.
    pub(crate) fn refusal(&self, server: &VirtualServer) -> Verdict {
        if self.0.is_empty() {
            server.refusal()
        } else {
            Verdict::Reject(RejectReason::ConnectFailed)
        }
    }
}

impl Dial {
    /// No real server has been tried yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            socket: None,
            deadline: now,
            tried: Tried::default(),
            refused: false,
            unreachable: false,
        }
    }

    /// How it went, if no real server is left to try.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.tried.0.is_empty() {
            Outcome::NoneTried
        } else if self.refused {
            Outcome::Refused
        } else if self.unreachable {
            Outcome::Unreachable
        } else {
            Outcome::Silent
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.socket = None;
        let unreachable = matches!(
            error.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        );
        self.unreachable |= unreachable;
        self.refused |= !unreachable && error.kind() != io::ErrorKind::TimedOut;
    }
}

impl Outcome {
    /// How the flow ends.
    pub(crate) fn ending(self) -> Ending {
        match self {
            Self::NoneTried | Self::Refused | Self::Unreachable => Ending::ConnectRefused,
            Self::Silent => Ending::ConnectTimeout,
        }
    }
}

impl<K: Conversation> Flow<K> {
    /// The real server of the next attempt, which counts the flow from now on. `None` if as
    /// many as may be have been tried, or no other is left.
    pub(crate) fn next_attempt(
        &mut self,
        config: &DataplaneConfig,
        stats: &WorkerStats,
        now: Instant,
    ) -> Option<SocketAddr> {
        let (client, most) = (self.key.client, config.connect_attempts);
        let dial = self.kind.dial()?;
        let connection = dial.tried.next(&self.server, client, most, now)?;
        if self.attempts > 0 {
            add(&stats.failovers);
        }
        self.attempts = dial.tried.count();
        dial.deadline = now + config.connect_timeout;
        let address = connection.real_server().address;
        self.connection = Some(connection);
        Some(address)
    }

    /// A flow of UDP, whose socket is there from the start, begins with this real server.
    pub(crate) fn begin_udp(&mut self, connection: Connection, attempts: u32) -> Option<&UdpFlow> {
        let udp = self.kind.udp()?;
        self.source = udp.socket().local_addr().ok();
        self.connection = Some(connection);
        self.attempts = attempts;
        Some(udp)
    }

    /// Takes back an attempt for which no real server is to blame. The flow looks at it
    /// again at that time.
    pub(crate) fn take_back_attempt(&mut self, again: Instant) {
        if let Some(dial) = self.kind.dial() {
            dial.tried.0.pop();
            dial.deadline = again;
            self.attempts = dial.tried.count();
            self.connection = None;
        }
    }

    /// The real server has accepted: the socket to it.
    pub(crate) fn connected(&mut self, stats: &WorkerStats, now: Instant) -> Option<KernelSocket> {
        let socket = self.kind.dial()?.socket.take()?;
        self.source = socket.local_address();
        let dial_time = now.saturating_duration_since(self.started);
        stats.dialed(dial_time);
        self.dial_time = Some(dial_time);
        if let Some(connection) = &mut self.connection {
            connection.established();
            self.server.connected(self.key.client.ip(), connection, now);
        }
        Some(socket)
    }
}

impl<K: Conversation> Flows<K> {
    /// An attempt has begun.
    pub(crate) fn connecting(&mut self, id: FlowId, socket: KernelSocket) {
        if let Some(flow) = self.get_mut(id)
            && let Some(dial) = flow.kind.dial()
        {
            dial.socket = Some(socket);
            let deadline = dial.deadline;
            self.arm(id, deadline);
        }
    }

    /// Remembers how an attempt failed. The caller tries the next.
    pub(crate) fn attempt_failed(&mut self, id: FlowId, error: &io::Error, stats: &WorkerStats) {
        let Some(flow) = self.get_mut(id) else {
            return;
        };
        let Some(dial) = flow.kind.dial() else {
            return;
        };
        dial.failed(error);
        if let Some(connection) = &flow.connection {
            stats.attempt_failed(error);
            flow.server.attempt_failed(connection.real_server());
            tracing::debug!(
                service = %flow.server.service,
                real_server = %connection.real_server().address,
                client = %flow.key.client,
                %error,
                "could not connect to a real server"
            );
        }
    }

    /// True for a flow whose attempt has lasted too long. The timer of one that may go on
    /// is armed.
    pub(crate) fn is_overdue(&mut self, id: FlowId, now: Instant) -> bool {
        let Some(dial) = self.get_mut(id).and_then(|flow| flow.kind.dial()) else {
            return false;
        };
        let deadline = dial.deadline;
        if now < deadline {
            self.arm(id, deadline);
        }
        now >= deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_said_no_outweighs_the_others() {
        let mut dial = Dial::new(Instant::now());
        assert_eq!(dial.outcome(), Outcome::NoneTried);
        for (error, outcome) in [
            (libc::ETIMEDOUT, Outcome::Silent),
            (libc::EHOSTUNREACH, Outcome::Unreachable),
            (libc::ETIMEDOUT, Outcome::Unreachable),
            (libc::ECONNREFUSED, Outcome::Refused),
            (libc::ENETUNREACH, Outcome::Refused),
        ] {
            dial.tried.0.push(([10, 1, 65, 5], 443).into());
            dial.failed(&io::Error::from_raw_os_error(error));
            assert_eq!(dial.outcome(), outcome);
        }
    }
}
