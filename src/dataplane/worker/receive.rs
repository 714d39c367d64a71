//! From a frame of the queue to the flow it belongs to.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::Worker;
use crate::dataplane::flow_table::FlowKey;
use crate::dataplane::shared::Message;
use crate::dataplane::stats::add;
use crate::ipvs::{DropReason, EchoVerdict, RejectReason, Verdict, VirtualAddress, VirtualServer};
use crate::packet::{
    FragmentOutcome, IPV6_MINIMUM_MTU, IpPacket, OriginatedError, TcpSegment, UdpDatagram,
    Unreachable, echo_reply, fragment_v6, protocol, tcp_reset, transport_checksum_ok, unreachable,
};
use crate::tun::{ChecksumState, Gso, VNET_HEADER_LEN, VnetHeader};

/// SCTP's protocol number (IANA).
const SCTP: u8 = 132;

/// A packet that was read, and what the device said about it.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) packet: IpPacket<'a>,
    /// Payload of each datagram of a super-packet; 0 for an ordinary packet.
    pub(super) datagram_size: usize,
    /// It was handed over by another worker, and is not to be passed on again.
    own: bool,
    frame: &'a [u8],
}

impl Arrival<'_> {
    /// The packet with its virtio-net header.
    pub(super) fn frame(&self) -> &[u8] {
        self.frame
    }

    /// It was handed over by another worker or process.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }
}

