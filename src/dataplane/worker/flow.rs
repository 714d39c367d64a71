//! What carries the flows of the TUN.

use std::time::Instant;

use crate::dataplane::DataplaneConfig;
use crate::dataplane::dial::Dial;
use crate::dataplane::flow::Conversation;
use crate::dataplane::server_socket::KernelSocket;
use crate::dataplane::tcp_flow::TcpFlow;
use crate::dataplane::udp_flow::UdpFlow;

/// What only flows of the TUN have.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Counted by [`HalfOpen`](crate::dataplane::half_open::HalfOpen).
    pub(super) half_open: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A SYN waits for a real server.
    Dialing(Dialing),
    Tcp(Box<TcpFlow<KernelSocket>>),
    Udp(UdpFlow),
}

/// A connection that is being opened: the SYN as it came and nothing else.
#[derive(Debug)]
pub(super) struct Dialing {
    pub(super) syn: Box<[u8]>,
    pub(super) sequence: u32,
    pub(super) max_segment_size: Option<u16>,
    pub(super) dial: Dial,
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
            Self::Dialing(dialing) => ("SYN_RECV", Some(dialing.dial.deadline)),
            Self::Udp(udp) => ("UDP", Some(udp.deadline(config.udp_timeout))),
            Self::Tcp(tcp) => {
                let idle = config.tcp_timeouts.idle;
                (tcp.state_name(), idle.map(|idle| tcp.last_active() + idle))
            }
        }
    }

    fn dial(&mut self) -> Option<&mut Dial> {
        match self {
            Self::Dialing(dialing) => Some(&mut dialing.dial),
            Self::Tcp(_) | Self::Udp(_) => None,
        }
    }

    fn udp(&self) -> Option<&UdpFlow> {
        match self {
            Self::Udp(udp) => Some(udp),
            Self::Dialing(_) | Self::Tcp(_) => None,
        }
    }
}
