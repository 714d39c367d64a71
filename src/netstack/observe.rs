//! Reading the sequence numbers of packets that pass between the stack and the client.

use smoltcp::wire::TcpPacket;

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
