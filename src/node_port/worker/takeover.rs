//! Lending listeners and UDP flows to another process, and going on with those lent.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Interest;

use super::Worker;
use crate::dataplane::{Ending, FlowId, FlowKey, HandedFlow, UdpFlow};
use crate::ipvs::{Connection, Protocol, Verdict, VirtualServer};
use crate::node_port::flow::Kind;
use crate::node_port::listener::{Listen, ListenAddress, Listener, State, inherit};
use crate::node_port::takeover::{Lent, LentFlow};
use crate::node_port::token::{Owner, next_listener};
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
    /// opened, and flows with them. What was not taken up until now is closed, if it is
    /// no listener of UDP that only flows are left of.
    pub(super) fn inherit(&mut self, lent: Lent) {
        let left = std::mem::replace(&mut self.inherited, lent);
        let mut flows = left.flows;
        for (at, socket) in left.listeners {
            let through =
                |flow: &LentFlow| at.protocol == Protocol::Udp && flow.listener == at.address;
            let (its, others) = flows.into_iter().partition(|(flow, _)| through(flow));
            flows = others;
            self.linger_on(at, socket, its);
        }
    }

    /// Nobody serves there now, and flows of before go on.
    fn linger_on(&mut self, at: ListenAddress, socket: OwnedFd, flows: Vec<(LentFlow, OwnedFd)>) {
        if flows.is_empty() || self.numbers.contains_key(&at) {
            return;
        }
        let server = self.shared.table.listened(at.address, at.protocol);
        let Some(server) = server else { return };
        let state = inherit(at, None, socket);
        let State::Udp { socket, .. } = &state else {
            return;
        };
        let through = Rc::clone(socket);
        let number = self.next_number;
        if super::register(
            &self.poll,
            &*through,
            Owner::Listener(number),
            Interest::READABLE,
        )
        .is_err()
        {
            return;
        }
        self.next_number = next_listener(number);
        let listen = Listen {
            at,
            server: server.address,
            service: Arc::clone(&server.service),
            only: None,
        };
        self.numbers.insert(at, number);
        self.listeners.insert(number, Listener { listen, state });
        self.ready.push(number);
        for (flow, socket) in flows {
            if let Some(connection) = server.adopt_left(flow.real_server) {
                let (server, through) = (Arc::clone(&server), Rc::clone(&through));
                self.resume_flow(number, &flow, socket, server, connection, through);
            }
        }
        drop(through);
        self.lingering.insert(number);
        self.close_lingering(number);
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
        // What is not served any more, or not by this real server, begins anew.
        let Verdict::Forward(server) = self.verdict(&listen, lent.virtual_server, lent.client)
        else {
            return;
        };
        if let Some(connection) = server.adopt(lent.real_server, false) {
            self.resume_flow(number, &lent, socket, server, connection, through);
        }
    }

    fn resume_flow(
        &mut self,
        number: u32,
        lent: &LentFlow,
        socket: OwnedFd,
        server: Arc<VirtualServer>,
        mut connection: Connection,
        through: Rc<UdpSocket>,
    ) {
        let key = FlowKey {
            client: lent.client,
            virtual_server: lent.virtual_server,
            protocol: Protocol::Udp,
        };
        let now = self.now;
        server.connected(key.client.ip(), &mut connection, now);
        let kind = Kind::Udp {
            flow: UdpFlow::resumed(socket.into(), now),
            listener: through,
        };
        let id = self.insert(key, server, number, kind);
        self.begin(id, connection, 1);
    }
}

fn duplicate(socket: &impl AsFd) -> io::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned()
}
