//! Lending listeners and UDP flows to another process, and going on with those lent.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Worker;
use crate::dataplane::{Ending, FlowId, FlowKey, HandedFlow, UdpFlow};
use crate::ipvs::{Protocol, Verdict};
use crate::node_port::flow::Kind;
use crate::node_port::listener::State;
use crate::node_port::takeover::{Lent, LentFlow};
use crate::service::Exposure;

/// Between two attempts to tell of the end of a connection: the other process reads as
/// soon as it has a turn.
const AGAIN: Duration = Duration::from_millis(10);

impl Worker {
    /// Takes nothing from listeners any more; what comes waits in the kernel.
    pub(super) fn lend(&mut self) -> io::Result<Lent> {
        let mut lent = Lent::default();
        for listener in self.listeners.values() {
            let at = listener.listen.at;
            match &listener.state {
                State::Tcp { socket, .. } => lent.listeners.push((at, duplicate(socket)?)),
                State::Udp { socket, .. } => lent.listeners.push((at, duplicate(&**socket)?)),
                State::Taken(_) => {}
            }
        }
        for (_, flow) in self.flows.iter_mut() {
            let relayed = |active| {
                let node_port = flow.server.exposure == Exposure::NodePort;
                HandedFlow::listened(&flow.key, flow.connection.as_ref(), active, node_port)
            };
            let udp = match &flow.kind {
                Kind::Udp { flow, .. } => flow,
                Kind::Tcp(relay) => {
                    lent.relayed.push(relayed(!relay.is_closing()));
                    continue;
                }
                Kind::Dialing(_) => {
                    lent.relayed.push(relayed(false));
                    continue;
                }
            };
            if let (Some(listener), Some(connection)) =
                (self.listeners.get(&flow.own.listener), &flow.connection)
            {
                let its = LentFlow {
                    listener: listener.listen.at.address,
                    client: flow.key.client,
                    virtual_server: flow.key.virtual_server,
                    real_server: connection.real_server().address,
                };
                lent.flows.push((its, duplicate(udp.socket())?));
            }
        }
        self.lent = true;
        self.ready.clear();
        Ok(lent)
    }

    /// The other process has not come.
    pub(super) fn reclaim(&mut self) {
        self.lent = false;
        self.untold.clear();
        let mut numbers = Vec::new();
        for (number, listener) in &mut self.listeners {
            match &mut listener.state {
                State::Tcp { ready, .. } | State::Udp { ready, .. } => {
                    *ready = true;
                    numbers.push(*number);
                }
                State::Taken(_) => {}
            }
        }
        self.ready = numbers;
    }

    /// The other process has them: connections that are relayed here go on.
    pub(super) fn release(&mut self) {
        let of_listeners: Vec<FlowId> = self
            .flows
            .iter_mut()
            .filter(|(_, flow)| matches!(flow.kind, Kind::Udp { .. }))
            .map(|(id, _)| id)
            .collect();
        for id in of_listeners {
            self.finish(id, Ending::HandedOver);
        }
        self.listeners.clear();
        self.numbers.clear();
        self.waiting.clear();
        self.lingering.clear();
        self.ready.clear();
    }

    /// A connection has ended that the other process counts.
    pub(super) fn relayed_ended(&mut self, key: FlowKey) {
        if self.lent && key.protocol == Protocol::Tcp {
            self.untold.push(key);
        }
    }

    /// Tells the other process of ends, as far as it takes them now.
    pub(super) fn tell_ends(&mut self) {
        while let Some(key) = self.untold.last() {
            if !self.shared.tell_successor(key) {
                return;
            }
            self.untold.pop();
        }
    }

    /// When ends that could not be told are told again.
    pub(super) fn next_telling(&self) -> Option<Instant> {
        (!self.untold.is_empty()).then(|| self.now + AGAIN)
    }

    /// Goes on with what another process had; listeners are taken up as they are
    /// opened, and flows with them.
    pub(super) fn inherit(&mut self, lent: Lent) {
        self.inherited = lent;
    }

    /// A socket for this listener that another process had.
    pub(super) fn inherited_socket(&mut self, number: u32) -> Option<OwnedFd> {
        let at = self.listeners.get(&number)?.listen.at;
        let listeners = &mut self.inherited.listeners;
        let place = listeners.iter().position(|(its, _)| *its == at)?;
        Some(listeners.swap_remove(place).1)
    }

    /// Goes on with the flows that came through this listener.
    pub(super) fn inherit_flows(&mut self, number: u32) {
        let Some(listener) = self.listeners.get(&number) else {
            return;
        };
        let at = listener.listen.at;
        if self.inherited.flows.is_empty() || at.protocol != Protocol::Udp {
            return;
        }
        let flows = std::mem::take(&mut self.inherited.flows);
        let (mine, others) = flows
            .into_iter()
            .partition(|(flow, _)| flow.listener == at.address);
        self.inherited.flows = others;
        for (flow, socket) in mine {
            self.inherit_flow(number, flow, socket);
        }
    }

    fn inherit_flow(&mut self, number: u32, lent: LentFlow, socket: OwnedFd) {
        let Some(listener) = self.listeners.get(&number) else {
            return;
        };
        let State::Udp {
            socket: through, ..
        } = &listener.state
        else {
            return;
        };
        let (through, listen) = (Rc::clone(through), listener.listen.clone());
        let key = FlowKey {
            client: lent.client,
            virtual_server: lent.virtual_server,
            protocol: Protocol::Udp,
        };
        // What is not served any more, or not by this real server, begins anew.
        let Verdict::Forward(server) = self.verdict(&listen, key.virtual_server, key.client) else {
            return;
        };
        let Some(mut connection) = server.adopt(lent.real_server, false) else {
            return;
        };
        let now = self.now;
        server.connected(key.client.ip(), &mut connection, now);
        let socket = UdpSocket::from(socket);
        let source = socket.local_addr().ok();
        let kind = Kind::Udp {
            flow: UdpFlow::resumed(socket, now),
            listener: through,
        };
        let id = self.insert(key, server, number, kind);
        self.begin(id, connection, source, 1);
    }
}

fn duplicate(socket: &impl AsFd) -> io::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned()
}
