//! What the tests of the data plane share: the kernel's part in sending, seeded
//! randomness, and streams whose every byte is known from its place.

mod kernel;

pub(super) use kernel::deliver;

/// A small generator of random numbers, the same on every machine (xorshift64*).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// True this many times in a thousand.
    pub(super) fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.below(1000) < u64::from(permille)
    }
}

/// The byte at place `at` of the stream `name`.
fn byte(name: u64, at: u64) -> u8 {
    let mixed = (at ^ name << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as u8
}

/// Writes the bytes of stream `name` from place `at` on.
pub(super) fn fill(name: u64, at: u64, room: &mut [u8]) {
    for (offset, place) in room.iter_mut().enumerate() {
        *place = byte(name, at + offset as u64);
    }
}

/// Panics unless `bytes` are those of stream `name` from place `at` on.
pub(super) fn check(name: u64, at: u64, bytes: &[u8]) {
    for (offset, found) in bytes.iter().enumerate() {
        let place = at + offset as u64;
        assert_eq!(
            *found,
            byte(name, place),
            "stream {name}: wrong byte at {place}, {offset} into {} bytes",
            bytes.len()
        );
    }
}
