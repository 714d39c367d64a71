//! Reading the sequence numbers of packets that pass between the stack and the client.

use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::device::{Outgoing, Transmit};

/// What the packets of one poll said.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The sequence number behind the last of them.
    pub(super) sequence_end: u32,
    /// What the last of them acknowledged.
    pub(super) acknowledgement: u32,
    /// One of them carries FIN.
    pub(super) finishes: bool,
    /// Acknowledgment number and window of the last that smoltcp counts as having
    /// told its window.
    pub(super) told: Option<(u32, u16)>,
    /// Our initial sequence number and the window scale, from the SYN-ACK.
    pub(super) opens: Option<(u32, u8)>,
}

impl Seen {
    fn and_then(self, next: Self) -> Self {
        Self {
            sequence_end: if behind(next.sequence_end, self.sequence_end) {
                self.sequence_end
            } else {
                next.sequence_end
            },
            acknowledgement: next.acknowledgement,
            finishes: self.finishes || next.finishes,
            told: next.told.or(self.told),
            opens: next.opens.or(self.opens),
        }
    }

    /// `None` for a reset, whose numbers are the client's own.
    #[inline]
    fn read(packet: &[u8]) -> Option<Self> {
        // smoltcp writes neither IPv4 options nor IPv6 extension headers before TCP.
        let tcp = match packet.first()? >> 4 {
            4 => packet.get(20..)?,
            _ => packet.get(40..)?,
        };
        let tcp = TcpPacket::new_checked(tcp).ok()?;
        if tcp.rst() {
            return None;
        }
        let acknowledgement = tcp.ack_number().0 as u32;
        // smoltcp does not write down the window of keep-alive and zero-window
        // probes, which are the segments of one byte at most.
        Some(Self {
            sequence_end: (tcp.seq_number().0 as u32).wrapping_add(tcp.segment_len() as u32),
            acknowledgement,
            finishes: tcp.fin(),
            told: (tcp.payload().len() != 1).then(|| (acknowledgement, tcp.window_len())),
            opens: if tcp.syn() {
                let scale = tcp.options_summary().ok()?.window_scale;
                Some((tcp.seq_number().0 as u32, scale.unwrap_or(0)))
            } else {
                None
            },
        })
    }
}

/// Looks at what passes.
pub(super) struct Observed<'a, T: Transmit> {
    out: &'a mut T,
    pub(super) seen: Option<Seen>,
}

impl<'a, T: Transmit> Observed<'a, T> {
    pub(super) fn new(out: &'a mut T) -> Self {
        Self { out, seen: None }
    }
}

impl<T: Transmit> Transmit for Observed<'_, T> {
    #[inline]
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let seen = &mut self.seen;
        self.out.transmit(len, how, |packet| {
            let result = fill(packet);
            if let Some(next) = Seen::read(packet) {
                *seen = Some(seen.map_or(next, |before| before.and_then(next)));
            }
            result
        })
    }
}

/// True when `number` comes before `other` (serial numbers, RFC 1982 section 3.2).
#[inline]
pub(super) fn behind(number: u32, other: u32) -> bool {
    (number.wrapping_sub(other) as i32) < 0
}

/// Where TCP is in a packet of the client.
fn segment(packet: &[u8]) -> Option<Range<usize>> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            Some(usize::from(ip.header_len())..usize::from(ip.total_len()))
        }
        _ => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            (ip.next_header() == IpProtocol::Tcp).then_some(40..ip.total_len())
        }
    }
}

/// What a client's SYN says of itself: the largest segment that it takes, as smoltcp
/// reads it, and the scale of its windows.
pub(super) fn client_limits(syn: &[u8]) -> Option<(usize, u8)> {
    let (_, tcp) = read(syn)?;
    let options = tcp.options_summary().ok()?;
    // RFC 9293 section 3.7.1: 536 without the option; 0 is as good as none.
    let size = options.max_segment_size.filter(|size| *size > 0);
    let scale = options.window_scale.unwrap_or(0).min(14);
    Some((usize::from(size.unwrap_or(536)), scale))
}

/// Acknowledgment number and window of a segment that says nothing else.
pub(super) fn bare_acknowledgement(packet: &[u8]) -> Option<(u32, u16)> {
    let (_, tcp) = read(packet)?;
    let bare = tcp.ack() && tcp.segment_len() == 0 && !tcp.rst();
    bare.then(|| (tcp.ack_number().0 as u32, tcp.window_len()))
}

/// The packet without FIN. `None` if it carries none. The checksum is not mended.
pub(super) fn without_finish(packet: &[u8]) -> Option<Vec<u8>> {
    let (place, tcp) = read(packet)?;
    tcp.fin()
        .then(|| changed(packet, place, |tcp| tcp.set_fin(false)))?
}

/// The packet with a window of 1, if it acknowledges `number` and tells a window of 0.
/// The checksum is not mended.
pub(super) fn with_window(packet: &[u8], number: u32) -> Option<Vec<u8>> {
    let (place, tcp) = read(packet)?;
    let shut = tcp.ack() && tcp.ack_number().0 as u32 == number && tcp.window_len() == 0;
    shut.then(|| changed(packet, place, |tcp| tcp.set_window_len(1)))?
}

fn read(packet: &[u8]) -> Option<(Range<usize>, TcpPacket<&[u8]>)> {
    let place = segment(packet)?;
    let tcp = TcpPacket::new_checked(packet.get(place.clone())?).ok()?;
    Some((place, tcp))
}

fn changed(
    packet: &[u8],
    place: Range<usize>,
    change: impl FnOnce(&mut TcpPacket<&mut [u8]>),
) -> Option<Vec<u8>> {
    let mut copy = packet.to_vec();
    change(&mut TcpPacket::new_checked(copy.get_mut(place)?).ok()?);
    Some(copy)
}
