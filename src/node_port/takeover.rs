//! What a former process gives to its successor: listeners, with whatever the kernel
//! holds for them, and UDP flows, which are a socket each. Relayed connections stay with
//! the process that accepted them; the successor counts them on their real servers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::listener::ListenAddress;
use crate::dataplane::HandedFlow;

/// Listeners and UDP flows, as descriptors and what they are.
#[derive(Debug, Default)]
pub struct Lent {
    pub(super) listeners: Vec<(ListenAddress, OwnedFd)>,
    pub(super) flows: Vec<(LentFlow, OwnedFd)>,
    /// Connections that stay, whose ends are told.
    pub(super) relayed: Vec<HandedFlow>,
}

/// A UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LentFlow {
    /// The address of the listener that it came through.
    pub(super) listener: SocketAddr,
    pub(super) client: SocketAddr,
    pub(super) virtual_server: SocketAddr,
    pub(super) real_server: SocketAddr,
}

/// What [`Lent`] is without the descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentList {
    listeners: Vec<ListenAddress>,
    flows: Vec<LentFlow>,
}

impl Lent {
    /// The connections that stay with the process which accepted them.
    pub fn take_relayed(&mut self) -> Vec<HandedFlow> {
        std::mem::take(&mut self.relayed)
    }

    /// The list, and the descriptors in its order.
    pub fn into_parts(self) -> (LentList, Vec<OwnedFd>) {
        let (listeners, mut rights): (_, Vec<_>) = self.listeners.into_iter().unzip();
        let (flows, sockets): (_, Vec<_>) = self.flows.into_iter().unzip();
        rights.extend(sockets);
        (LentList { listeners, flows }, rights)
    }

    /// The other way; none if there are not as many descriptors as the list names.
    pub fn from_parts(list: LentList, rights: Vec<OwnedFd>) -> Option<Self> {
        if rights.len() != list.listeners.len() + list.flows.len() {
            return None;
        }
        let mut rights = rights.into_iter();
        let listeners = list.listeners.into_iter().zip(rights.by_ref()).collect();
        let flows = list.flows.into_iter().zip(rights).collect();
        Some(Self {
            listeners,
            flows,
            relayed: Vec::new(),
        })
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.listeners.append(&mut other.listeners);
        self.flows.append(&mut other.flows);
        self.relayed.append(&mut other.relayed);
    }

    /// Those of one worker: all of a port are.
    pub(super) fn split(self, workers: usize) -> Vec<Self> {
        let mut split: Vec<Self> = (0..workers).map(|_| Self::default()).collect();
        let of = |port: u16| usize::from(port) % workers.max(1);
        for listener in self.listeners {
            if let Some(its) = split.get_mut(of(listener.0.address.port())) {
                its.listeners.push(listener);
            }
        }
        for flow in self.flows {
            if let Some(its) = split.get_mut(of(flow.0.listener.port())) {
                its.flows.push(flow);
            }
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::ipvs::Protocol;

    #[test]
    fn the_parts_make_the_whole_again() {
        let socket = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let listener = |port| ListenAddress {
            protocol: Protocol::Udp,
            address: at(port),
        };
        let flow = LentFlow {
            listener: at(7),
            client: at(40_000),
            virtual_server: at(7),
            real_server: at(9),
        };
        let lent = Lent {
            listeners: vec![(listener(7), socket()), (listener(8), socket())],
            flows: vec![(flow, socket())],
            relayed: Vec::new(),
        };
        let (list, rights) = lent.into_parts();
        assert_eq!(rights.len(), 3);
        let text = serde_json::to_string(&list).unwrap();
        let read: LentList = serde_json::from_str(&text).unwrap();
        assert_eq!(read, list);
        assert!(Lent::from_parts(read.clone(), Vec::new()).is_none());
        let split = Lent::from_parts(read, rights).unwrap().split(2);
        let counts: Vec<_> = split
            .iter()
            .map(|its| (its.listeners.len(), its.flows.len()))
            .collect();
        assert_eq!(counts, [(1, 0), (1, 1)]);
    }
}
