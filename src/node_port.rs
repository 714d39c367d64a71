//! Kernel listeners, for the addresses that are the node's own: node ports, and external
//! and load balancer IPs that an interface of the node has. Such an address is in the
//! kernel's `local` routing table, which no route into a TUN can outdo, so the kernel
//! ends these connections, and the two kernel sockets are joined.
//!
//! A listener is open while its service has an endpoint, so that a client of a service
//! without one is refused by the kernel. Where that endpoint is for this node and its
//! pods only, the listener lets in these alone (`audience`). The kernel answers a SYN
//! before we see the connection: when then no real server takes it, the client sees a
//! reset right after it connected. Until a real server is connected nothing is read from
//! the client, so the next one can be tried. On TCP a node port that is open on all
//! addresses of a family has one socket for all; otherwise, and on UDP, whose answers
//! must come from the address that was asked, each address has a socket of its own.
//!
//! TCP is moved by splice(2) through a pipe for each direction (`relay`); bytes are
//! never copied to this process. UDP goes datagram by datagram through a connected socket
//! for each client, as in the data plane.
//!
//! [`AddressWatch`] says when the node's addresses may have changed; its task on the
//! control runtime ends with it.
//!
//! Threads: `node-port-N`, one for each worker, and an `access-log`; all end when
//! [`NodePorts`] is dropped. A worker has an epoll instance, edge-triggered, and the
//! listeners of the ports that fall to it (the port modulo the number of workers); a flow
//! stays on the worker that accepted it. That is the data plane's shape and not tokio's:
//! a relay reacts to four edges and needs to know which of them it has not used up yet,
//! which a task a direction with a waker each would hide; idle connections cost two
//! descriptors and no task; and one budget a turn keeps a bulk transfer from holding up
//! the rest.

use std::net::IpAddr;
use std::num::NonZeroUsize;

mod addresses;
mod audience;
mod flow;
mod handle;
mod listener;
mod pipe;
mod plan;
mod relay;
mod takeover;
mod token;
mod unreachable;
mod watch;
mod worker;

pub use addresses::{NodeAddresses, NodePortAddress};
pub use handle::NodePorts;
pub use takeover::{Lent, LentList};
pub use unreachable::RawSockets;
pub use watch::AddressWatch;

/// Settings of the node ports.
#[derive(Clone, Debug)]
pub struct NodePortConfig {
    /// Which of the node's addresses node ports are opened on; empty for all.
    pub addresses: Vec<NodePortAddress>,
    /// Addresses of the node that do not count: those of the TUN.
    pub except: Vec<IpAddr>,
    /// Threads.
    pub workers: NonZeroUsize,
}
