//! What one process tells its successor about its virtual servers: where schedulers
//! stand, and which clients stay with which real server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::VirtualAddress;

/// What is remembered of one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMemory {
    /// Which.
    pub(super) address: VirtualAddress,
    /// Its service port: another service at the same address remembers nothing.
    pub(super) service: String,
    pub(super) inside: RotationMemory,
    pub(super) outside: Option<RotationMemory>,
    /// Of a node port: at each address of the node, in their order.
    #[serde(default)]
    pub(super) places: Vec<PlaceMemory>,
}

/// What is remembered of a node port at one address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlaceMemory {
    pub(super) address: IpAddr,
    pub(super) inside: RotationMemory,
    pub(super) outside: Option<RotationMemory>,
}

/// What is remembered of one rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RotationMemory {
    pub(super) scheduler: String,
    /// Its real servers, from the head of the list.
    pub(super) order: Vec<SocketAddr>,
    /// Where the scheduler stands: first the index of its last choice.
    pub(super) position: Vec<u32>,
    pub(super) clients: Vec<ClientMemory>,
}

/// One client of a virtual server with session affinity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClientMemory {
    pub(super) address: IpAddr,
    pub(super) real_server: SocketAddr,
    milliseconds_left: u64,
}

impl ClientMemory {
    pub(super) fn new(address: IpAddr, real_server: SocketAddr, left: Duration) -> Self {
        Self {
            address,
            real_server,
            milliseconds_left: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The longest that Kubernetes allows is a day (ClientIPConfig.timeoutSeconds).
    pub(super) fn left(&self) -> Duration {
        const DAY: u64 = 86_400_000;
        Duration::from_millis(self.milliseconds_left.min(DAY))
    }
}

#[cfg(test)]
mod tests;
