//! Probes of a client that has nothing to say, or has lost what we said.
//!
//! smoltcp 0.14 has keep-alive probes of its own, and they are off: its probe is a
//! byte of its own making at the place of the last one sent, and when that one has
//! been lost the client reads the probe as data. Ours are as Linux's
//! (tcp_xmit_probe_skb, net/ipv4/tcp_output.c): without data, one before the first
//! number that is not acknowledged.
//!
//! The same probe gets a stack going again that waits for ever. smoltcp 0.14 can
//! lose its retransmission timer while something is out: when a window that shuts
//! acknowledges only a part of it, when the timer fires while the window is shut, and
//! when three repeated acknowledgments come while only FIN is out. The answer to a
//! probe tells the window, and the third one makes smoltcp repeat its data; a FIN
//! that it has given up is repeated here.

use std::time::{Duration, Instant};

use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::device::{Outgoing, Transmit, checksums};
use super::endpoint::{TcpEndpoint, TcpState};

/// Time between two probes of a stack that waits for ever. A Linux client answers no
/// more than two in a second (net.ipv4.tcp_invalid_ratelimit).
const STALLED: Duration = Duration::from_secs(1);

/// Hop limit as smoltcp's own packets have it.
const HOP_LIMIT: u8 = 64;

impl TcpEndpoint {
    /// When the client has to be probed, provided that the stack waits for nothing
    /// but the client.
    #[inline]
    pub(super) fn probe_at(&self, keep_alive: Duration, now: Instant) -> Option<Instant> {
        let heard_at = self.heard_at?;
        let acknowledged = match self.state() {
            TcpState::Established | TcpState::CloseWait | TcpState::FinWait2 => {
                self.send_queue() == 0
            }
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => false,
            TcpState::Closed
            | TcpState::Listen
            | TcpState::SynSent
            | TcpState::SynReceived
            | TcpState::TimeWait => return None,
        };
        Some(if acknowledged {
            heard_at.max(self.probed_at.unwrap_or(heard_at)) + keep_alive
        } else {
            self.probed_at.map_or(now, |at| at + STALLED)
        })
    }

    /// Cheaper than to ask the stack whether it waits.
    #[inline]
    pub(super) fn may_probe(&self, keep_alive: Duration, now: Instant) -> bool {
        self.probe_at(keep_alive, now).is_some_and(|at| now >= at)
    }

    /// Sends the probe.
    pub(super) fn probe(&mut self, now: Instant, out: &mut impl Transmit) {
        self.probed_at = Some(now);
        let socket = self.socket();
        let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint())
        else {
            return;
        };
        let Some(sent) = self.last_sent else { return };
        let finish = self.finish_end.filter(|_| self.send_queue() == 0);
        let (control, sequence) = match (self.state(), finish) {
            (TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck, Some(end)) => {
                (TcpControl::Fin, end.wrapping_sub(1))
            }
            _ => (TcpControl::None, self.acknowledged().wrapping_sub(1)),
        };
        let window = (self.rings().receive - self.receive_queue()) >> self.window_scale;
        let repr = TcpRepr {
            src_port: local.port,
            dst_port: remote.port,
            control,
            seq_number: TcpSeqNumber(sequence as i32),
            ack_number: Some(TcpSeqNumber(sent.acknowledgement as i32)),
            window_len: u16::try_from(window).unwrap_or(u16::MAX),
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let ip = IpRepr::new(
            local.addr,
            remote.addr,
            IpProtocol::Tcp,
            repr.buffer_len(),
            HOP_LIMIT,
        );
        let how = Outgoing::WHOLE;
        out.transmit(ip.buffer_len(), how, |packet| {
            let checksums = checksums();
            ip.emit(&mut *packet, &checksums);
            let mut tcp = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
            repr.emit(&mut tcp, &local.addr, &remote.addr, &checksums);
        });
    }

    /// The first sequence number that is not acknowledged: SND.UNA, while FIN is not
    /// acknowledged either.
    pub(super) fn acknowledged(&self) -> u32 {
        let bytes = self.filled - self.send_queue() as u64;
        let finish = u32::from(self.state() == TcpState::FinWait2);
        self.our_initial_sequence
            .wrapping_add(1)
            .wrapping_add(bytes as u32)
            .wrapping_add(finish)
    }
}
