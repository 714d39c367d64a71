//! The workers that carry flows from the TUN to real servers.
//!
//! Each worker is one OS thread that owns a queue of the TUN, an epoll instance,
//! its flows, their buffers and their sockets. A flow lives and dies on the worker
//! that saw its first packet. The control plane talks to workers through a bounded
//! mailbox each; the only thing both sides share on the way of a new flow is the
//! [`Table`]. No packet of an open flow takes a lock or passes a channel.
//!
//! Threads: `worker-N`, ended by [`Dataplane::stop`]; `access-log`, which writes
//! what the workers hand it and ends when the last of them has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

mod access_log;
mod busy_poll;
mod dial;
mod dial_failure;
mod dialer;
mod ending;
mod flow;
mod flow_table;
mod flows;
mod half_open;
mod handle;
mod histogram;
mod local_addresses;
mod preface;
mod server_socket;
mod shared;
mod sink;
mod stats;
mod takeover;
mod tcp_flow;
#[cfg(test)]
mod testing;
mod timers;
mod udp_flow;
mod view;
mod worker;
mod workers;

pub use access_log::LogWriter;
pub use dial_failure::DialFailure;
pub use ending::{Ending, TcpTimeouts};
pub use handle::Dataplane;
pub use histogram::Histogram;
pub(crate) use server_socket::HandshakeAck;
pub use server_socket::{KernelSocket, ServerSocket};
pub use stats::Counters;
pub use takeover::{HandedFlow, Suspended};
pub use tcp_flow::{Progress, TcpFlow};
pub use view::FlowView;
pub use workers::StartError;

// What the node ports' flows have in common with those of the TUN.
pub(crate) use access_log::FlowRecord;
pub(crate) use busy_poll::BusyPoll;
pub(crate) use dial::{Dial, Outcome, Tried};
pub(crate) use dialer::Dialer;
pub(crate) use ending::is_silence;
pub(crate) use flow::Conversation;
pub(crate) use flow_table::{FlowId, FlowKey, Found};
pub(crate) use flows::Flows;
pub(crate) use local_addresses::{LocalAddresses, interface_addresses};
pub(crate) use preface::proxy_header;
pub(crate) use shared::{Shared, Sweep};
pub(crate) use stats::WorkerStats;
pub(crate) use udp_flow::{MAX_UDP_PAYLOAD, UdpFlow, is_icmp, unreachable_of};
pub(crate) use workers::{Inbox, Workers};

use crate::ipvs::Table;

/// Settings of the data plane, each already checked.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Real servers that one connection is tried on at most.
    pub connect_attempts: u32,
    /// How long one real server may take to accept a connection.
    pub connect_timeout: Duration,
    /// Whether pings to virtual IPs are answered.
    pub answer_ping: bool,
    /// Whether finished flows are logged where their virtual server does not say.
    pub access_log: bool,
    /// Source address of connections to real servers.
    pub masquerade: Masquerade,
    /// Whether clients other than this node are served, until
    /// [`Dataplane::serve_pods`] says otherwise.
    pub pod_traffic: bool,
    /// Flows above which a new one is refused.
    pub max_flows: usize,
    /// Bytes of buffers above which a new flow is refused.
    pub max_memory: usize,
    /// How long a worker looks for events before it sleeps, where that pays; zero: never.
    pub busy_poll: Duration,
    /// Limits on the time of TCP flows.
    pub tcp_timeouts: TcpTimeouts,
    /// A UDP flow that has seen a reply ends after this much silence.
    pub udp_timeout: Duration,
    /// MTU of the TUN in bytes.
    pub mtu: usize,
}

/// Where connections to real servers come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// The kernel's own choice for the route, as MASQUERADE makes it.
    Auto,
    /// The addresses of an interface; looked up again when they change.
    Interface(String),
    /// These addresses. Real servers of a family without one are not reached.
    Address {
        /// For IPv4 real servers.
        v4: Option<Ipv4Addr>,
        /// For IPv6 real servers.
        v6: Option<Ipv6Addr>,
    },
}

impl From<IpAddr> for Masquerade {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::Address {
                v4: Some(v4),
                v6: None,
            },
            IpAddr::V6(v6) => Self::Address {
                v4: None,
                v6: Some(v6),
            },
        }
    }
}

/// The table that workers ask.
type SharedTable = Arc<Table>;
