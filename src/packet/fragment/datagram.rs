//! The pieces of one datagram.

use std::time::Instant;

use super::FragmentDrop;

/// Pieces of one datagram before it is given up. 65,535 bytes cut for the 576 bytes that every
/// IPv4 host takes (RFC 791 3.1) make 119; IPv6's minimum MTU makes 54.
const MAX_PIECES: usize = 128;

/// Memory that a datagram takes beside its pieces: its entries in three tables, in bytes,
/// rounded up.
const DATAGRAM_COST: usize = 512;

/// Memory that a piece takes beside its bytes: its entry and the allocator's own, rounded up.
const PIECE_COST: usize = 64;

/// Consecutive bytes of the payload.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where they stand in the payload.
    pub(super) start: usize,
    /// The bytes, at least one.
    pub(super) data: Box<[u8]>,
}

impl Piece {
    /// Where they end in the payload.
    pub(super) fn end(&self) -> usize {
        self.start + self.data.len()
    }
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It is held, others are missing.
    Held,
    /// The same range is held already.
    Repeated,
    /// Nothing is missing any more.
    Complete,
    /// It is not held, and nothing else is.
    Refused(FragmentDrop),
}

/// A datagram that is not complete.
#[derive(Debug)]
pub(super) struct Datagram {
    /// Its place in the order in which datagrams began.
    pub(super) number: u64,
    /// When it is given up.
    pub(super) deadline: Instant,
    /// The headers for the whole packet, from the first fragment; empty until that is here.
    pub(super) header: Vec<u8>,
    /// In order, without overlap.
    pub(super) pieces: Vec<Piece>,
    /// Bytes in `pieces`.
    held: usize,
    /// Length of the whole payload, once the last fragment is here.
    end: Option<usize>,
    given_up: bool,
}

impl Datagram {
    pub(super) fn new(number: u64, deadline: Instant) -> Self {
        Self {
            number,
            deadline,
            header: Vec::new(),
            pieces: Vec::new(),
            held: 0,
            end: None,
            given_up: false,
        }
    }

    /// Whether the datagram is remembered only to refuse what still comes of it (RFC 5722:
    /// "including those not yet received").
    pub(super) fn given_up(&self) -> bool {
        self.given_up
    }

    /// Memory that it takes.
    pub(super) fn cost(&self) -> usize {
        DATAGRAM_COST + self.header.len() + self.held + self.pieces.len() * PIECE_COST
    }

    /// Takes the bytes at `start`; `header` is asked for those at 0.
    pub(super) fn add(
        &mut self,
        start: usize,
        data: &[u8],
        more: bool,
        header: impl FnOnce() -> Vec<u8>,
    ) -> Added {
        if self.given_up {
            return Added::Refused(FragmentDrop::GivenUp);
        }
        let end = start + data.len();
        let at = self.pieces.partition_point(|piece| piece.start < start);
        if let Err(reason) = self.check_end(end, more) {
            return self.give_up(reason);
        }
        let before = at.checked_sub(1).and_then(|before| self.pieces.get(before));
        let after = self.pieces.get(at);
        if after.is_some_and(|piece| piece.start == start && piece.end() == end) {
            return Added::Repeated;
        }
        if before.is_some_and(|piece| piece.end() > start)
            || after.is_some_and(|piece| piece.start < end)
        {
            return self.give_up(FragmentDrop::Overlap);
        }
        if self.pieces.len() == MAX_PIECES {
            return self.give_up(FragmentDrop::TooManyPieces);
        }
        if start == 0 {
            self.header = header();
        }
        if !more {
            self.end = Some(end);
        }
        self.held += data.len();
        self.pieces.insert(
            at,
            Piece {
                start,
                data: data.into(),
            },
        );
        // Pieces do not overlap and none lies beyond the end: as many bytes are all of them.
        if self.end == Some(self.held) {
            Added::Complete
        } else {
            Added::Held
        }
    }

    /// Whether a piece up to `end` agrees with where the payload ends.
    fn check_end(&self, end: usize, more: bool) -> Result<(), FragmentDrop> {
        let agrees = match self.end {
            Some(known) if more => end < known,
            Some(known) => end == known,
            // Every piece so far has announced more behind it.
            None if more => true,
            None => self.pieces.last().is_none_or(|piece| piece.end() < end),
        };
        if agrees {
            Ok(())
        } else {
            Err(FragmentDrop::End)
        }
    }

    fn give_up(&mut self, reason: FragmentDrop) -> Added {
        self.given_up = true;
        self.header = Vec::new();
        self.pieces = Vec::new();
        self.held = 0;
        Added::Refused(reason)
    }
}
