//! The TUN device: queues, the virtio-net header, address and routes.
//!
//! [`open_queues`] makes a device with a queue per worker, [`Link::configure`]
//! gives it its MTU, addresses and service routes through netlink, and
//! [`VnetHeader`] is what stands before every packet that a [`Queue`] reads and
//! writes. The device is not persistent: it and its routes go with the last
//! queue, also after SIGKILL. One that shall stay, for a user without privilege, is
//! kept by [`Queues::keep_for`] and taken up by [`attach_queues`] and [`Link::adopt`].
//!
//! Threads: none. A [`Queue`] is owned by its worker. A [`Link`] owns one task
//! on the control runtime that carries its netlink socket; dropping the link
//! ends it.

mod adopt;
mod batch;
mod error;
mod link;
mod offload;
mod packet_ring;
mod packet_statistics;
mod prepared;
mod queue;
mod rights;

pub use adopt::adopt_queues;
pub use batch::{BATCH_FRAMES, FrameWriter, Refused};
pub use error::TunError;
pub use link::{
    DEFAULT_ADDRESS_V4, DEFAULT_ADDRESS_V6, DEFAULT_MTU, DEFAULT_TX_QUEUE_LEN, Link, LinkConfig,
};
pub use offload::{
    ChecksumState, Gso, MAX_FRAME_LEN, VNET_HEADER_LEN, VnetHeader, VnetHeaderError,
};
pub use packet_ring::{PacketRing, RingPacket};
pub use packet_statistics::{PacketStatistics, packet_statistics};
pub use prepared::attach_queues;
pub use queue::{MAX_QUEUES, Offloads, Queue, Queues, check_driver, open_queues};
pub use rights::{MAX_RIGHTS, receive_rights, send_rights};
