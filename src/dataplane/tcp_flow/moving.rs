//! Bytes between the rings and the real server's socket.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::TcpFlow;
use crate::dataplane::server_socket::ServerSocket;
use crate::netstack::TcpState;

/// Bytes that one turn may read from the real server before other flows have theirs:
/// four super-packets.
const TURN_BYTES: usize = 256 << 10;

impl<S: ServerSocket> TcpFlow<S> {
    /// From the receive ring into the socket.
    pub(super) fn move_to_server(&mut self, now: Instant) {
        if !self.flush_preface() {
            return;
        }
        while self.writable
            && self.server_error.is_none()
            && !self.finish_sent
            && self.endpoint.receive_queue() > 0
        {
            let server = &mut self.server;
            let sent = self.endpoint.receive(|bytes| match server.send(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Some(Ok(count)) => {
                    self.bytes_in += count as u64;
                    self.active = now;
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Some(Err(error)) => self.server_failed(&error),
                None => break,
            }
        }
        if self.client_finished && !self.finish_sent && self.endpoint.receive_queue() == 0 {
            self.finish_sent = true;
            // Where all is said the flow ends with this turn, and close(2) sends FIN.
            let over = self.server_finished && self.endpoint.state() == TcpState::TimeWait;
            if self.server_error.is_none() && !over {
                self.server.finish();
            }
        }
    }

    /// Sends the preface. True once all of it has gone.
    fn flush_preface(&mut self) -> bool {
        while self.writable && !self.preface.is_empty() {
            match self.server.send(&self.preface) {
                Ok(sent) => drop(self.preface.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.preface.clear();
                    self.server_failed(&error);
                }
            }
        }
        self.preface.is_empty()
    }

    /// From the socket into the send ring. True when the budget stopped it.
    pub(super) fn move_to_client(&mut self, now: Instant) -> bool {
        // Whole super-packets: a runt costs as much as a full one.
        let burst = self.endpoint.burst();
        let mut budget = (TURN_BYTES / burst).max(1) * burst;
        while self.readable && !self.server_finished && self.endpoint.send_room() > 0 {
            if budget == 0 {
                return true;
            }
            let server = &mut self.server;
            let received = self.endpoint.send(|room| {
                let limit = budget.min(room.len());
                match server.receive(&mut room[..limit]) {
                    Ok(count) => (count, Ok((count, limit))),
                    Err(error) => (0, Err(error)),
                }
            });
            match received {
                Some(Ok((0, _))) => {
                    self.server_finished = true;
                }
                Some(Ok((count, limit))) => {
                    self.bytes_out += count as u64;
                    self.active = now;
                    budget = budget.saturating_sub(count);
                    // A short read has emptied the socket; what comes later is told.
                    self.readable = count == limit || self.more_behind;
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    self.more_behind = false;
                    // Nothing is left behind a send that failed.
                    self.server_finished = self.server_error.is_some();
                }
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Some(Err(error)) => {
                    self.server_failed(&error);
                    self.server_finished = true;
                }
                None => break,
            }
        }
        false
    }

    /// FIN to the client behind everything the real server has sent. After FIN of
    /// its own the client must have acknowledged that first: in LAST_ACK smoltcp
    /// 0.14 learns of no window and no loss, and every window that shuts would stand
    /// still until it is probed.
    pub(super) fn finish_to_client(&mut self) {
        let due = match self.endpoint.state() {
            TcpState::SynReceived | TcpState::Established => true,
            TcpState::CloseWait => self.endpoint.send_queue() == 0,
            TcpState::Closed
            | TcpState::Listen
            | TcpState::SynSent
            | TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::Closing
            | TcpState::LastAck
            | TcpState::TimeWait => false,
        };
        if due && self.server_finished && self.server_error.is_none() {
            self.endpoint.finish();
        }
    }

    /// A failed send or receive. What the real server sent before its RST is still
    /// in the socket: it is read before the flow ends.
    fn server_failed(&mut self, error: &io::Error) {
        self.server_error = self.server_error.or_else(|| Some(error.kind()));
        self.readable = true;
        self.more_behind = true;
    }
}
