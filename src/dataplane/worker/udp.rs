//! UDP: datagrams to and from real servers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::receive::Arrival;
use super::{Kind, Worker};
use crate::dataplane::dial::Tried;
use crate::dataplane::ending::Ending;
use crate::dataplane::flow::Conversation;
use crate::dataplane::flow_table::{FlowId, FlowKey, Found};
use crate::dataplane::udp_flow::{MAX_UDP_PAYLOAD, UdpFlow, is_icmp, unreachable_of};
use crate::ipvs::{
    Connection, DropReason, EchoVerdict, Protocol, RejectReason, Verdict, VirtualAddress,
};
use crate::packet::{
    IpPacket, OriginatedError, UdpDatagram, Unreachable, udp_fragments_v6, udp_unreachable,
};

/// Datagrams that one flow may bring from its real server before others have a turn.
const BATCH: usize = 64;

/// Flows looked at for one that can make room.
const LOOKS: usize = 64;

impl Worker {
    pub(super) fn udp(&mut self, arrival: &Arrival<'_>, datagram: &UdpDatagram<'_>) {
        let packet = &arrival.packet;
        let key = FlowKey {
            client: SocketAddr::new(packet.source, datagram.source_port),
            virtual_server: SocketAddr::new(packet.destination, datagram.destination_port),
            protocol: Protocol::Udp,
        };
        let mut found = self.flows.find(&key);
        if let Some(Found::Flow(id)) = found
            && self.flows.get_mut(id).is_some_and(|flow| flow.is_retired())
        {
            self.finish(id, Ending::EndpointRemoved);
            found = None;
        }
        let id = match found {
            Some(Found::Flow(id)) => id,
            Some(Found::TimeWait(_)) => return,
            None if self.pass_on(arrival, &key) => return,
            None => match self.start_udp(&key, packet) {
                Some(id) => id,
                None => return,
            },
        };
        let size = arrival.datagram_size;
        if size > 0 && datagram.payload.len() > size {
            for piece in datagram.payload.chunks(size) {
                self.pass_to_real_server(id, packet, piece);
            }
        } else {
            self.pass_to_real_server(id, packet, datagram.payload);
        }
    }

    fn start_udp(&mut self, key: &FlowKey, packet: &IpPacket<'_>) -> Option<FlowId> {
        let address = VirtualAddress {
            ip: key.virtual_server.ip(),
            port: key.virtual_server.port(),
            protocol: Protocol::Udp,
        };
        let verdict = self.verdict(address, key.client);
        let server = match verdict {
            Verdict::Forward(server) => server,
            refusal @ (Verdict::Reject(_) | Verdict::Drop(_)) => {
                self.refuse_datagram(packet, &refusal);
                return None;
            }
        };
        if !self.is_served(&server, key.client) {
            self.discard(DropReason::PodTraffic);
            return None;
        }
        if let Err(reason) = self.admit() {
            self.refuse_datagram(packet, &Verdict::Reject(reason));
            return None;
        }
        let now = self.now;
        let mut tried = Tried::default();
        let most = self.config.connect_attempts;
        while let Some(mut connection) = tried.next(&server, key.client, most, now) {
            match self.datagram_socket(connection.real_server().address) {
                Ok(socket) => {
                    server.connected(key.client.ip(), &mut connection, now);
                    let id = self.insert(*key, server, Kind::Udp(UdpFlow::new(socket, now)));
                    return self.begin_udp(id, connection, tried.count());
                }
                Err(error) => {
                    tried.no_socket(&server, key.client, &connection, &error, &self.stats);
                }
            }
        }
        self.refuse_datagram(packet, &tried.refusal(&server));
        None
    }

