//! Putting IP fragments together, within fixed bounds.
//!
//! Pods send a datagram above their MTU of 1450 as fragments, and a node where conntrack
//! reassembles them cuts them again before the TUN. IPv4 by RFC 791, IPv6 by RFC 8200 4.5;
//! overlaps give the whole datagram up, in IPv6 by RFC 5722 and in IPv4 as Linux does since 4.19
//! (net/ipv4/ip_fragment.c). The differences to Linux are in who suffers under pressure: see
//! [`FragmentLimits`].

mod datagram;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::datagram::{Added, Datagram, Piece};
use super::ip::{FragmentInfo, IpPacket};

/// The longest packet or payload that a length field of 16 bits can name.
const MAX_LEN: usize = u16::MAX as usize;

/// Bounds of a [`FragmentStore`].
///
/// Where Linux refuses all new datagrams once its memory is full, so that a sender of lone
/// fragments stops everybody for 30 s, here the oldest gives way: fragments of one datagram come
/// within microseconds of each other, so what has waited longest will hardly be completed. A
/// source that is above its share only pushes out its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Memory for all fragments held, bookkeeping included, in bytes. 4 MiB, as
    /// `net.ipv4.ipfrag_high_thresh`.
    pub bytes: usize,
    /// Datagrams that may be incomplete at a time. 1024: each of the default `bytes` holds 4 KiB
    /// then, three fragments of a 1450-byte link.
    pub datagrams: usize,
    /// The part of `bytes` that one source address may hold. 1 MiB, a quarter: it takes four
    /// senders together to make others give way, and one may still have 15 of the largest
    /// datagrams under way.
    pub source_bytes: usize,
    /// The part of `datagrams` that one source address may hold. 256, a quarter likewise.
    pub source_datagrams: usize,
    /// How long after its first fragment a datagram is given up. 30 s, as
    /// `net.ipv4.ipfrag_time`; RFC 8200 4.5 lets IPv6 wait up to 60 s.
    pub timeout: Duration,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            datagrams: 1024,
            source_bytes: 1 << 20,
            source_datagrams: 256,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What became of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FragmentOutcome {
    /// It is held, or repeats one that is.
    Pending,
    /// It was the last one missing: here is the packet as if it had never been cut. It parses
    /// and is not a fragment; the checksum of an IPv4 header is right, the transport's is for
    /// the caller to verify.
    Complete(Vec<u8>),
    /// It is not held.
    Dropped(FragmentDrop),
}

/// Why a fragment is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FragmentDrop {
    /// It carries no payload.
    Empty,
    /// It is not the last one and its payload is not a multiple of 8 bytes long.
    Unaligned,
    /// The datagram would be longer than a length field can say (65,535 bytes).
    TooLong,
    /// It covers bytes that another one covers, without being the same range: the datagram is
    /// given up.
    Overlap,
    /// It contradicts what is known of the datagram's end: the datagram is given up.
    End,
    /// The datagram comes in more pieces than any link makes: it is given up.
    TooManyPieces,
    /// Its datagram was given up before.
    GivenUp,
    /// The datagram alone exceeds the limits.
    NoRoom,
    /// The reassembled packet is malformed or a fragment again.
    Unusable,
}

impl FragmentDrop {
    /// A label for counters: lower case, words joined by underscores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "fragment_empty",
            Self::Unaligned => "fragment_unaligned",
            Self::TooLong => "fragment_too_long",
            Self::Overlap => "fragment_overlap",
            Self::End => "fragment_end",
            Self::TooManyPieces => "fragment_too_many_pieces",
            Self::GivenUp => "fragment_given_up",
            Self::NoRoom => "fragment_no_room",
            Self::Unusable => "fragment_unusable",
        }
    }
}

/// What the fragments of one datagram have in common (RFC 791 3.2, RFC 8200 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// 0 for IPv6, where only the first fragment's next header counts.
    protocol: u8,
    ident: u32,
}

