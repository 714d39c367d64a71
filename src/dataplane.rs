//! The workers that carry flows from the TUN to real servers.
