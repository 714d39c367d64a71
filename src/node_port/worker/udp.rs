//! UDP: datagrams to and from real servers.
//!
//! A listener is bound to one address, so what leaves through it comes from the
//! address that the client sent to. Each client has a connected socket of its own
//! towards its real server. An ICMP error of the real server is passed on
//! (`node_port::unreachable`).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use mio::Interest;

use super::Worker;
use crate::dataplane::{Ending, FlowId, FlowKey, Found, Tried, UdpFlow, is_icmp, unreachable_of};
use crate::ipvs::{Connection, DropReason, Protocol, RejectReason, Verdict};
use crate::node_port::flow::Kind;
use crate::node_port::listener::State;
use crate::node_port::relay::Side;
use crate::node_port::token::Owner;
use crate::packet::Unreachable;

/// Datagrams that one socket may bring before others have a turn.
const BATCH: usize = 64;

impl Worker {
    /// Takes datagrams off a listener.
    pub(super) fn receive(&mut self, number: u32) {
        let mut datagram = std::mem::take(&mut self.datagram);
        let mut more = true;
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get_mut(&number) else {
                more = false;
                break;
            };
            let State::Udp { socket, ready } = &mut listener.state else {
                more = false;
                break;
            };
            match socket.recv_from(&mut datagram) {
                Ok((length, client)) => self.arrived(number, client, &datagram[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *ready = false;
                    more = false;
                    break;
                }
                // An answer of ours that could not be delivered.
                Err(_) => {}
            }
        }
        self.datagram = datagram;
        if more {
            self.ready.push(number);
        }
    }

    fn arrived(&mut self, number: u32, client: SocketAddr, payload: &[u8]) {
        let Some(listener) = self.listeners.get(&number) else {
            return;
        };
        let key = FlowKey {
            client,
            virtual_server: listener.listen.at.address,
            protocol: Protocol::Udp,
        };
        let found = match self.flows.find(&key) {
            Some(Found::Flow(id)) => Some(id),
            Some(Found::TimeWait(_)) | None => None,
        };
        let id = match found {
            Some(id) if self.flows.get_mut(id).is_some_and(|flow| flow.is_retired()) => {
                self.finish(id, Ending::EndpointRemoved);
                self.start(number, key, payload.len())
            }
            Some(id) => Some(id),
            None => self.start(number, key, payload.len()),
        };
        let Some(id) = id else { return };
        let now = self.now;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Udp { flow, .. } = &mut flow.kind else {
            return;
        };
        let (sent, came_back) = flow.send(payload, now);
        if let Some(error) = came_back {
            self.nobody_there(&key, payload.len(), &error);
        }
        if let Err(error) = sent {
            if is_icmp(&error) {
                self.nobody_there(&key, payload.len(), &error);
            } else {
                self.discard(DropReason::QueueFull);
            }
        }
        self.flows.notice_bytes(id);
    }

    /// An ICMP error of the real server has come back.
    fn nobody_there(&mut self, key: &FlowKey, payload_len: usize, error: &io::Error) {
        self.count(&Verdict::Reject(RejectReason::ConnectFailed));
        self.tell_unreachable(key, payload_len, unreachable_of(error));
    }

    /// A flow that is not to be.
    fn refuse_datagram(&mut self, key: &FlowKey, payload_len: usize, refusal: &Verdict) {
        self.count(refusal);
        if matches!(refusal, Verdict::Reject(_)) {
            self.tell_unreachable(key, payload_len, Unreachable::Port);
        }
    }

    fn start(&mut self, number: u32, key: FlowKey, payload_len: usize) -> Option<FlowId> {
        let listener = self.listeners.get(&number)?;
        let State::Udp { socket, .. } = &listener.state else {
            return None;
        };
        let through = Rc::clone(socket);
        let listen = listener.listen.clone();
        let server = match self.verdict(&listen, key.virtual_server, key.client) {
            Verdict::Forward(server) => server,
            refusal @ (Verdict::Reject(_) | Verdict::Drop(_)) => {
                self.refuse_datagram(&key, payload_len, &refusal);
                return None;
            }
        };
        let now = self.now;
        let mut tried = Tried::default();
        let most = self.config.connect_attempts;
        while let Some(mut connection) = tried.next(&server, key.client, most, now) {
            let to = connection.real_server().address;
            let socket = if self.leads_back(to, Protocol::Udp) {
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            } else {
                self.dialer.datagrams(to, now)
            };
            match socket {
                Ok(socket) => {
                    server.connected(key.client.ip(), &mut connection, now);
                    let kind = Kind::Udp {
                        flow: UdpFlow::new(socket, now),
                        listener: through,
                    };
                    let id = self.insert(key, server, number, kind);
                    return self.begin(id, connection, tried.count());
                }
                Err(error) => {
                    tried.no_socket(&server, key.client, &connection, &error, &self.stats);
                }
            }
        }
        self.refuse_datagram(&key, payload_len, &tried.refusal(&server));
        None
    }

    /// Watches the socket of a flow that was just taken in.
    pub(super) fn begin(
        &mut self,
        id: FlowId,
        connection: Connection,
        attempts: u32,
    ) -> Option<FlowId> {
        let timeout = self.shared.udp_timeout(&self.config);
        let poll = &self.poll;
        let flow = self.flows.get_mut(id)?;
        let udp = flow.begin_udp(connection, attempts)?;
        let deadline = udp.deadline(timeout);
        let owner = Owner::Flow(id, Side::Server);
        let watched = super::register(poll, udp.socket(), owner, Interest::READABLE);
        if watched.is_err() {
            self.finish(id, Ending::Fault);
            return None;
        }
        self.flows.arm(id, deadline);
        Some(id)
    }

    /// The socket of a flow has something: datagrams, or an ICMP error.
    pub(super) fn udp_ready(&mut self, id: FlowId) {
        let mut datagram = std::mem::take(&mut self.datagram);
        let drained = self.pass_to_client(id, &mut datagram);
        self.datagram = datagram;
        self.flows.notice_bytes(id);
        if !drained {
            // The budget is spent, and epoll tells only of what is new.
            self.flows.mark(id);
        }
    }

    /// False if there may be more.
    fn pass_to_client(&mut self, id: FlowId, room: &mut [u8]) -> bool {
        let now = self.now;
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get_mut(id) else {
                return true;
            };
            let client = flow.key.client;
            let Kind::Udp {
                flow: udp,
                listener,
            } = &mut flow.kind
            else {
                return true;
            };
            match udp.receive(room, now) {
                Ok(length) => {
                    if listener.send_to(&room[..length], client).is_err() {
                        self.discard(DropReason::QueueFull);
                    }
                }
                Err(error) if is_icmp(&error) => {
                    let (key, sent) = (flow.key, udp.last_sent());
                    self.nobody_there(&key, sent, &error);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more, or an error that the next datagram meets again.
                Err(_) => return true,
            }
        }
        false
    }

    pub(super) fn udp_timer(&mut self, id: FlowId) {
        let timeout = self.shared.udp_timeout(&self.config);
        if self.flows.is_silent(id, timeout, self.now) {
            self.finish(id, Ending::Idle);
        }
    }
}