/// Holds the fragments of datagrams until they are complete, too old, or in the way of newer
/// ones.
#[derive(Debug)]
pub struct FragmentStore {
    limits: FragmentLimits,
    datagrams: HashMap<Key, Datagram>,
    /// Datagrams by number, that is by age: numbers are given in order.
    by_age: BTreeMap<u64, Key>,
    sources: HashMap<IpAddr, Source>,
    next_number: u64,
    bytes: usize,
    evicted: u64,
    /// Datagrams found too old by `insert`, to be told by the next `expire`.
    lapsed: usize,
}

/// What one source address holds.
#[derive(Debug, Default)]
struct Source {
    bytes: usize,
    numbers: BTreeSet<u64>,
}

impl FragmentStore {
    /// An empty store.
    pub fn new(limits: FragmentLimits) -> Self {
        Self {
            limits,
            datagrams: HashMap::new(),
            by_age: BTreeMap::new(),
            sources: HashMap::new(),
            next_number: 0,
            bytes: 0,
            evicted: 0,
            lapsed: 0,
        }
    }

    /// Takes a fragment; `now` must not run backwards. A packet that is no fragment comes back
    /// complete.
    pub fn insert(&mut self, now: Instant, packet: &IpPacket<'_>) -> FragmentOutcome {
        let Some(fragment) = packet.fragment else {
            return FragmentOutcome::Complete(packet.bytes.to_vec());
        };
        // RFC 6946: an atomic fragment is a datagram of its own, whatever else is held.
        if fragment.offset == 0 && !fragment.more {
            let piece = Piece {
                start: 0,
                data: packet.payload().into(),
            };
            return finish(header(packet, &fragment), &[piece]);
        }
        if let Err(reason) = check(packet, &fragment) {
            return FragmentOutcome::Dropped(reason);
        }
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            protocol: if packet.is_ipv4() { packet.protocol } else { 0 },
            ident: fragment.ident,
        };
        if self
            .datagrams
            .get(&key)
            .is_some_and(|datagram| datagram.deadline <= now)
        {
            self.lapsed += usize::from(self.remove(&key).is_some_and(|old| !old.given_up()));
        }
        let added = self.add(now, key, packet, &fragment);
        match added {
            Added::Held => self.make_room(&key),
            Added::Repeated => FragmentOutcome::Pending,
            Added::Refused(reason) => {
                // A datagram given up costs little but may be one too many.
                self.make_room(&key);
                FragmentOutcome::Dropped(reason)
            }
            Added::Complete => match self.remove(&key) {
                Some(datagram) => finish(datagram.header, &datagram.pieces),
                None => FragmentOutcome::Pending,
            },
        }
    }

    /// Forgets the datagrams whose time is up; returns how many of them were still waiting for
    /// fragments.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut count = std::mem::take(&mut self.lapsed);
        while let Some((_, &key)) = self.by_age.first_key_value()
            && self
                .datagrams
                .get(&key)
                .is_none_or(|datagram| datagram.deadline <= now)
        {
            let Some(old) = self.remove(&key) else { break };
            count += usize::from(!old.given_up());
        }
        count
    }

    /// When [`expire`](Self::expire) next has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        let (_, key) = self.by_age.first_key_value()?;
        self.datagrams.get(key).map(|datagram| datagram.deadline)
    }

    /// Datagrams held, those given up but remembered included.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Memory that counts against [`FragmentLimits::bytes`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Incomplete datagrams that had to give way to newer ones, ever.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Adds to the datagram, which is made if need be, and keeps the accounts.
    fn add(
        &mut self,
        now: Instant,
        key: Key,
        packet: &IpPacket<'_>,
        fragment: &FragmentInfo,
    ) -> Added {
        let (datagram, before) = match self.datagrams.entry(key) {
            Entry::Occupied(entry) => {
                let datagram = entry.into_mut();
                let cost = datagram.cost();
                (datagram, cost)
            }
            Entry::Vacant(entry) => {
                let number = self.next_number;
                self.next_number += 1;
                self.by_age.insert(number, key);
                self.sources
                    .entry(key.source)
                    .or_default()
                    .numbers
                    .insert(number);
                (
                    entry.insert(Datagram::new(number, now + self.limits.timeout)),
                    0,
                )
            }
        };
        let start = usize::from(fragment.offset);
        let added = datagram.add(start, packet.payload(), fragment.more, || {
            header(packet, fragment)
        });
        let after = datagram.cost();
        self.bytes = self.bytes - before + after;
        if let Some(source) = self.sources.get_mut(&key.source) {
            source.bytes = source.bytes - before + after;
        }
        added
    }

    /// Removes what is oldest until the limits hold, sparing `kept` as long as that helps.
    fn make_room(&mut self, kept: &Key) -> FragmentOutcome {
        loop {
            let source = self.sources.get(&kept.source);
            let victim = if source.is_some_and(|source| {
                source.bytes > self.limits.source_bytes
                    || source.numbers.len() > self.limits.source_datagrams
            }) {
                let mut keys = source
                    .into_iter()
                    .flat_map(|source| &source.numbers)
                    .filter_map(|number| self.by_age.get(number));
                keys.find(|key| *key != kept).copied()
            } else if self.bytes > self.limits.bytes || self.datagrams.len() > self.limits.datagrams
            {
                self.by_age.values().find(|key| *key != kept).copied()
            } else {
                return FragmentOutcome::Pending;
            };
            let Some(victim) = victim else {
                self.remove(kept);
                return FragmentOutcome::Dropped(FragmentDrop::NoRoom);
            };
            let old = self.remove(&victim);
            self.evicted += u64::from(old.is_some_and(|old| !old.given_up()));
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.datagrams.remove(key)?;
        let cost = datagram.cost();
        self.by_age.remove(&datagram.number);
        self.bytes -= cost;
        if let Entry::Occupied(mut source) = self.sources.entry(key.source) {
            source.get_mut().bytes -= cost;
            source.get_mut().numbers.remove(&datagram.number);
            if source.get().numbers.is_empty() {
                source.remove();
            }
        }
        Some(datagram)
    }
}

