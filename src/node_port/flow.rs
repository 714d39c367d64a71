//! What carries the flows of listeners.

use std::net::UdpSocket;
use std::rc::Rc;
use std::time::Instant;

use super::relay::{Leg, Relay};
use crate::dataplane::{Conversation, DataplaneConfig, Dial, UdpFlow};

/// What only flows through listeners have.
#[derive(Debug)]
pub(super) struct Own {
    /// The listener that it came through.
    pub(super) listener: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// An accepted connection waits for a real server.
    Dialing(Dialing),
    Tcp(Box<Relay>),
    Udp {
        flow: UdpFlow,
        /// Where answers leave.
        listener: Rc<UdpSocket>,
    },
}

/// A connection to a real server that is being opened. Nothing of what the client
/// sends is read before it is.
#[derive(Debug)]
pub(super) struct Dialing {
    pub(super) client: Option<Leg>,
    pub(super) dial: Dial,
    /// There was no descriptor for an attempt, which is made again.
    pub(super) starved: bool,
}

impl Conversation for Kind {
    type Own = Own;

    fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Dialing(_) => (0, 0),
            Self::Tcp(relay) => (relay.bytes_in(), relay.bytes_out()),
            Self::Udp { flow, .. } => (flow.bytes_in(), flow.bytes_out()),
        }
    }

    fn standing(&self, config: &DataplaneConfig) -> (&'static str, Option<Instant>) {
        match self {
            Self::Dialing(dialing) => ("SYN_RECV", Some(dialing.dial.deadline)),
            Self::Udp { flow, .. } => ("UDP", Some(flow.deadline(config.udp_timeout))),
            Self::Tcp(relay) => (relay.state_name(), relay.deadline(&config.tcp_timeouts)),
        }
    }

    fn dial(&mut self) -> Option<&mut Dial> {
        match self {
            Self::Dialing(dialing) => Some(&mut dialing.dial),
            Self::Tcp(_) | Self::Udp { .. } => None,
        }
    }

    fn udp(&self) -> Option<&UdpFlow> {
        match self {
            Self::Udp { flow, .. } => Some(flow),
            Self::Dialing(_) | Self::Tcp(_) => None,
        }
    }
}
