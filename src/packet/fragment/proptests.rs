//! The store against a model of a few lines, and against packets that were whole before.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::samples::{self, fragment};
use super::*;

/// A model datagram: every byte's presence on its own.
#[derive(Default)]
struct Model {
    began: u64,
    ranges: Vec<(usize, usize)>,
    end: Option<usize>,
    given_up: bool,
}

impl Model {
    fn add(&mut self, start: usize, len: usize, more: bool) -> Result<bool, FragmentDrop> {
        if self.given_up {
            return Err(FragmentDrop::GivenUp);
        }
        let end = start + len;
        let reach = self.ranges.iter().map(|range| range.1).max().unwrap_or(0);
        let contradiction = match (self.end, more) {
            (Some(known), true) => end >= known,
            (Some(known), false) => end != known,
            (None, true) => false,
            (None, false) => end <= reach,
        };
        let result = if contradiction {
            Err(FragmentDrop::End)
        } else if self.ranges.contains(&(start, end)) {
            return Ok(false);
        } else if (start..end).any(|byte| self.holds(byte)) {
            Err(FragmentDrop::Overlap)
        } else {
            self.ranges.push((start, end));
            if !more {
                self.end = Some(end);
            }
            Ok(self
                .end
                .is_some_and(|end| (0..end).all(|byte| self.holds(byte))))
        };
        self.given_up = result.is_err();
        result
    }

    fn holds(&self, byte: usize) -> bool {
        self.ranges
            .iter()
            .any(|range| (range.0..range.1).contains(&byte))
    }
}

/// One fragment of one of a few datagrams, some time after the one before.
#[derive(Clone, Debug)]
struct Step {
    wait: u64,
    datagram: u8,
    start: usize,
    len: usize,
    more: bool,
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly small multiples of 8 within 64 bytes, so that datagrams complete, overlap and
    // repeat; now and then a pause beyond the timeout.
    let len = prop_oneof![8 => (1usize..5).prop_map(|units| units * 8), 1 => 0usize..40];
    let wait = prop_oneof![20 => 0u64..500, 1 => 25_000u64..40_000];
    (wait, 0u8..4, 0usize..8, len, prop::bool::weighted(0.75)).prop_map(
        |(wait, datagram, start, len, more)| Step {
            wait,
            datagram,
            start: start * 8,
            len,
            more,
        },
    )
}

/// Two IPv4 and two IPv6 datagrams, told apart by source and by identification.
fn addresses(datagram: u8) -> (IpAddr, IpAddr, u32) {
    let (source, destination) = if datagram < 2 {
        ("10.1.65.5", "10.0.0.3")
    } else {
        ("fd00::7", "fd00::3")
    };
    (
        source.parse().unwrap(),
        destination.parse().unwrap(),
        u32::from(datagram % 2),
    )
}

fn content(datagram: u8, byte: usize) -> u8 {
    (byte as u8).wrapping_mul(31).wrapping_add(datagram)
}