/// What can be said of a fragment without its datagram.
fn check(packet: &IpPacket<'_>, fragment: &FragmentInfo) -> Result<(), FragmentDrop> {
    let len = packet.payload().len();
    if len == 0 {
        return Err(FragmentDrop::Empty);
    }
    if fragment.more && !len.is_multiple_of(8) {
        return Err(FragmentDrop::Unaligned);
    }
    // IPv4 counts its header into the length, IPv6 only the extension headers.
    let headers = if packet.is_ipv4() {
        packet.header_len
    } else {
        fragment.header_at - 40
    };
    if headers + usize::from(fragment.offset) + len > MAX_LEN {
        return Err(FragmentDrop::TooLong);
    }
    Ok(())
}

/// The header that the whole packet has if `packet` is its first fragment; lengths and
/// checksum are left to [`finish`].
fn header(packet: &IpPacket<'_>, fragment: &FragmentInfo) -> Vec<u8> {
    if packet.is_ipv4() {
        let mut header = packet.bytes[..packet.header_len].to_vec();
        header[6..8].fill(0);
        header
    } else {
        let mut header = packet.bytes[..fragment.header_at].to_vec();
        header[fragment.next_header_at] = packet.protocol;
        header
    }
}

/// Joins a header and the pieces of its payload, which are complete and in order.
fn finish(mut packet: Vec<u8>, pieces: &[Piece]) -> FragmentOutcome {
    let payload_len = pieces.last().map_or(0, Piece::end);
    let v4 = packet[0] >> 4 == 4;
    let length = if v4 { packet.len() } else { packet.len() - 40 } + payload_len;
    let Ok(length) = u16::try_from(length) else {
        return FragmentOutcome::Dropped(FragmentDrop::TooLong);
    };
    if v4 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let checksum = super::checksum::checksum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
    packet.reserve_exact(payload_len);
    for piece in pieces {
        packet.extend_from_slice(&piece.data);
    }
    match IpPacket::parse(&packet) {
        Ok(IpPacket { fragment: None, .. }) => FragmentOutcome::Complete(packet),
        Ok(_) | Err(_) => FragmentOutcome::Dropped(FragmentDrop::Unusable),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod proptests;
