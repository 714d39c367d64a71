//! What an event of epoll is about.

use mio::Token;

use super::relay::Side;
use crate::dataplane::FlowId;

/// Set in the token of a listener; the index of a flow never reaches it.
const LISTENER: usize = 1 << 31;

/// Set in the token of the real server's socket of a flow: above the 31 bits of a
/// flow's generation, which begin at bit 32.
const SERVER: usize = 1 << 63;

/// The mailbox: no flow has this index.
pub(super) const MAILBOX: Token = Token(usize::MAX);

/// The owner of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A listener, by its number.
    Listener(u32),
    /// One of the two sockets of a flow.
    Flow(FlowId, Side),
}

impl Owner {
    pub(super) fn token(self) -> Token {
        Token(match self {
            Self::Listener(number) => LISTENER | number as usize,
            Self::Flow(id, Side::Client) => id.to_token(),
            Self::Flow(id, Side::Server) => id.to_token() | SERVER,
        })
    }

    pub(super) fn of(token: Token) -> Self {
        let Token(bits) = token;
        if bits & LISTENER != 0 {
            return Self::Listener((bits & (LISTENER - 1)) as u32);
        }
        let side = if bits & SERVER == 0 {
            Side::Client
        } else {
            Side::Server
        };
        Self::Flow(FlowId::from_token(bits & !SERVER), side)
    }
}

/// The listener after this one, in the numbers that fit into a token.
pub(super) fn next_listener(number: u32) -> u32 {
    number.wrapping_add(1) & (LISTENER - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lead_back_to_their_owners() {
        let last = FlowId::from_token((u32::MAX as usize >> 1) << 32 | (LISTENER - 1));
        for owner in [
            Owner::Listener(0),
            Owner::Listener(next_listener(u32::MAX - 1)),
            Owner::Flow(FlowId::from_token(0), Side::Client),
            Owner::Flow(FlowId::from_token(0), Side::Server),
            Owner::Flow(last, Side::Client),
            Owner::Flow(last, Side::Server),
        ] {
            assert_eq!(Owner::of(owner.token()), owner);
            assert_ne!(owner.token(), MAILBOX);
        }
    }
}
