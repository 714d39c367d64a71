//! Packets as checked views and as bytes to send: bytes in, bytes out, no clock, no socket.
