//! How flows end, TCP's and UDP's.

use std::io::ErrorKind;
use std::time::Duration;

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both ends finished.
    Closed,
    /// The client sent RST.
    ClientReset,
    /// The real server sent RST.
    ServerReset,
    /// The client never completed its handshake.
    HandshakeTimeout,
    /// The client has not answered probes or retransmissions.
    ClientTimeout,
    /// The real server has not answered probes or retransmissions.
    ServerTimeout,
    /// Nothing moved for `--ipvs-tcp-timeout` or the UDP timeout.
    Idle,
    /// The client did not acknowledge the end within `--ipvs-tcpfin-timeout`.
    ClosingTimeout,
    /// The client started anew from the same port.
    Replaced,
    /// The endpoint no longer serves (UDP only).
    EndpointRemoved,
    /// It had its answer and nothing moved since, and a new flow needed the room (UDP only).
    Displaced,
    /// No real server took the connection: each refused or could not be reached.
    ConnectRefused,
    /// No real server took the connection: each stayed silent.
    ConnectTimeout,
    /// The client gave up while the connection to the real server was opened.
    Abandoned,
    /// The flow broke inside the proxy.
    Fault,
    /// Another process goes on with it.
    HandedOver,
    /// The proxy stops.
    Stopped,
}

impl Ending {
    /// All of them; `ending as usize` is the index.
    pub const ALL: [Self; 17] = [
        Self::Closed,
        Self::ClientReset,
        Self::ServerReset,
        Self::HandshakeTimeout,
        Self::ClientTimeout,
        Self::ServerTimeout,
        Self::Idle,
        Self::ClosingTimeout,
        Self::Replaced,
        Self::EndpointRemoved,
        Self::Displaced,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::Abandoned,
        Self::Fault,
        Self::HandedOver,
        Self::Stopped,
    ];

    /// The name as logs print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::ClientTimeout => "client_timeout",
            Self::ServerTimeout => "server_timeout",
            Self::Idle => "idle",
            Self::ClosingTimeout => "closing_timeout",
            Self::Replaced => "replaced",
            Self::EndpointRemoved => "endpoint_removed",
            Self::Displaced => "displaced",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Abandoned => "abandoned",
            Self::Fault => "fault",
            Self::HandedOver => "handed_over",
            Self::Stopped => "stopped",
        }
    }
}

/// Whether an error of a socket says that nobody answers, as opposed to a reset.
pub(crate) fn is_silence(error: ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

/// Limits on a flow's time.
#[derive(Clone, Copy, Debug)]
pub struct TcpTimeouts {
    /// Ends a flow on which nothing has moved for so long. `None`: never.
    pub idle: Option<Duration>,
    /// Ends a flow whose two directions are finished while the client does not
    /// acknowledge the end.
    pub closing: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_declaration() {
        for (at, ending) in Ending::ALL.iter().enumerate() {
            assert_eq!(*ending as usize, at);
        }
    }
}
