use super::super::samples::{self, fragment};
use super::super::{UdpDatagram, ipv4_header_checksum_ok, transport_checksum_ok};
use super::*;

use FragmentDrop::{Empty, End, GivenUp, NoRoom, Overlap, TooLong, TooManyPieces, Unaligned};
use FragmentOutcome::{Complete, Dropped, Pending};

const CLIENT: &str = "10.1.65.5";

/// A store whose clock starts at 0 and which is fed fragments of UDP datagrams to 10.0.0.3 or
/// fd00::3.
struct Feed {
    store: FragmentStore,
    start: Instant,
    at: Duration,
}

impl Feed {
    fn new(limits: FragmentLimits) -> Self {
        Self {
            store: FragmentStore::new(limits),
            start: Instant::now(),
            at: Duration::ZERO,
        }
    }

    fn now(&self) -> Instant {
        self.start + self.at
    }

    fn raw(&mut self, packet: &[u8]) -> FragmentOutcome {
        self.store
            .insert(self.now(), &IpPacket::parse(packet).unwrap())
    }

    fn from(&mut self, source: &str, ident: u32, place: (u16, bool), len: u16) -> FragmentOutcome {
        let source: IpAddr = source.parse().unwrap();
        let destination = if source.is_ipv4() {
            "10.0.0.3"
        } else {
            "fd00::3"
        };
        let (offset, more) = place;
        let payload: Vec<u8> = (0..len)
            .map(|index| ((offset + index) % 251) as u8)
            .collect();
        self.raw(&fragment(
            source,
            destination.parse().unwrap(),
            ident,
            offset,
            more,
            &payload,
        ))
    }

    /// From [`CLIENT`], identification 1.
    fn one(&mut self, offset: u16, more: bool, len: u16) -> FragmentOutcome {
        self.from(CLIENT, 1, (offset, more), len)
    }

    fn expire(&mut self) -> usize {
        self.store.expire(self.now())
    }
}

#[test]
fn the_kernels_fragments_give_the_datagram_back() {
    for v4 in [true, false] {
        for backwards in [false, true] {
            let mut feed = Feed::new(FragmentLimits::default());
            let mut fragments = samples::big_fragments(v4);
            if backwards {
                fragments.reverse();
            }
            assert_eq!(feed.raw(&fragments[0]), Pending);
            let Complete(whole) = feed.raw(&fragments[1]) else {
                panic!("both are here")
            };
            let packet = IpPacket::parse(&whole).unwrap();
            assert_eq!(packet.bytes.len(), whole.len());
            assert!(ipv4_header_checksum_ok(&packet));
            assert!(transport_checksum_ok(&packet), "the kernel's own checksum");
            let datagram = UdpDatagram::parse(&packet).unwrap();
            assert_eq!(datagram.payload, samples::big_payload());
            assert!(feed.store.is_empty());
            assert_eq!(feed.store.bytes(), 0);
        }
    }
}

#[test]
fn the_first_fragments_headers_make_the_packet() {
    // Destination options in front of the fragment header of the first fragment only; what the
    // last one's next header says does not count (RFC 8200 4.5).
    let [mut first, mut last] = samples::big_fragments(false);
    first[6] = 60;
    first.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0]);
    let length = u16::try_from(first.len() - 40).unwrap();
    first[4..6].copy_from_slice(&length.to_be_bytes());
    last[40] = 6;
    let mut feed = Feed::new(FragmentLimits::default());
    assert_eq!(feed.raw(&last), Pending);
    let Complete(whole) = feed.raw(&first) else {
        panic!("both are here")
    };
    let packet = IpPacket::parse(&whole).unwrap();
    assert_eq!((packet.protocol, packet.header_len), (17, 48));
    assert!(transport_checksum_ok(&packet));
}

#[test]
fn what_is_no_fragment_passes() {
    let mut feed = Feed::new(FragmentLimits::default());
    let whole = samples::bytes(samples::PING_V4);
    assert_eq!(feed.raw(&whole), Complete(whole));
    assert!(feed.store.is_empty());
}

#[test]
fn an_atomic_fragment_passes_beside_others_of_its_identification() {
    let mut feed = Feed::new(FragmentLimits::default());
    assert_eq!(feed.from("fd00::7", 1, (8, false), 8), Pending);
    let Complete(whole) = feed.from("fd00::7", 1, (0, false), 16) else {
        panic!("atomic")
    };
    assert_eq!(whole.len(), 56);
    assert_eq!(feed.store.len(), 1);
}

