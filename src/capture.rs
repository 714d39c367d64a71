//! Packets of chosen flows, client's side and real server's side, each with what it
//! belongs to.
//!
//! [`PacketSocket`] takes in what passes the interfaces of a network namespace, as far as the
//! kernel cannot be told to pass over it (`filter`), [`Hold`]
//! keeps what the wanted service ports may have to do with until the proxy has said which
//! flow it belongs to, [`PcapngWriter`] writes it down. The time is an argument of
//! [`Hold`], which opens nothing.
//!
//! There is no task and no thread here; who calls owns the loop.

mod filter;
mod hold;
mod known;
mod pcapng;
mod scope;
mod socket;

pub use hold::{Hold, Told};
pub use known::ListedFlow;
pub use pcapng::{PcapngPacket, PcapngWriter};
pub use scope::{Interfaces, Scope};
pub use socket::{MAX_CAPTURED, PacketSocket, Received};

#[cfg(test)]
mod tests;
