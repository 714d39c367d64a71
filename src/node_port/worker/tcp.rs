//! TCP: accepting, dialling, relaying.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::Interest;

use super::Worker;
use crate::dataplane::{
    Ending, FlowId, FlowKey, KernelSocket, Progress, ServerSocket, add, proxy_header,
};
use crate::ipvs::{Connection, DropReason, Protocol, RejectReason, Verdict};
use crate::node_port::flow::{Dial, Kind};
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
        let dial = Dial {
            client: None,
            socket: None,
            deadline: self.now,
            tried: Vec::new(),
            refused: false,
            starved: false,
        };
        let key = FlowKey {
            client,
            virtual_server: local,
            protocol: Protocol::Tcp,
        };
        let fd = socket.as_raw_fd();
        let id = self.insert(key, server, number, Kind::Dialing(dial));
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Dialing(dial) = &mut flow.kind
        {
            dial.client = Some(Leg::new(socket));
        }
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
        loop {
            let now = self.now;
            let config = &self.config;
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let Kind::Dialing(dial) = &mut flow.kind else {
                return;
            };
            if flow.attempts >= config.connect_attempts {
                return self.give_up(id);
            }
            let client = flow.key.client;
            let Some(real_server) = flow.server.schedule(client, now, &dial.tried) else {
                return self.give_up(id);
            };
            if flow.attempts > 0 {
                add(&self.stats.failovers);
            }
            flow.attempts += 1;
            let address = real_server.address;
            dial.tried.push(address);
            dial.deadline = now + config.connect_timeout;
            let deadline = dial.deadline;
            flow.connection = Some(Connection::new(real_server));
            let socket = if self.leads_back(address, Protocol::Tcp) {
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            } else {
                self.dialer.connect(address, now)
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            let watched = socket.and_then(|socket| {
                self.watch(&socket, Owner::Flow(id, Side::Server), interest)?;
                Ok(socket)
            });
            match watched {
                Ok(socket) => {
                    if let Some(flow) = self.flows.get_mut(id)
                        && let Kind::Dialing(dial) = &mut flow.kind
                    {
                        dial.socket = Some(socket);
                        self.flows.arm(id, deadline);
                    }
                    return;
                }
                Err(error) if is_exhausted(&error) => return self.starve(id),
                Err(error) => self.dial_failed(id, &error),
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
        let Kind::Dialing(dial) = &mut flow.kind else {
            return;
        };
        if now >= flow.started + patience {
            self.count(&Verdict::Reject(RejectReason::FlowLimit));
            return self.refuse(id, Ending::ConnectTimeout);
        }
        flow.attempts -= 1;
        flow.connection = None;
        dial.tried.pop();
        dial.starved = true;
        dial.deadline = now + STARVED;
        let deadline = dial.deadline;
        self.flows.arm(id, deadline);
    }

    /// Remembers how an attempt failed. The caller tries the next.
    fn dial_failed(&mut self, id: FlowId, error: &io::Error) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Dialing(dial) = &mut flow.kind
        {
            dial.socket = None;
            dial.refused |= error.kind() != io::ErrorKind::TimedOut;
        }
        self.attempt_failed(id, error);
    }

    /// The socket of a dial has become writable or failed.
    pub(super) fn dial_ready(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dial) = &flow.kind else {
            return;
        };
        let Some(socket) = &dial.socket else { return };
        match socket.connect_result() {
            Ok(()) => self.join(id),
            Err(error) => {
                self.dial_failed(id, &error);
                self.dial(id);
            }
        }
    }

    pub(super) fn dial_timer(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dial) = &mut flow.kind else {
            return;
        };
        let deadline = dial.deadline;
        if self.now < deadline {
            return self.flows.arm(id, deadline);
        }
        if std::mem::take(&mut dial.starved) {
            return self.dial(id);
        }
        self.dial_failed(id, &io::ErrorKind::TimedOut.into());
        self.dial(id);
    }

    /// No real server is left to try.
    fn give_up(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Dialing(dial) = &flow.kind else {
            return;
        };
        let (refused, none_tried) = (dial.refused, dial.tried.is_empty());
        if none_tried {
            let refusal = flow.server.refusal();
            self.count(&refusal);
        } else if refused {
            self.count(&Verdict::Reject(RejectReason::ConnectFailed));
        } else {
            self.discard(DropReason::ConnectTimeout);
        }
        self.refuse(
            id,
            if refused || none_tried {
                Ending::ConnectRefused
            } else {
                Ending::ConnectTimeout
            },
        );
    }

    /// Ends a flow that has no real server: its client sees RST.
    fn refuse(&mut self, id: FlowId, ending: Ending) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Kind::Dialing(dial) = &mut flow.kind
            && let Some(client) = &mut dial.client
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
        let Kind::Dialing(dial) = &mut flow.kind else {
            return;
        };
        let (Some(client), Some(mut socket)) = (dial.client.take(), dial.socket.take()) else {
            return;
        };
        flow.source = socket.local_address();
        let dial_time = now.saturating_duration_since(flow.started);
        self.stats.dialed(dial_time);
        flow.dial_time = Some(dial_time);
        if let Some(connection) = &mut flow.connection {
            connection.established();
            flow.server.connected(flow.key.client.ip(), connection, now);
        }
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
