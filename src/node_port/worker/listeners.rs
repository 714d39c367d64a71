//! The listeners of a worker: opening, closing, waiting for a port that is taken.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;

use super::Worker;
use crate::dataplane::{Ending, FlowId};
use crate::ipvs::Protocol;
use crate::node_port::flow::Kind;
use crate::node_port::listener::{
    Listen, ListenAddress, Listener, Pause, State, inherit, open, tell_unfiltered,
};
use crate::node_port::token::{Owner, next_listener};

impl Worker {
    /// When the first of those that wait wants to be looked at.
    pub(super) fn next_wait(&self) -> Option<Instant> {
        let waiting = self.waiting.iter();
        waiting
            .filter_map(|number| self.listeners.get(number)?.deadline())
            .min()
    }

    pub(super) fn open(&mut self, listen: Listen) {
        if let Some(number) = self.numbers.get(&listen.at)
            && let Some(listener) = self.listeners.get_mut(number)
        {
            self.lingering.remove(number);
            if let Err(error) = listener.pass_to(listen) {
                tell_unfiltered(listener.listen.at, &error);
            }
            return;
        }
        let number = self.next_number;
        self.next_number = next_listener(number);
        self.numbers.insert(listen.at, number);
        let state = State::Taken(Pause::taken(self.now));
        let listener = Listener { listen, state };
        self.listeners.insert(number, listener);
        self.try_open(number);
    }

    /// Opens the socket of a listener that has none.
    pub(super) fn try_open(&mut self, number: u32) {
        let Some(listener) = self.listeners.get_mut(&number) else {
            return;
        };
        let State::Taken(pause) = listener.state else {
            return;
        };
        let again = pause.until <= self.now;
        let at = listener.listen.at;
        let inherited = self.inherited_socket(number);
        let Some(listener) = self.listeners.get_mut(&number) else {
            return;
        };
        let only = listener.listen.only.as_deref();
        let opened = match inherited {
            Some(socket) => Ok(inherit(at, only, socket)),
            None => open(at, only),
        };
        let opened = opened.and_then(|state| {
            let opened = Listener {
                listen: listener.listen.clone(),
                state,
            };
            if let Some(fd) = opened.fd() {
                let token = Owner::Listener(number).token();
                let registry = self.poll.registry();
                registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
            }
            Ok(opened.state)
        });
        let Listen { at, service, .. } = &listener.listen;
        match opened {
            Ok(state) => {
                listener.state = state;
                // What came before it was watched is no event.
                self.ready.push(number);
                if again {
                    tracing::info!(
                        %service, address = %at.address, protocol = at.protocol.as_str(),
                        "the port is free now: the service is reached here"
                    );
                }
            }
            Err(error) => {
                if !again {
                    tell_taken(&listener.listen, &error);
                }
                self.waiting.insert(number);
                listener.state = State::Taken(if again {
                    pause.again(self.now)
                } else {
                    Pause::taken(self.now)
                });
            }
        }
        self.inherit_flows(number);
    }

    /// Takes no new flows there. Connections that the kernel has accepted are served.
    pub(super) fn drain(&mut self, at: ListenAddress) {
        let Some(&number) = self.numbers.get(&at) else {
            return;
        };
        if at.protocol == Protocol::Udp {
            self.lingering.insert(number);
            self.close_lingering(number);
            return;
        }
        while let Some(State::Tcp { ready: true, .. }) =
            self.listeners.get(&number).map(|listener| &listener.state)
            && !self.waiting.contains(&number)
        {
            self.accept(number);
        }
        self.close(at);
    }

    /// Closes a listener that lingers if no flow answers through it any more.
    pub(super) fn close_lingering(&mut self, number: u32) {
        if !self.lingering.contains(&number) {
            return;
        }
        let Some(listener) = self.listeners.get(&number) else {
            self.lingering.remove(&number);
            return;
        };
        // Each flow has a handle of the socket.
        if let State::Udp { socket, .. } = &listener.state
            && Rc::strong_count(socket) > 1
        {
            return;
        }
        self.lingering.remove(&number);
        self.close(listener.listen.at);
    }

    pub(super) fn close(&mut self, at: ListenAddress) {
        let Some(number) = self.numbers.remove(&at) else {
            return;
        };
        let listener = self.listeners.remove(&number);
        self.waiting.remove(&number);
        if !listener.is_some_and(|listener| matches!(listener.state, State::Udp { .. })) {
            return;
        }
        let through: Vec<FlowId> = self
            .flows
            .iter_mut()
            .filter(|(_, flow)| {
                flow.own.listener == number && matches!(flow.kind, Kind::Udp { .. })
            })
            .map(|(id, _)| id)
            .collect();
        for id in through {
            self.finish(id, Ending::EndpointRemoved);
        }
    }

    pub(super) fn listener_ready(&mut self, number: u32) {
        match self.listeners.get_mut(&number).map(|l| &mut l.state) {
            Some(State::Tcp { ready, pause, .. }) => {
                *ready = true;
                if pause.is_none() {
                    self.ready.push(number);
                }
            }
            Some(State::Udp { ready, .. }) => {
                *ready = true;
                self.ready.push(number);
            }
            Some(State::Taken(_)) | None => {}
        }
    }

    pub(super) fn look_after_listeners(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let is_due = |number: &u32| {
            let listener = self.listeners.get(number);
            listener
                .and_then(Listener::deadline)
                .is_none_or(|at| at <= self.now)
        };
        let due: Vec<u32> = self.waiting.iter().copied().filter(is_due).collect();
        for number in due {
            self.waiting.remove(&number);
            match self.listeners.get(&number).map(|l| &l.state) {
                Some(State::Taken(_)) => self.try_open(number),
                Some(State::Tcp { .. }) => self.ready.push(number),
                Some(State::Udp { .. }) | None => {}
            }
        }
    }

    pub(super) fn take_from(&mut self, number: u32) {
        if self.lent {
            return;
        }
        match self.listeners.get(&number).map(|l| &l.state) {
            Some(State::Tcp { .. }) => self.accept(number),
            Some(State::Udp { .. }) => self.receive(number),
            Some(State::Taken(_)) | None => {}
        }
    }
}

/// One warning for a listener that could not be opened, until it could.
fn tell_taken(listen: &Listen, error: &io::Error) {
    let Listen { at, service, .. } = listen;
    let mend = if error.kind() == io::ErrorKind::AddrInUse {
        let flag = if at.protocol == Protocol::Udp {
            "u"
        } else {
            "t"
        };
        format!(
            "another process has the port, kube-proxy or a pod with hostPort or hostNetwork \
             perhaps: `ss -l{flag}np sport = :{}` as root names it",
            at.address.port()
        )
    } else {
        "it is tried again".to_owned()
    };
    tracing::warn!(
        %service, address = %at.address, protocol = at.protocol.as_str(), %error, mend,
        "cannot listen: the service is not reached at this address until it can"
    );
}
