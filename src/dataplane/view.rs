//! What `list --flows` shows: values, taken at one moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::ipvs::{Protocol, ServicePortName, VirtualAddress};

/// One flow.
#[derive(Clone, Debug)]
pub struct FlowView {
    /// Protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// Where the client sent to.
    pub virtual_server: VirtualAddress,
    /// The service port.
    pub service: Arc<ServicePortName>,
    /// The real server that has the flow, or is being tried.
    pub real_server: Option<SocketAddr>,
    /// Our own address towards the real server.
    pub source: Option<SocketAddr>,
    /// The state as `ipvsadm -Lnc` names it.
    pub state: &'static str,
    /// Time until the flow is ended unless something moves; `None`: never.
    pub expires: Option<Duration>,
    /// Time since its first packet.
    pub age: Duration,
    /// Bytes that the client sent.
    pub bytes_in: u64,
    /// Bytes that the real server sent.
    pub bytes_out: u64,
}
