//! A smoltcp device that holds one received packet and writes straight to its place.

use std::num::NonZeroUsize;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    SegmentationCapabilities, TxToken,
};
use smoltcp::time::Instant;

/// The largest IP packet, and so the largest super-packet (RFC 791 section 3.1).
pub(super) const MAX_PACKET: usize = 65_535;

/// What a packet on its way out needs from whoever sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Set when the TCP payload is longer than one segment: the payload size of
    /// the segments that the device shall cut it into.
    pub segment_size: Option<u16>,
}

/// Where packets go. The implementor lends a buffer, lets smoltcp fill it, and
/// sends it.
///
/// The TCP checksum field is left zero: the implementor computes it, or has the
/// device do so. A packet that cannot be sent is lost, as on a wire.
pub trait Transmit {
    /// Sends one IP packet of `len` bytes that `fill` writes.
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// One poll's view of the world: at most one packet in, any number out.
pub(super) struct OnePacket<'a, T: Transmit> {
    received: Option<&'a [u8]>,
    transmit: &'a mut T,
    mtu: usize,
}

impl<'a, T: Transmit> OnePacket<'a, T> {
    pub(super) fn new(received: Option<&'a [u8]>, transmit: &'a mut T, mtu: usize) -> Self {
        Self {
            received,
            transmit,
            mtu,
        }
    }
}

impl<T: Transmit> Device for OnePacket<'_, T> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sender<'t, T>
    where
        Self: 't;

    #[inline]
    fn receive(&mut self, _now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Sender::new(self.transmit)))
    }

    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<Self::TxToken<'_>> {
        Some(Sender::new(self.transmit))
    }

    #[inline]
    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// The data plane verifies what it receives before the stack sees it, and the
/// kernel finishes TCP checksums; only the IPv4 header's is left to smoltcp.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksum = ChecksumCapabilities::ignored();
    checksum.ipv4 = Checksum::Tx;
    checksum
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut segmentation = SegmentationCapabilities::default();
    segmentation.tcpv4 = NonZeroUsize::new(MAX_PACKET);
    segmentation.tcpv6 = NonZeroUsize::new(MAX_PACKET);
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksums();
    capabilities.segmentation = segmentation;
    capabilities
}

pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    #[inline]
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.0)
    }
}

pub(super) struct Sender<'a, T> {
    transmit: &'a mut T,
    how: Outgoing,
}

impl<'a, T> Sender<'a, T> {
    fn new(transmit: &'a mut T) -> Self {
        Self {
            transmit,
            how: Outgoing { segment_size: None },
        }
    }
}

impl<T: Transmit> TxToken for Sender<'_, T> {
    #[inline]
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        self.transmit.transmit(len, self.how, f)
    }

    #[inline]
    fn set_meta(&mut self, meta: PacketMeta) {
        self.how.segment_size = meta.segmentation_offload_size.map(|size| size.get());
    }
}
