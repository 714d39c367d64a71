//! The glue around smoltcp: a device over one packet, one TCP endpoint per flow, the clock.
