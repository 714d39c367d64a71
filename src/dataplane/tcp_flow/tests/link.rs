//! One direction of the path between the client and the TUN.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::proxy::Seen;
use crate::dataplane::testing::Random;

/// How a link treats packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Packets lost, in a thousand.
    pub(super) loss: u32,
    /// Packets delivered twice, in a thousand.
    pub(super) repeat: u32,
    /// Packets held back until later ones have passed, in a thousand.
    pub(super) reorder: u32,
    /// The way's duration.
    pub(super) delay: Duration,
}

impl Weather {
    pub(super) const FAIR: Self = Self {
        loss: 0,
        repeat: 0,
        reorder: 0,
        delay: Duration::from_micros(100),
    };

    pub(super) const FOUL: Self = Self {
        loss: 50,
        repeat: 50,
        reorder: 50,
        ..Self::FAIR
    };
}

/// Decides over single packets before the weather does: true lets them pass.
pub(super) type Filter = Box<dyn FnMut(&Seen) -> bool>;

/// A link with packets on their way.
pub(super) struct Link {
    pub(super) weather: Weather,
    pub(super) filter: Option<Filter>,
    random: Random,
    /// By time of arrival, then by order of departure.
    under_way: BTreeMap<(Instant, u64), Vec<u8>>,
    sent: u64,
}

impl Link {
    pub(super) fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            filter: None,
            random: Random::new(seed),
            under_way: BTreeMap::new(),
            sent: 0,
        }
    }

    pub(super) fn send(&mut self, now: Instant, packet: Vec<u8>) {
        if let Some(filter) = &mut self.filter
            && !filter(&Seen::read(&packet))
        {
            return;
        }
        if self.random.chance(self.weather.loss) {
            return;
        }
        if self.random.chance(self.weather.repeat) {
            self.depart(now, packet.clone());
        }
        self.depart(now, packet);
    }

    /// A packet that has arrived by now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (at, _) = *self.under_way.first_key_value()?.0;
        if at > now {
            return None;
        }
        self.under_way.pop_first().map(|(_, packet)| packet)
    }

    /// When the next packet arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    fn depart(&mut self, now: Instant, packet: Vec<u8>) {
        let mut at = now + self.weather.delay;
        if self.random.chance(self.weather.reorder) {
            at += self.weather.delay * (1 + self.random.below(8) as u32);
        }
        self.sent += 1;
        self.under_way.insert((at, self.sent), packet);
    }
}