impl Worker {
    /// Takes one frame: virtio-net header and packet.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        self.classify(frame, false);
    }

    /// Takes a frame that another worker or process handed over.
    pub(super) fn receive_own(&mut self, frame: &[u8]) {
        self.classify(frame, true);
    }

    fn classify(&mut self, frame: &[u8], own: bool) {
        let Some((header, bytes)) = frame.split_first_chunk::<VNET_HEADER_LEN>() else {
            return self.discard(DropReason::Malformed);
        };
        let (Ok(header), Ok(packet)) = (VnetHeader::parse(header), IpPacket::parse(bytes)) else {
            return self.discard(DropReason::Malformed);
        };
        if packet.fragment.is_some() {
            return self.fragment(&packet);
        }
        match header.checksum_state(bytes.len()) {
            Ok(ChecksumState::Partial { .. } | ChecksumState::Valid) => {}
            Ok(ChecksumState::MustVerify) => {
                if carries_checksum(packet.protocol) && !transport_checksum_ok(&packet) {
                    return self.discard(DropReason::BadChecksum);
                }
            }
            Err(_) => return self.discard(DropReason::Malformed),
        }
        let datagrams = header.gso == Gso::UdpDatagrams;
        let datagram_size = if datagrams {
            usize::from(header.gso_size)
        } else {
            0
        };
        self.packet(Arrival {
            packet,
            datagram_size,
            own,
            frame,
        });
    }

    fn packet(&mut self, arrival: Arrival<'_>) {
        let packet = &arrival.packet;
        match packet.protocol {
            protocol::TCP => match TcpSegment::parse(packet) {
                Ok(segment) => self.tcp(&arrival, &segment),
                Err(_) => self.discard(DropReason::Malformed),
            },
            protocol::UDP => match UdpDatagram::parse(packet) {
                Ok(datagram) => self.udp(&arrival, &datagram),
                Err(_) => self.discard(DropReason::Malformed),
            },
            protocol::ICMP | protocol::ICMPV6 => self.echo(packet),
            SCTP => self.discard(DropReason::Sctp),
            _ => self.discard(DropReason::UnsupportedProtocol),
        }
    }

    fn fragment(&mut self, packet: &IpPacket<'_>) {
        match self.fragments.insert(self.now, packet) {
            FragmentOutcome::Pending => {}
            FragmentOutcome::Complete(whole) => {
                // A header of zeros: an ordinary packet whose checksum nobody has verified.
                let mut frame = vec![0; VNET_HEADER_LEN];
                frame.extend_from_slice(&whole);
                self.classify(&frame, false);
            }
            FragmentOutcome::Dropped(_) => self.discard(DropReason::Fragment),
        }
    }

    fn echo(&mut self, packet: &IpPacket<'_>) {
        match self.shared.table.echo(packet.destination) {
            EchoVerdict::Answer => {}
            EchoVerdict::Drop(reason) => return self.discard(reason),
        }
        if !self.config.answer_ping {
            return self.discard(DropReason::PingDisabled);
        }
        let mut reply = std::mem::take(&mut self.scratch);
        // Not an echo request: an answer to nothing of ours.
        match echo_reply(packet, &mut reply) {
            Ok(()) => self.send_whole(&reply),
            Err(_) => self.discard(DropReason::UnsupportedProtocol),
        }
        self.scratch = reply;
    }

    /// Sends a packet that is complete, in fragments where IPv6 wants it so.
    fn send_whole(&mut self, bytes: &[u8]) {
        if let Ok(packet) = IpPacket::parse(bytes)
            && !packet.is_ipv4()
            && bytes.len() > IPV6_MINIMUM_MTU
        {
            let ident = self.next_ident();
            let sink = &mut self.sink;
            let mut cut = Vec::new();
            // Fails only for extension headers, which we do not write.
            let _ = fragment_v6(&packet, ident, &mut cut, |piece| sink.send_whole(piece));
        } else {
            self.sink.send_whole(bytes);
        }
    }

    pub(super) fn next_ident(&mut self) -> u32 {
        // A step that is odd visits every value; a secret start makes it hard to guess.
        self.ident = self.ident.wrapping_add(0x9e37_79b1);
        self.ident
    }

    /// Answers a TCP segment with RST.
    pub(super) fn refuse_tcp(&mut self, packet: &IpPacket<'_>) {
        if !self
            .limiter
            .allow(self.now, packet.source, OriginatedError::Rst)
        {
            return self.discard(DropReason::RateLimited);
        }
        let mut reply = std::mem::take(&mut self.scratch);
        // An RST is never answered with RST.
        if tcp_reset(packet, &mut reply).is_ok() {
            self.sink.send_whole(&reply);
        }
        self.scratch = reply;
    }

    /// Answers a packet with an ICMP error.
    pub(super) fn refuse(&mut self, packet: &IpPacket<'_>, what: Unreachable) {
        if !self
            .limiter
            .allow(self.now, packet.source, OriginatedError::Icmp)
        {
            return self.discard(DropReason::RateLimited);
        }
        let mut reply = std::mem::take(&mut self.scratch);
        // Some packets are never answered with an error.
        if unreachable(packet, what, &mut reply).is_ok() {
            self.sink.send_whole(&reply);
        }
        self.scratch = reply;
    }

    /// What becomes of a new flow. Whether the client is this node is looked up
    /// only where the table asks.
    pub(super) fn verdict(&mut self, address: VirtualAddress, client: SocketAddr) -> Verdict {
        let (local, now) = (&mut self.local, self.now);
        let is_node = || local.contains(client.ip(), now);
        self.shared.table.verdict(address, client.ip(), is_node)
    }

    /// Whether a client may use this virtual server, as far as it is a pod.
    pub(super) fn is_served(&mut self, server: &VirtualServer, client: SocketAddr) -> bool {
        self.shared.pod_traffic.load(Ordering::Relaxed)
            || self.local.contains(client.ip(), self.now)
            || !self
                .shared
                .table
                .counts_as_pod(client.ip(), server.exposure)
    }

    /// True when another worker or process has the flow and was given the packet.
    pub(super) fn pass_on(&mut self, arrival: &Arrival<'_>, key: &FlowKey) -> bool {
        self.pass_to_worker(arrival, key)
            || (self.links.is_some() && self.pass_to_process(arrival, key))
    }

    fn pass_to_worker(&mut self, arrival: &Arrival<'_>, key: &FlowKey) -> bool {
        let Some(owners) = &self.shared.owners else {
            return false;
        };
        if arrival.own {
            return false;
        }
        let Some(owner) = owners.of.get(key).map(|owner| *owner) else {
            return false;
        };
        if owner == self.index {
            return false;
        }
        let (mailbox, waker) = &owners.mailboxes[owner];
        let sent = mailbox.try_send(Message::Packet(arrival.frame.to_vec()));
        if sent.is_err() || waker.wake().is_err() {
            self.discard(DropReason::QueueFull);
        } else {
            add(&self.stats.handed_over);
        }
        true
    }

    pub(super) fn discard(&mut self, reason: DropReason) {
        tracing::trace!(reason = reason.as_str(), "dropped a packet");
        self.stats.dropped(reason);
    }

    pub(super) fn rejected(&mut self, reason: RejectReason) {
        tracing::trace!(reason = reason.as_str(), "refused a flow");
        self.stats.reject(reason);
    }
}

fn carries_checksum(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6
    )
}