#[test]
fn order_does_not_matter_and_repeats_are_ignored() {
    let mut feed = Feed::new(FragmentLimits::default());
    assert_eq!(feed.one(32, false, 5), Pending);
    assert_eq!(feed.one(16, true, 16), Pending);
    assert_eq!(feed.one(16, true, 16), Pending);
    assert_eq!(feed.one(32, false, 5), Pending);
    assert_eq!(feed.one(8, true, 8), Pending);
    let Complete(whole) = feed.one(0, true, 8) else {
        panic!("complete")
    };
    let expected: Vec<u8> = (0..37).collect();
    assert_eq!(whole[20..], expected);
}

#[test]
fn an_overlap_gives_the_datagram_up() {
    for source in [CLIENT, "fd00::7"] {
        // Against a held range of 16..32: reaching in from both sides, inside, around, and the
        // same start or end.
        for (offset, len) in [
            (8, 16),
            (24, 16),
            (24, 8),
            (16, 8),
            (8, 32),
            (16, 24),
            (8, 24),
        ] {
            let mut feed = Feed::new(FragmentLimits::default());
            assert_eq!(feed.from(source, 1, (16, true), 16), Pending);
            let outcome = feed.from(source, 1, (offset, true), len);
            assert_eq!(outcome, Dropped(Overlap), "{offset} {len}");
            // RFC 5722: nor is anything taken that comes later.
            assert_eq!(feed.from(source, 1, (0, true), 8), Dropped(GivenUp));
            assert_eq!(feed.from(source, 1, (16, true), 16), Dropped(GivenUp));
            // Until its time is up; then the identification may be used anew.
            feed.at += Duration::from_secs(30);
            assert_eq!(feed.from(source, 1, (0, true), 16), Pending);
            assert!(matches!(feed.from(source, 1, (16, false), 16), Complete(_)));
            assert_eq!(feed.expire(), 0, "what was given up is not counted twice");
        }
    }
}

#[test]
fn fragments_must_agree_on_the_end() {
    let cases: [[(u16, bool, u16); 2]; 5] = [
        // Two last fragments with different ends.
        [(16, false, 8), (16, false, 16)],
        [(16, false, 8), (8, false, 8)],
        // More beyond the end, and more to come at the end itself.
        [(16, false, 8), (24, true, 8)],
        [(16, true, 8), (8, false, 8)],
        [(16, true, 8), (16, false, 8)],
    ];
    for [first, second] in cases {
        let mut feed = Feed::new(FragmentLimits::default());
        assert_eq!(feed.one(first.0, first.1, first.2), Pending);
        let outcome = feed.one(second.0, second.1, second.2);
        assert_eq!(outcome, Dropped(End), "{first:?} {second:?}");
    }
}

#[test]
fn what_cannot_belong_anywhere_is_refused() {
    let mut feed = Feed::new(FragmentLimits::default());
    assert_eq!(feed.one(0, true, 0), Dropped(Empty));
    assert_eq!(feed.one(8, false, 0), Dropped(Empty));
    assert_eq!(feed.one(8, true, 12), Dropped(Unaligned));
    // The largest offset is 65,528. IPv4 counts its header into the 65,535 bytes.
    assert_eq!(feed.one(65_512, false, 4), Dropped(TooLong));
    assert_eq!(
        feed.from("fd00::7", 1, (65_528, false), 8),
        Dropped(TooLong)
    );
    assert!(feed.store.is_empty());
    assert_eq!(feed.one(65_512, false, 3), Pending);
    assert_eq!(feed.from("fd00::7", 1, (65_528, false), 7), Pending);
}

