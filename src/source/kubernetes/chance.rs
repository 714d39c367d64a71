//! Randomness for waits: so that nodes do not act together, not to be secret.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A sequence of random numbers (SplitMix64, Steele et al. 2014).
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// Different each time: the system's randomness is in `RandomState`.
    pub(super) fn new() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// A number from 0 to below 1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let top = u32::try_from(z >> 32).unwrap_or_default();
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_in_range_and_differ() {
        let mut chance = Chance(1);
        let numbers: Vec<f64> = (0..1000).map(|_| chance.next()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let low = numbers.iter().filter(|n| **n < 0.5).count();
        assert!((400..600).contains(&low), "{low}");
    }
}
