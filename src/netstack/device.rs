//! A smoltcp device that holds one received packet and writes straight to its place.

use std::num::NonZeroUsize;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    SegmentationCapabilities, TxToken,
};
use smoltcp::time::Instant;

/// Bytes of a super-packet at most. A device whose `gso_max_size` is 65,536
/// (`GSO_LEGACY_MAX_SIZE`, include/linux/netdevice.h) has the kernel cut longer ones
/// into segments before they are sent, link-layer header included: a bridge with pods
/// behind it did so with packets of 65,535 bytes, at three times the cost.
const MAX_SUPER_PACKET: usize = 65_200;

/// Bytes of an IPv4 and of an IPv6 header with TCP's behind it, both without options.
const HEADERS_V4: usize = 40;
const HEADERS_V6: usize = 60;

/// MTU of the interfaces for super-packets over IPv6: smoltcp 0.14 drops a packet longer
/// than the MTU even if it is one (dispatch_ip, src/iface/interface/mod.rs). They serve
/// clients that know our MSS already; then the MTU decides nothing else.
pub(super) const WIDE_MTU: usize = 65_535;

/// What packets of one kind of client look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// MTU of the TUN in bytes, or [`WIDE_MTU`].
    pub(super) mtu: usize,
    /// For super-packets over IPv6.
    pub(super) wide: bool,
    /// Payload of a full segment; 0 where clients differ.
    pub(super) segment: usize,
}

impl Shape {
    /// Payload of the longest super-packet: whole segments, so that no runt is cut off
    /// its end.
    pub(super) fn burst(self) -> usize {
        let most = MAX_SUPER_PACKET - HEADERS_V6;
        match self.segment {
            0 => most,
            segment => (most / segment).max(1) * segment,
        }
    }
}

/// What a packet on its way out needs from whoever sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Set when the TCP payload is longer than one segment: the payload size of
    /// the segments that the device shall cut it into.
    pub segment_size: Option<u16>,
    /// That size is reckoned with TCP's options, as the client's MSS is: smoltcp 0.14
    /// says nothing of super-packets over IPv6.
    pub with_options: bool,
}

impl Outgoing {
    /// A packet like any other.
    pub const WHOLE: Self = Self {
        segment_size: None,
        with_options: false,
    };
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
    shape: Shape,
}

impl<'a, T: Transmit> OnePacket<'a, T> {
    pub(super) fn new(received: Option<&'a [u8]>, transmit: &'a mut T, shape: Shape) -> Self {
        Self {
            received,
            transmit,
            shape,
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
        Some((Received(packet), Sender::new(self.transmit, self.shape)))
    }

    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<Self::TxToken<'_>> {
        Some(Sender::new(self.transmit, self.shape))
    }

    #[inline]
    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.shape)
    }
}

/// The data plane verifies what it receives before the stack sees it, and the
/// kernel finishes TCP checksums; only the IPv4 header's is left to smoltcp.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksum = ChecksumCapabilities::ignored();
    checksum.ipv4 = Checksum::Tx;
    checksum
}

fn capabilities(shape: Shape) -> DeviceCapabilities {
    let mut segmentation = SegmentationCapabilities::default();
    segmentation.tcpv4 = NonZeroUsize::new(HEADERS_V4 + shape.burst());
    if shape.wide {
        segmentation.tcpv6 = NonZeroUsize::new(HEADERS_V6 + shape.burst());
    }
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = shape.mtu;
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
    shape: Shape,
}

impl<'a, T> Sender<'a, T> {
    fn new(transmit: &'a mut T, shape: Shape) -> Self {
        Self {
            transmit,
            how: Outgoing::WHOLE,
            shape,
        }
    }
}

impl<T: Transmit> TxToken for Sender<'_, T> {
    #[inline]
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let mut how = self.how;
        if self.shape.wide && len > HEADERS_V6 + self.shape.segment {
            how.segment_size = u16::try_from(self.shape.segment).ok();
            how.with_options = true;
        }
        self.transmit.transmit(len, how, f)
    }

    #[inline]
    fn set_meta(&mut self, meta: PacketMeta) {
        self.how.segment_size = meta.segmentation_offload_size.map(|size| size.get());
    }
}
