//! Segments of the client that smoltcp 0.14 must not see as they are.

use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::endpoint::{TcpEndpoint, TcpState};
use super::observe::behind;

/// What the stack sees of a packet.
pub(super) enum Mended {
    AsItIs,
    Changed(Vec<u8>),
    Withheld,
}

impl TcpEndpoint {
    /// What the stack must see of a packet whose data ends before `sequence_end`.
    #[inline]
    pub(super) fn mended(&mut self, packet: &[u8], sequence_end: u32) -> Mended {
        let waiting = self.send_queue().min(self.client_segment);
        if waiting > 0 && self.overreaches(packet, waiting) {
            return self.disguised(packet);
        }
        let beyond = self.window_end.is_some_and(|end| behind(end, sequence_end));
        let cut = beyond.then(|| without_finish(packet)).flatten();
        let opened = match (self.state(), self.finish_end) {
            (TcpState::FinWait1, Some(end)) => with_window(cut.as_deref().unwrap_or(packet), end),
            _ => None,
        };
        opened.or(cut).map_or(Mended::AsItIs, Mended::Changed)
    }

    /// After three repeated acknowledgments smoltcp sends a whole segment, however
    /// small the client's window is. With the segments of a client of this node, up to
    /// 64 KiB, all that we send afterwards lies beyond the window, and the client does
    /// not even look at our acknowledgments. True for such a repetition.
    fn overreaches(&mut self, packet: &[u8], waiting: usize) -> bool {
        let Some((_, window)) = bare_acknowledgement(packet) else {
            return false;
        };
        let small = usize::from(window) << self.client_scale < waiting;
        self.client_window.replace(window) == Some(window) && small
    }

    /// A repeated acknowledgment that the stack takes for news of the window. One of a
    /// shut window says nothing when it acknowledges nothing.
    fn disguised(&mut self, packet: &[u8]) -> Mended {
        let Some((number, window)) = bare_acknowledgement(packet) else {
            return Mended::AsItIs;
        };
        let Some(less) = window.checked_sub(1) else {
            return if number == self.acknowledged() {
                Mended::Withheld
            } else {
                Mended::AsItIs
            };
        };
        self.client_window = Some(less);
        with(packet, |tcp| tcp.set_window_len(less)).map_or(Mended::AsItIs, Mended::Changed)
    }
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
fn bare_acknowledgement(packet: &[u8]) -> Option<(u32, u16)> {
    let (_, tcp) = read(packet)?;
    let bare = tcp.ack() && tcp.segment_len() == 0 && !tcp.rst();
    bare.then(|| (tcp.ack_number().0 as u32, tcp.window_len()))
}

/// The packet without FIN, if it carries one. smoltcp cuts the data of a segment that
/// reaches beyond the window and believes its FIN nevertheless: the bytes between would
/// be lost without a word. The client will repeat the FIN.
fn without_finish(packet: &[u8]) -> Option<Vec<u8>> {
    let (_, tcp) = read(packet)?;
    tcp.fin().then(|| with(packet, |tcp| tcp.set_fin(false)))?
}

/// The packet with a window of 1, if it acknowledges our FIN, whose end is `number`,
/// and tells a window of 0. That would leave smoltcp's timer of window probes running
/// in FIN_WAIT_2, where it is never set again: once it has fired there is a packet to
/// send for ever. No window matters any more.
fn with_window(packet: &[u8], number: u32) -> Option<Vec<u8>> {
    let (_, tcp) = read(packet)?;
    let shut = tcp.ack() && tcp.ack_number().0 as u32 == number && tcp.window_len() == 0;
    shut.then(|| with(packet, |tcp| tcp.set_window_len(1)))?
}

fn read(packet: &[u8]) -> Option<(Range<usize>, TcpPacket<&[u8]>)> {
    let place = segment(packet)?;
    let tcp = TcpPacket::new_checked(packet.get(place.clone())?).ok()?;
    Some((place, tcp))
}

/// The packet with a change in its TCP header; the checksum is not mended.
fn with(packet: &[u8], change: impl FnOnce(&mut TcpPacket<&mut [u8]>)) -> Option<Vec<u8>> {
    let place = segment(packet)?;
    let mut copy = packet.to_vec();
    change(&mut TcpPacket::new_checked(copy.get_mut(place)?).ok()?);
    Some(copy)
}
