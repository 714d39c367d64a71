//! The TUN device: queues, the virtio-net header, address and routes.