    /// Watches the socket of a flow that was just taken in.
    fn begin_udp(&mut self, id: FlowId, connection: Connection, attempts: u32) -> Option<FlowId> {
        let timeout = self.shared.udp_timeout(&self.config);
        let flow = self.flows.get_mut(id)?;
        let udp = flow.begin_udp(connection, attempts)?;
        let (fd, deadline) = (udp.socket().as_raw_fd(), udp.deadline(timeout));
        let token = Token(id.to_token());
        let watched = self
            .poll
            .registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE);
        if watched.is_err() {
            self.finish(id, Ending::Fault);
            return None;
        }
        self.flows.arm(id, deadline);
        Some(id)
    }

    fn datagram_socket(&mut self, to: SocketAddr) -> io::Result<UdpSocket> {
        if self.shared.table.echo(to.ip()) == EchoVerdict::Answer {
            // A real server that is a virtual IP would lead back here for ever.
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        self.dialer.datagrams(to, self.now)
    }

    fn pass_to_real_server(&mut self, id: FlowId, packet: &IpPacket<'_>, payload: &[u8]) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Udp(udp) = &mut flow.kind else {
            return;
        };
        let (sent, came_back) = udp.send(payload, self.now);
        if let Some(error) = came_back {
            self.refuse(packet, unreachable_of(&error));
        }
        if let Err(error) = sent {
            if is_icmp(&error) {
                self.refuse(packet, unreachable_of(&error));
            } else {
                self.discard(DropReason::QueueFull);
            }
        }
        self.flows.notice_bytes(id);
    }

    fn refuse_datagram(&mut self, packet: &IpPacket<'_>, verdict: &Verdict) {
        match verdict {
            Verdict::Reject(reason) => {
                self.rejected(*reason);
                self.refuse(packet, Unreachable::Port);
            }
            Verdict::Drop(reason) => self.discard(*reason),
            Verdict::Forward(_) => {}
        }
    }

    /// The socket of a flow has something: datagrams, or an ICMP error.
    pub(super) fn udp_ready(&mut self, id: FlowId) {
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let (client, virtual_server) = (flow.key.client, flow.key.virtual_server);
            let received = if client.is_ipv4() {
                self.pass_from_real_server_v4(id)
            } else {
                self.pass_from_real_server_v6(id)
            };
            match received {
                Ok(()) => self.note_reply(id),
                Err(error) if is_icmp(&error) => {
                    self.tell_unreachable(id, client, virtual_server, unreachable_of(&error));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more, or an error that the next datagram meets again.
                Err(_) => return self.flows.notice_bytes(id),
            }
        }
        self.flows.notice_bytes(id);
        // The budget is spent, and epoll tells only of what is new.
        self.udp_again(id);
    }

    /// Has epoll report the socket once more if it still has something.
    fn udp_again(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Udp(udp) = &flow.kind else { return };
        let fd = udp.socket().as_raw_fd();
        let token = Token(id.to_token());
        if self
            .poll
            .registry()
            .reregister(&mut SourceFd(&fd), token, Interest::READABLE)
            .is_err()
        {
            self.finish(id, Ending::Fault);
        }
    }

    fn pass_from_real_server_v4(&mut self, id: FlowId) -> io::Result<()> {
        let (now, ident) = (self.now, (self.next_ident() >> 16) as u16);
        let Some(flow) = self.flows.get_mut(id) else {
            return Ok(());
        };
        let Kind::Udp(udp) = &mut flow.kind else {
            return Ok(());
        };
        let (from, to) = (flow.key.virtual_server, flow.key.client);
        self.sink
            .send_datagram_v4(from, to, ident, |room| udp.receive(room, now))?;
        Ok(())
    }

    /// Remembers that a flow has got its first reply.
    fn note_reply(&mut self, id: FlowId) {
        let udp = self.flows.get(id).and_then(|flow| flow.kind.udp());
        if !udp.is_some_and(UdpFlow::is_first_reply) {
            return;
        }
        while let Some(oldest) = self.answered.front()
            && self.flows.get(*oldest).is_none()
        {
            self.answered.pop_front();
        }
        self.answered.push_back(id);
    }

    /// Ends the UDP flow whose question was answered the longest ago, as conntrack drops
    /// entries early when its table is full (early_drop, net/netfilter/nf_conntrack_core.c).
    /// What has more to say stays.
    pub(super) fn make_room(&mut self) -> Result<(), RejectReason> {
        for _ in 0..LOOKS {
            let Some(id) = self.answered.pop_front() else {
                break;
            };
            let Some(Kind::Udp(udp)) = self.flows.get(id).map(|flow| &flow.kind) else {
                continue;
            };
            if udp.has_its_answer() {
                self.finish(id, Ending::Displaced);
                return Ok(());
            }
            if !udp.is_conversation() {
                self.answered.push_back(id);
            }
        }
        Err(RejectReason::FlowLimit)
    }

    fn pass_from_real_server_v6(&mut self, id: FlowId) -> io::Result<()> {
        let (now, ident) = (self.now, self.next_ident());
        let Some(flow) = self.flows.get_mut(id) else {
            return Ok(());
        };
        let Kind::Udp(udp) = &mut flow.kind else {
            return Ok(());
        };
        let (from, to) = (flow.key.virtual_server, flow.key.client);
        self.datagram.resize(MAX_UDP_PAYLOAD, 0);
        let len = udp.receive(&mut self.datagram, now)?;
        let sink = &mut self.sink;
        // Cannot fail: two IPv6 addresses and a payload that fits.
        let _ = udp_fragments_v6(
            from,
            to,
            &self.datagram[..len],
            ident,
            &mut self.scratch,
            |piece| {
                sink.send_whole(piece);
            },
        );
        Ok(())
    }

    /// Passes an ICMP error of the real server on, quoting the client's last datagram.
    fn tell_unreachable(
        &mut self,
        id: FlowId,
        client: SocketAddr,
        virtual_server: SocketAddr,
        what: Unreachable,
    ) {
        if !self
            .limiter
            .allow(self.now, client.ip(), OriginatedError::Icmp)
        {
            return self.discard(DropReason::RateLimited);
        }
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Kind::Udp(udp) = &flow.kind else { return };
        let made = udp_unreachable(
            client,
            virtual_server,
            udp.last_sent(),
            what,
            &mut self.scratch,
        );
        if made.is_ok() {
            self.sink.send_whole(&self.scratch);
        }
    }

    pub(super) fn udp_timer(&mut self, id: FlowId) {
        let timeout = self.shared.udp_timeout(&self.config);
        if self.flows.is_silent(id, timeout, self.now) {
            self.finish(id, Ending::Idle);
        }
    }
}
