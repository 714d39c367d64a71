//! Packets on their way into the TUN.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smoltcp::wire::IpVersion;

use super::stats::WorkerStats;
use crate::netstack::{Outgoing, Transmit};
use crate::packet::{
    ChecksumMode, IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN, protocol, pseudo_header_sum,
    udp_header,
};
use crate::tun::{FrameWriter, MAX_FRAME_LEN, Queue, Refused, VNET_HEADER_LEN, VnetHeader};

/// Bytes of a TCP header's checksum field from its start (RFC 9293 section 3.1).
const TCP_CHECKSUM_AT: usize = 16;

/// Bytes of a TCP header without options (RFC 9293 section 3.1).
const TCP_HEADER_LEN: usize = 20;

/// Builds each packet in place, behind its virtio-net header, and sends it.
#[derive(Debug)]
pub(super) struct TunSink {
    frames: FrameWriter,
    stats: Arc<WorkerStats>,
    complained: bool,
}

impl TunSink {
    pub(super) fn new(queue: Arc<Queue>, stats: Arc<WorkerStats>) -> Self {
        Self {
            frames: FrameWriter::new(queue),
            stats,
            complained: false,
        }
    }

    /// Sends a packet whose checksums are complete.
    pub(super) fn send_whole(&mut self, packet: &[u8]) {
        let end = VNET_HEADER_LEN + packet.len();
        if end > MAX_FRAME_LEN {
            return;
        }
        let room = self.frames.room(end);
        room[VNET_HEADER_LEN..].copy_from_slice(packet);
        put_header(room, VnetHeader::none());
        self.send(end);
    }

    /// Sends one IPv4 UDP datagram to a client; `receive` puts its payload into the
    /// room it is lent, straight from the real server's socket.
    pub(super) fn send_datagram_v4<E>(
        &mut self,
        virtual_server: SocketAddr,
        client: SocketAddr,
        ident: u16,
        receive: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let start = VNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN;
        let room = self.frames.room(MAX_FRAME_LEN);
        let len = receive(&mut room[start..])?;
        let header = &mut room[VNET_HEADER_LEN..start];
        if udp_header(
            virtual_server,
            client,
            len,
            ident,
            ChecksumMode::Partial,
            header,
        )
        .is_ok()
        {
            put_header(room, VnetHeader::udp_checksum(IPV4_HEADER_LEN as u16));
            self.send(start + len);
        }
        Ok(len)
    }

    /// Sends what waits for more. Nothing may be left waiting when the worker does.
    #[inline]
    pub(super) fn flush(&mut self) {
        let outcome = self.frames.flush();
        self.account(outcome);
    }

    #[inline]
    fn send(&mut self, len: usize) {
        let outcome = self.frames.send(len);
        self.account(outcome);
    }

    #[inline]
    fn account(&mut self, outcome: Result<(), Refused>) {
        if let Err(Refused { frames, error }) = outcome {
            self.stats.tun_errors.fetch_add(frames, Ordering::Relaxed);
            if !self.complained {
                self.complained = true;
                tracing::warn!(%error, frames, "the TUN did not take a packet");
            }
        }
    }
}

impl Transmit for TunSink {
    #[inline]
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let end = VNET_HEADER_LEN + len;
        let room = self.frames.room(end);
        let packet = &mut room[VNET_HEADER_LEN..];
        let result = fill(packet);
        let header = finish_tcp(packet, how);
        put_header(room, header);
        self.send(end);
        result
    }
}

#[inline]
fn put_header(frame: &mut [u8], header: VnetHeader) {
    if let Some(room) = frame.first_chunk_mut() {
        header.write(room);
    }
}

/// Leaves the TCP checksum of a packet that smoltcp wrote to the kernel: its field
/// gets the sum over the pseudo-header, as NEEDS_CSUM wants it.
#[inline]
pub(super) fn finish_tcp(packet: &mut [u8], how: Outgoing) -> VnetHeader {
    let v4 = packet[0] >> 4 == 4;
    let ip_len = if v4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    let (source, destination) = addresses(packet, v4);
    let tcp_len = packet.len() - ip_len;
    let sum = pseudo_header_sum(source, destination, protocol::TCP, tcp_len as u32);
    packet[ip_len + TCP_CHECKSUM_AT..][..2].copy_from_slice(&sum.to_be_bytes());
    let start = ip_len as u16;
    let Some(size) = how.segment_size else {
        return VnetHeader::tcp_checksum(start);
    };
    let tcp_header = usize::from(packet[ip_len + 12] >> 4) * 4;
    let options = if how.with_options {
        tcp_header.saturating_sub(TCP_HEADER_LEN) as u16
    } else {
        0
    };
    let size = size.saturating_sub(options).max(1);
    let version = if v4 { IpVersion::Ipv4 } else { IpVersion::Ipv6 };
    VnetHeader::tcp_segments(version, (ip_len + tcp_header) as u16, size, start)
}

fn addresses(packet: &[u8], v4: bool) -> (IpAddr, IpAddr) {
    if v4 {
        let at = |at: usize| {
            let bytes: [u8; 4] = packet[at..at + 4].try_into().unwrap_or_default();
            IpAddr::from(bytes)
        };
        (at(12), at(16))
    } else {
        let at = |at: usize| {
            let bytes: [u8; 16] = packet[at..at + 16].try_into().unwrap_or_default();
            IpAddr::from(bytes)
        };
        (at(8), at(24))
    }
}

#[cfg(test)]
mod tests;