proptest! {
    /// Whatever comes in whatever order: each outcome, and the bytes of what completes.
    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let start = Instant::now();
        let mut store = FragmentStore::new(FragmentLimits::default());
        let mut models: HashMap<u8, Model> = HashMap::new();
        let mut at = 0;
        for Step { wait, datagram, start: offset, len, more } in steps {
            at += wait;
            let now = start + Duration::from_millis(at);
            let (source, destination, ident) = addresses(datagram);
            let data: Vec<u8> =
                (offset..offset + len).map(|byte| content(datagram, byte)).collect();
            let place = u16::try_from(offset).unwrap();
            let packet = fragment(source, destination, ident, place, more, &data);
            let outcome = store.insert(now, &IpPacket::parse(&packet).unwrap());

            let expected = if offset == 0 && !more {
                Ok(Some(len))
            } else if len == 0 {
                Err(FragmentDrop::Empty)
            } else if more && len % 8 != 0 {
                Err(FragmentDrop::Unaligned)
            } else {
                if models.get(&datagram).is_some_and(|model| model.began + 30_000 <= at) {
                    models.remove(&datagram);
                }
                let model = models
                    .entry(datagram)
                    .or_insert_with(|| Model { began: at, ..Model::default() });
                let result = model.add(offset, len, more);
                let end = model.end;
                if result == Ok(true) {
                    models.remove(&datagram);
                }
                result.map(|complete| if complete { end } else { None })
            };
            match expected {
                Err(reason) => prop_assert_eq!(outcome, FragmentOutcome::Dropped(reason)),
                Ok(None) => prop_assert_eq!(outcome, FragmentOutcome::Pending),
                Ok(Some(end)) => {
                    let FragmentOutcome::Complete(whole) = outcome else {
                        return Err(TestCaseError::fail(format!("not complete: {outcome:?}")));
                    };
                    let expected: Vec<u8> =
                        (0..end).map(|byte| content(datagram, byte)).collect();
                    prop_assert_eq!(IpPacket::parse(&whole).unwrap().payload(), &expected);
                }
            }
        }
        let held = store.bytes();
        prop_assert_eq!(held == 0, store.is_empty());
        let waiting =
            models.values().filter(|model| !model.given_up).count();
        let expired = store.expire(start + Duration::from_millis(at + 30_000));
        // Datagrams that lapsed on the way are counted too.
        prop_assert!(expired >= waiting);
        prop_assert_eq!((store.len(), store.bytes()), (0, 0));
        prop_assert_eq!(store.next_expiry(), None);
    }

    /// A packet cut at random, the pieces shuffled and some of them twice, among the pieces of
    /// another one: it comes back byte for byte, with the piece that was last missing.
    #[test]
    fn gives_back_what_was_cut(
        v4 in any::<bool>(),
        payloads in prop::array::uniform2(prop::collection::vec(any::<u8>(), 17..4_000)),
        cuts in prop::collection::vec(1usize..500, 0..12),
        seeds in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let [source, destination] = if v4 {
            ["10.1.65.5:5000", "10.0.0.3:53"]
        } else {
            ["[fd00::7]:5000", "[fd00::3]:53"]
        }
        .map(|address| address.parse::<SocketAddr>().unwrap());
        let wholes = payloads.map(|payload| samples::udp(source, destination, &payload));
        let mut pieces = Vec::new();
        for (which, whole) in wholes.iter().enumerate() {
            let payload = IpPacket::parse(whole).unwrap().payload();
            let mut bounds: Vec<usize> =
                cuts.iter().map(|cut| cut * 8).filter(|cut| *cut < payload.len()).collect();
            bounds.extend([8, payload.len()]);
            bounds.sort_unstable();
            bounds.dedup();
            let mut from = 0;
            for to in bounds {
                let more = to < payload.len();
                let place = u16::try_from(from).unwrap();
                let ident = u32::try_from(which).unwrap();
                let (source, destination) = (source.ip(), destination.ip());
                let data = &payload[from..to];
                let packet = fragment(source, destination, ident, place, more, data);
                pieces.push((which, from, packet));
                from = to;
            }
        }
        // A shuffle, and repeats while the datagram is not complete.
        let mut missing: [BTreeSet<usize>; 2] = Default::default();
        for (which, from, _) in &pieces {
            missing[*which].insert(*from);
        }
        for (turn, seed) in seeds.iter().cycle().take(pieces.len()).enumerate() {
            let last = pieces.len() - 1 - turn;
            pieces.swap(seed.index(last + 1), last);
        }
        let mut store = FragmentStore::new(FragmentLimits::default());
        let now = Instant::now();
        for (index, (which, from, packet)) in pieces.iter().enumerate() {
            let outcome = store.insert(now, &IpPacket::parse(packet).unwrap());
            missing[*which].remove(from);
            if missing[*which].is_empty() {
                let FragmentOutcome::Complete(got) = outcome else {
                    return Err(TestCaseError::fail(format!("not complete: {outcome:?}")));
                };
                let got = IpPacket::parse(&got).unwrap();
                prop_assert!(super::super::ipv4_header_checksum_ok(&got));
                prop_assert!(super::super::transport_checksum_ok(&got));
                prop_assert_eq!(got.payload(), IpPacket::parse(&wholes[*which]).unwrap().payload());
            } else {
                prop_assert_eq!(outcome, FragmentOutcome::Pending);
                if seeds[index % seeds.len()].index(2) == 0 {
                    let again = store.insert(now, &IpPacket::parse(packet).unwrap());
                    prop_assert_eq!(again, FragmentOutcome::Pending);
                }
            }
        }
        prop_assert!(store.is_empty());
    }

    /// Random fragments from many sources never exceed a limit, and the accounts add up.
    #[test]
    fn keeps_to_its_limits(
        steps in prop::collection::vec((0u8..12, 0u32..40, 0u16..30, 1u16..200, any::<bool>()), 1..400)
    ) {
        let limits = FragmentLimits {
            bytes: 20_000,
            datagrams: 16,
            source_bytes: 6_000,
            source_datagrams: 6,
            timeout: Duration::from_secs(30),
        };
        let mut store = FragmentStore::new(limits);
        let now = Instant::now();
        for (host, ident, offset, units, more) in steps {
            let source = IpAddr::from([10, 1, 65, host]);
            let data = vec![0; usize::from(units) * 8];
            let destination = IpAddr::from([10, 0, 0, 3]);
            let packet = fragment(source, destination, ident, offset * 64, more, &data);
            store.insert(now, &IpPacket::parse(&packet).unwrap());
            prop_assert!(store.bytes() <= limits.bytes);
            prop_assert!(store.len() <= limits.datagrams);
            for source in store.sources.values() {
                prop_assert!(source.bytes <= limits.source_bytes);
                prop_assert!(source.numbers.len() <= limits.source_datagrams);
            }
            let costs: usize = store.datagrams.values().map(Datagram::cost).sum();
            prop_assert_eq!(store.bytes(), costs);
            let shares: usize = store.sources.values().map(|source| source.bytes).sum();
            prop_assert_eq!(shares, costs);
            prop_assert_eq!(store.by_age.len(), store.len());
        }
        store.expire(now + limits.timeout);
        prop_assert!(store.is_empty() && store.sources.is_empty() && store.by_age.is_empty());
    }
}
