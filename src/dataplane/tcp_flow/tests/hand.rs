//! A client whose segments are written one by one.

use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::proxy::{Proxy, Seen};
use super::server::Server;
use super::world::Setup;
use super::{DOWN, Ends, UP};
use crate::dataplane::testing::{check, fill};
use crate::netstack::TcpState;
use crate::packet::{IpPacket, TcpSegment};

/// The client's initial sequence number: the stream's 10,000th byte wraps.
pub(super) const ISN: u32 = u32::MAX - 10_000;

/// A segment to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) control: TcpControl,
    pub(super) sequence: u32,
    pub(super) acknowledgement: Option<u32>,
    pub(super) window: u16,
    /// Bytes of the stream, which the sequence number tells.
    pub(super) len: usize,
}

/// A client that does nothing by itself.
pub(super) struct Hand {
    pub(super) now: Instant,
    pub(super) proxy: Proxy,
    pub(super) server: Server,
    ends: Ends,
    /// The MSS in its SYN.
    largest: u16,
    /// The flow's initial sequence number.
    pub(super) theirs: u32,
    /// Everything the flow has sent so far.
    pub(super) heard: Vec<Seen>,
}

impl Hand {
    /// Nothing has happened yet.
    pub(super) fn new(setup: Setup) -> Self {
        let now = Instant::now();
        let mut proxy = Proxy::new(setup.rings, setup.timeouts, now);
        let (server, socket) = Server::new(setup.socket.0, setup.socket.1);
        proxy.dialled = Some(socket);
        Self {
            now,
            proxy,
            server,
            ends: setup.ends,
            largest: 1_410,
            theirs: 0,
            heard: Vec::new(),
        }
    }

    /// The flow has been sent a SYN and has answered.
    pub(super) fn half_open(setup: Setup) -> Self {
        Self::half_open_with(setup, 1_410)
    }

    /// As above, with this MSS.
    pub(super) fn half_open_with(setup: Setup, largest: u16) -> Self {
        let mut hand = Self::new(setup);
        hand.largest = largest;
        let answer = hand.say(Segment {
            control: TcpControl::Syn,
            sequence: ISN,
            acknowledgement: None,
            window: 65_535,
            len: 0,
        });
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0].acknowledgement, ISN.wrapping_add(1));
        hand.theirs = answer[0].sequence;
        hand
    }

    /// The connection is open; what is said has told nothing but the handshake.
    pub(super) fn established(setup: Setup) -> Self {
        let mut hand = Self::half_open(setup);
        assert_eq!(hand.say(hand.ack(0, 0)), []);
        assert_eq!(hand.proxy.state(), Some(TcpState::Established));
        hand
    }

    /// An acknowledgment: `sent` and `got` bytes of the streams so far.
    pub(super) fn ack(&self, sent: u32, got: u32) -> Segment {
        Segment {
            control: TcpControl::None,
            sequence: ISN.wrapping_add(1).wrapping_add(sent),
            acknowledgement: Some(self.theirs.wrapping_add(1).wrapping_add(got)),
            window: 65_535,
            len: 0,
        }
    }

    /// `len` bytes of data from place `sent` on.
    pub(super) fn data(&self, sent: u32, len: usize, got: u32) -> Segment {
        Segment {
            len,
            control: TcpControl::Psh,
            ..self.ack(sent, got)
        }
    }

    /// FIN behind `sent` bytes.
    pub(super) fn fin(&self, sent: u32, got: u32) -> Segment {
        Segment {
            control: TcpControl::Fin,
            ..self.ack(sent, got)
        }
    }

    /// RST behind `sent` bytes.
    pub(super) fn rst(&self, sent: u32) -> Segment {
        Segment {
            control: TcpControl::Rst,
            ..self.ack(sent, 0)
        }
    }

    /// Sends a segment; what comes back at once.
    pub(super) fn say(&mut self, segment: Segment) -> Vec<Seen> {
        let packet = self.packet(segment);
        self.proxy.packet(self.now, &packet);
        self.settle()
    }

    /// Lets time pass from timer to timer; what the flow says in it.
    pub(super) fn wait(&mut self, span: Duration) -> Vec<Seen> {
        let end = self.now + span;
        let mut said = self.settle();
        while let Some(at) = self.next().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            said.extend(self.settle());
        }
        self.now = end;
        said.extend(self.settle());
        said
    }

    /// Lets everything happen that can happen now.
    pub(super) fn settle(&mut self) -> Vec<Seen> {
        for rounds in 0.. {
            assert!(rounds < 10_000, "there is something to do for ever");
            let mut busy = false;
            if let Some(edges) = self.server.edges() {
                self.proxy.ready(edges);
                busy = true;
            }
            busy |= self.proxy.step(self.now);
            busy |= self.server.step(self.now);
            if !busy {
                break;
            }
        }
        let packets = std::mem::take(&mut self.proxy.wire.packets);
        packets.iter().for_each(|packet| self.verify(packet));
        let said: Vec<Seen> = packets.iter().map(|packet| Seen::read(packet)).collect();
        self.heard.extend(&said);
        said
    }

    /// Whatever data the flow sends is the real server's, at its place.
    fn verify(&self, packet: &[u8]) {
        let packet = IpPacket::parse(packet).unwrap();
        let segment = TcpSegment::parse(&packet).unwrap();
        if !segment.payload.is_empty() {
            let place = segment.seq.wrapping_sub(self.theirs).wrapping_sub(1);
            check(DOWN, place.into(), segment.payload);
        }
    }

    /// The segment as an IP packet.
    pub(super) fn packet(&self, segment: Segment) -> Vec<u8> {
        let mut payload = vec![0; segment.len];
        let place = segment.sequence.wrapping_sub(ISN.wrapping_add(1));
        fill(UP, u64::from(place), &mut payload);
        let repr = TcpRepr {
            control: segment.control,
            seq_number: TcpSeqNumber(segment.sequence as i32),
            ack_number: segment.acknowledgement.map(|ack| TcpSeqNumber(ack as i32)),
            window_len: segment.window,
            payload: &payload,
            ..opening((segment.control == TcpControl::Syn).then_some(self.largest))
        };
        packet(self.ends, repr)
    }

    fn next(&self) -> Option<Instant> {
        self.proxy.armed.into_iter().chain(self.server.next()).min()
    }
}

/// The options of a segment; of a SYN with this MSS.
fn opening(largest: Option<u16>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: 0,
        dst_port: 0,
        control: TcpControl::None,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: 0,
        window_scale: largest.map(|_| 0),
        max_seg_size: largest,
        sack_permitted: largest.is_some(),
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// A segment from the client as an IP packet, checksums and all.
fn packet(ends: Ends, mut repr: TcpRepr<'_>) -> Vec<u8> {
    repr.src_port = ends.client.port();
    repr.dst_port = ends.virtual_server.port();
    let source = IpAddress::from(ends.client.ip());
    let destination = IpAddress::from(ends.virtual_server.ip());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, repr.buffer_len(), 64);
    let mut packet = vec![0; ip.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut packet, &checksums);
    let head = ip.header_len();
    let mut tcp = TcpPacket::new_unchecked(&mut packet[head..]);
    repr.emit(&mut tcp, &source, &destination, &checksums);
    packet
}

/// A bare acknowledgment, or FIN, from a client.
pub(super) fn bare(ends: Ends, control: TcpControl, like: &Seen, sequence: u32) -> Vec<u8> {
    let repr = TcpRepr {
        control,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: Some(TcpSeqNumber(like.acknowledgement as i32)),
        window_len: like.window,
        ..opening(None)
    };
    packet(ends, repr)
}
