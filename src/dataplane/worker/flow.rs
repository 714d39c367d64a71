//! What carries the flows of the TUN.

use std::net::SocketAddr;
use std::time::Instant;

use crate::dataplane::DataplaneConfig;
use crate::dataplane::flow::Conversation;
use crate::dataplane::server_socket::KernelSocket;
use crate::dataplane::tcp_flow::TcpFlow;
use crate::dataplane::udp_flow::UdpFlow;

/// One flow of the TUN.
pub(in crate::dataplane) type Flow = crate::dataplane::flow::Flow<Kind>;

/// What only flows of the TUN have.
#[derive(Debug, Default)]
pub(in crate::dataplane) struct Own {
    /// Counted by [`HalfOpen`](crate::dataplane::half_open::HalfOpen).
    pub(in crate::dataplane) half_open: bool,
}

#[derive(Debug)]
pub(in crate::dataplane) enum Kind {
    /// A SYN waits for a real server.
    Dialing(Dial),
    Tcp(Box<TcpFlow<KernelSocket>>),
    Udp(UdpFlow),
}

/// A connection that is being opened: the SYN as it came and nothing else.
#[derive(Debug)]
pub(in crate::dataplane) struct Dial {
    pub(in crate::dataplane) syn: Box<[u8]>,
    pub(in crate::dataplane) sequence: u32,
    pub(in crate::dataplane) max_segment_size: Option<u16>,
    pub(in crate::dataplane) socket: Option<KernelSocket>,
    pub(in crate::dataplane) deadline: Instant,
    pub(in crate::dataplane) tried: Vec<SocketAddr>,
    /// Some real server said no, as opposed to nothing.
    pub(in crate::dataplane) refused: bool,
    pub(in crate::dataplane) unreachable: bool,
}

impl Conversation for Kind {
    type Own = Own;

    fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Dialing(_) => (0, 0),
            Self::Tcp(tcp) => (tcp.bytes_in(), tcp.bytes_out()),
            Self::Udp(udp) => (udp.bytes_in(), udp.bytes_out()),
        }
    }

    fn standing(&self, config: &DataplaneConfig) -> (&'static str, Option<Instant>) {
        match self {
            Self::Dialing(dial) => ("SYN_RECV", Some(dial.deadline)),
            Self::Udp(udp) => ("UDP", Some(udp.deadline(config.udp_timeout))),
            Self::Tcp(tcp) => {
                let idle = config.tcp_timeouts.idle;
                (tcp.state_name(), idle.map(|idle| tcp.last_active() + idle))
            }
        }
    }

    fn is_udp(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}
