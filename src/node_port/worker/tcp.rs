//! TCP: accepting, dialling, relaying.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::Interest;

use super::Worker;
use crate::dataplane::{
    Dial, Ending, FlowId, FlowKey, HandshakeAck, KernelSocket, Outcome, Progress, ServerSocket,
    proxy_header,
};
use crate::ipvs::{DropReason, Protocol, RejectReason, Verdict};
use crate::node_port::flow::{Dialing, Kind};
use crate::node_port::listener::{Pause, State, is_exhausted};
use crate::node_port::relay::{Leg, Relay, Side};
use crate::node_port::token::Owner;

/// Connections that one listener may accept before flows have their turn.
const BATCH: usize = 64;

/// Between two attempts while there is no descriptor: about as long as a short
/// connection of another client lasts.
const STARVED: Duration = Duration::from_millis(20);

impl Worker {
    /// Takes connections off a listener's queue.
    pub(super) fn accept(&mut self, number: u32) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get_mut(&number) else {
                return;
            };
            let State::Tcp {
                socket,
                ready,
                pause,
            } = &mut listener.state
            else {
                return;
            };
            match socket.accept() {
                Ok((stream, client)) => {
                    *pause = None;
                    let socket = KernelSocket::new(OwnedFd::from(stream).into());
                    self.accepted(number, socket, client);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *ready = false;
                    *pause = None;
                    return;
                }
                Err(error) if is_exhausted(&error) => {
                    // What waits stays in the kernel's queue; trying at once again
                    // would only spin.
                    if pause.is_none() {
                        tracing::warn!(
                            service = %listener.listen.service, address = %listener.listen.at.address,
                            %error,
                            "connections wait to be accepted: the process is out of descriptors"
                        );
                    }
                    *pause = Some(pause.map_or_else(
                        || Pause::descriptors(self.now),
                        |pause| pause.again(self.now),
                    ));
                    self.waiting.insert(number);
                    return;
                }
                // A connection that was reset in the queue.
                Err(_) => {}
            }
        }
        self.ready.push(number);
    }

    fn accepted(&mut self, number: u32, mut socket: KernelSocket, client: SocketAddr) {
        let Some(listener) = self.listeners.get(&number) else {
            return;
        };
        let listen = listener.listen.clone();
        // Without an address it is not connected any more.
        let Some(local) = socket.local_address() else {
            return;
        };
        let server = match self.verdict(&listen, local, client) {
            Verdict::Forward(server) => server,
            refusal @ (Verdict::Reject(_) | Verdict::Drop(_)) => {
                // The kernel has answered already: RST is the nearest to a refusal.
                self.count(&refusal);
                socket.reset_on_close();
                return;
            }
        };
        let fd = socket.as_raw_fd();
        let dialing = Dialing {
            client: Some(Leg::new(socket)),
            dial: Dial::new(self.now),
            starved: false,
        };
        let key = FlowKey {
            client,
            virtual_server: local,
            protocol: Protocol::Tcp,
        };
        let id = self.insert(key, server, number, Kind::Dialing(dialing));
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self
            .watch(&fd, Owner::Flow(id, Side::Client), interest)
            .is_err()
        {
            return self.refuse(id, Ending::Fault);
        }
        self.dial(id);
    }

    /// Tries the next real server, and the next, until one is being connected to.
    fn dial(&mut self, id: FlowId) {
        let now = self.now;
        loop {
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let Some(address) = flow.next_attempt(&self.config, &self.stats, now) else {
                return self.give_up(id);
            };
            let socket = if self.leads_back(address, Protocol::Tcp) {
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            } else {
                self.dialer.connect(address, HandshakeAck::AtOnce, now)
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            let watched = socket.and_then(|socket| {
                self.watch(&socket, Owner::Flow(id, Side::Server), interest)?;
                Ok(socket)
            });
            match watched {
                Ok(socket) => return self.flows.connecting(id, socket),
                Err(error) if is_exhausted(&error) => return self.starve(id),
                Err(error) => self.flows.attempt_failed(id, &error, &self.stats),
            }
        }
    }

    /// Takes back an attempt that we had no descriptor for, and makes it again later:
    /// no real server is to blame. A client waits no longer than for silent ones.
    fn starve(&mut self, id: FlowId) {
        let now = self.now;
        let config = &self.config;
        let patience = config.connect_timeout * config.connect_attempts;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        if now >= flow.started + patience {
            self.count(&Verdict::Reject(RejectReason::FlowLimit));
            return self.refuse(id, Ending::ConnectTimeout);
        }
        let Kind::Dialing(dialing) = &mut flow.kind else {
            return;
        };
        dialing.starved = true;
        flow.take_back_attempt(now + STARVED);
        self.flows.arm(id, now + STARVED);
    }

    /// The socket of a dial has become writable or failed.
    pub(super) fn dial_ready(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dialing) = &flow.kind else {
            return;
        };
        let Some(socket) = &dialing.dial.socket else {
            return;
        };
        match socket.connect_result() {
            Ok(()) => self.join(id),
            Err(error) => {
                self.flows.attempt_failed(id, &error, &self.stats);
                self.dial(id);
            }
        }
    }

    pub(super) fn dial_timer(&mut self, id: FlowId) {
        if !self.flows.is_overdue(id, self.now) {
            return;
        }
        let starved = match self.flows.get_mut(id).map(|flow| &mut flow.kind) {
            Some(Kind::Dialing(dialing)) => std::mem::take(&mut dialing.starved),
            Some(Kind::Tcp(_) | Kind::Udp { .. }) | None => return,
        };
        if !starved {
            let error = io::ErrorKind::TimedOut.into();
            self.flows.attempt_failed(id, &error, &self.stats);
        }
        self.dial(id);
    }

    /// No real server is left to try.
    fn give_up(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dialing) = &flow.kind else {
            return;
        };
        let outcome = dialing.dial.outcome();
        match outcome {
            Outcome::NoneTried => {
                let refusal = flow.server.refusal();
                self.count(&refusal);
            }
            Outcome::Refused | Outcome::Unreachable => {
                self.count(&Verdict::Reject(RejectReason::ConnectFailed));
            }
            Outcome::Silent => self.discard(DropReason::ConnectTimeout),
        }
        self.refuse(id, outcome.ending());
    }

    /// Ends a flow that has no real server: its client sees RST.
    fn refuse(&mut self, id: FlowId, ending: Ending) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Dialing(dialing) = &mut flow.kind
            && let Some(client) = &mut dialing.client
        {
            client.reset_on_close();
        }
        self.finish(id, ending);
    }

    /// The real server is connected: from now on bytes pass.
    fn join(&mut self, id: FlowId) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Some(mut socket) = flow.connected(&self.stats, now) else {
            return;
        };
        let Kind::Dialing(dialing) = &mut flow.kind else {
            return;
        };
        let Some(client) = dialing.client.take() else {
            return;
        };
        socket.send_at_once();
        socket.keep_alive();
        let preface = flow
            .server
            .proxy_protocol
            .and_then(|version| proxy_header(version, flow.key.client, flow.key.virtual_server))
            .unwrap_or_default();
        flow.kind = Kind::Tcp(Box::new(Relay::new(client, socket, preface, now)));
        self.flows.mark(id);
    }

    /// Lets a flow move bytes.
    pub(super) fn turn(&mut self, id: FlowId) {
        let now = self.now;
        let timeouts = self.config.tcp_timeouts;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Tcp(relay) = &mut flow.kind else {
            return;
        };
        let progress = relay.turn(&mut self.pipes, &timeouts, now);
        let held = relay.held();
        self.shared.account(flow.held, held);
        flow.held = held;
        if relay.is_closing()
            && let Some(connection) = &mut flow.connection
        {
            connection.closing();
        }
        let deadline = relay.deadline(&timeouts);
        self.flows.notice_bytes(id);
        match progress {
            Progress::Ended(ending) => self.finish(id, ending),
            Progress::More => self.flows.mark(id),
            Progress::Waiting => {
                if let Some(at) = deadline {
                    self.flows.arm(id, at);
                }
            }
        }
    }
}