#[test]
fn a_first_fragment_with_options_can_make_it_too_long() {
    let mut feed = Feed::new(FragmentLimits::default());
    assert_eq!(feed.one(65_504, false, 11), Pending);
    let addresses = [CLIENT, "10.0.0.3"].map(|address| address.parse().unwrap());
    let [source, destination] = addresses;
    let mut first = fragment(source, destination, 1, 0, true, &vec![0; 65_504]);
    first[0] = 0x46;
    first.splice(20..20, [1, 1, 1, 0]);
    let length = u16::try_from(first.len()).unwrap();
    first[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(feed.raw(&first), Dropped(TooLong));
    assert!(feed.store.is_empty());
}

#[test]
fn a_datagram_in_crumbs_is_given_up() {
    let mut feed = Feed::new(FragmentLimits::default());
    for piece in 0..128 {
        assert_eq!(feed.one(piece * 8 + 8, true, 8), Pending);
    }
    assert_eq!(feed.one(0, true, 8), Dropped(TooManyPieces));
    assert!(feed.store.bytes() < 1_000);
}

#[test]
fn a_fragment_within_a_fragment_is_unusable() {
    let mut feed = Feed::new(FragmentLimits::default());
    let [source, destination] = ["fd00::7", "fd00::3"].map(|address| address.parse().unwrap());
    let inner = [17, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut outer = fragment(source, destination, 1, 0, false, &inner);
    outer[40] = 44;
    assert_eq!(feed.raw(&outer), Dropped(FragmentDrop::Unusable));
}

#[test]
fn keys_are_those_of_the_rfcs() {
    let mut feed = Feed::new(FragmentLimits::default());
    let [source, destination] = [CLIENT, "10.0.0.3"].map(|address| address.parse().unwrap());
    let base = fragment(source, destination, 1, 0, true, &[0; 8]);
    // Identification, protocol, source and destination in IPv4.
    for at in [5, 9, 15, 19] {
        let mut other = base.clone();
        other[at] ^= 1;
        assert_eq!(feed.raw(&other), Pending);
    }
    assert_eq!(feed.raw(&base), Pending);
    assert_eq!(feed.store.len(), 5);
    let [source, destination] = ["fd00::7", "fd00::3"].map(|address| address.parse().unwrap());
    let base = fragment(source, destination, 1, 0, true, &[0; 8]);
    // Identification, source and destination in IPv6, but not the next header at 40.
    for at in [47, 23, 39, 40] {
        let mut other = base.clone();
        other[at] ^= 1;
        assert_eq!(feed.raw(&other), Pending);
    }
    assert_eq!(feed.raw(&base), Pending);
    assert_eq!(feed.store.len(), 9);
}

#[test]
fn time_runs_from_the_first_fragment() {
    let mut feed = Feed::new(FragmentLimits::default());
    let start = feed.start;
    assert_eq!(feed.store.next_expiry(), None);
    feed.one(0, true, 8);
    feed.at = Duration::from_secs(20);
    feed.one(8, true, 8);
    feed.from(CLIENT, 2, (0, true), 8);
    assert_eq!(
        feed.store.next_expiry(),
        Some(start + Duration::from_secs(30))
    );
    feed.at = Duration::from_millis(29_999);
    assert_eq!(feed.expire(), 0);
    feed.at = Duration::from_secs(30);
    assert_eq!(feed.expire(), 1);
    assert_eq!(
        feed.store.next_expiry(),
        Some(start + Duration::from_secs(50))
    );
    // A fragment that comes too late begins anew, and the old datagram is counted.
    feed.at = Duration::from_secs(50);
    assert_eq!(feed.from(CLIENT, 2, (8, false), 8), Pending);
    assert_eq!(feed.expire(), 1);
    assert_eq!(feed.store.len(), 1);
}

#[test]
fn a_sender_above_its_share_pushes_out_its_own() {
    let limits = FragmentLimits {
        bytes: 40_000,
        source_bytes: 10_000,
        source_datagrams: 5,
        ..FragmentLimits::default()
    };
    let mut feed = Feed::new(limits);
    assert_eq!(feed.from("10.1.65.6", 1, (0, true), 1400), Pending);
    for ident in 0..1_000 {
        assert_eq!(feed.from(CLIENT, ident, (8, true), 1400), Pending);
        assert!(feed.store.bytes() <= 10_000 + 2_100);
        assert!(feed.store.len() <= 6);
    }
    assert_eq!(feed.store.evicted(), 995);
    // The newest of its own are there, the older are not, and the neighbour's is untouched.
    assert!(matches!(feed.from(CLIENT, 999, (0, true), 8), Pending));
    assert!(matches!(
        feed.from(CLIENT, 999, (1408, false), 8),
        Complete(_)
    ));
    assert!(matches!(
        feed.from("10.1.65.6", 1, (1400, false), 8),
        Complete(_)
    ));
}

#[test]
fn the_oldest_gives_way_where_many_senders_fill_the_store() {
    let limits = FragmentLimits {
        datagrams: 8,
        ..FragmentLimits::default()
    };
    let mut feed = Feed::new(limits);
    for host in 1..=20 {
        assert_eq!(
            feed.from(&format!("10.1.65.{host}"), 1, (0, true), 8),
            Pending
        );
    }
    assert_eq!(feed.store.len(), 8);
    assert_eq!(feed.store.evicted(), 12);
    assert!(matches!(
        feed.from("10.1.65.13", 1, (8, false), 8),
        Complete(_)
    ));
    assert_eq!(feed.from("10.1.65.12", 1, (8, false), 8), Pending);
}

#[test]
fn a_datagram_that_alone_is_too_much_is_refused() {
    let limits = FragmentLimits {
        source_bytes: 3_000,
        ..FragmentLimits::default()
    };
    let mut feed = Feed::new(limits);
    assert_eq!(feed.one(0, true, 1_400), Pending);
    assert_eq!(feed.one(1_400, true, 1_400), Dropped(NoRoom));
    assert!(feed.store.is_empty());
    assert_eq!(feed.store.bytes(), 0);
}
