//! Packets on their way into the TUN.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smoltcp::wire::IpVersion;

use super::stats::{WorkerStats, add};
use crate::netstack::{Outgoing, Transmit};
use crate::packet::{
    ChecksumMode, IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN, protocol, pseudo_header_sum,
    udp_header,
};
use crate::tun::{Queue, VNET_HEADER_LEN, VnetHeader};

/// The largest IPv4 packet, and more than any packet that is built in place.
const MAX_PACKET: usize = 65_535;

/// Bytes of a TCP header's checksum field from its start (RFC 9293 section 3.1).
const TCP_CHECKSUM_AT: usize = 16;

/// Bytes of a TCP header without options (RFC 9293 section 3.1).
const TCP_HEADER_LEN: usize = 20;

/// Builds each packet in one buffer behind its virtio-net header and writes it.
#[derive(Debug)]
pub(super) struct TunSink {
    queue: Arc<Queue>,
    frame: Box<[u8]>,
    stats: Arc<WorkerStats>,
    complained: bool,
}

impl TunSink {
    pub(super) fn new(queue: Arc<Queue>, stats: Arc<WorkerStats>) -> Self {
        let frame = vec![0; VNET_HEADER_LEN + MAX_PACKET].into_boxed_slice();
        Self {
            queue,
            frame,
            stats,
            complained: false,
        }
    }

    /// Sends a packet whose checksums are complete.
    pub(super) fn send_whole(&mut self, packet: &[u8]) {
        let end = VNET_HEADER_LEN + packet.len();
        let Some(room) = self.frame.get_mut(VNET_HEADER_LEN..end) else {
            return;
        };
        room.copy_from_slice(packet);
        self.write(VnetHeader::none(), end);
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
        let len = receive(&mut self.frame[start..])?;
        let header = &mut self.frame[VNET_HEADER_LEN..start];
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
            self.write(
                VnetHeader::udp_checksum(IPV4_HEADER_LEN as u16),
                start + len,
            );
        }
        Ok(len)
    }

    fn write(&mut self, header: VnetHeader, end: usize) {
        if let Some(room) = self.frame.first_chunk_mut() {
            header.write(room);
        }
        if let Err(error) = self.queue.write(&self.frame[..end]) {
            add(&self.stats.tun_errors);
            if !self.complained {
                self.complained = true;
                tracing::warn!(%error, ?header, bytes = end, "the TUN did not take a packet");
            }
        }
    }
}

impl Transmit for TunSink {
    #[inline]
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let end = VNET_HEADER_LEN + len;
        let packet = &mut self.frame[VNET_HEADER_LEN..end];
        let result = fill(packet);
        let header = finish_tcp(packet, how);
        self.write(header, end);
        result
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
