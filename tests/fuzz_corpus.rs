//! Replays the corpus of the fuzz targets in `fuzz/`, and some thousand inputs made
//! from a fixed seed, so that `cargo test` finds what a fuzzer found once.

#![expect(
    clippy::print_stdout,
    reason = "a failing input is told so that it can be kept"
)]

#[path = "../fuzz/targets/packet.rs"]
mod packet;
#[path = "../fuzz/targets/segment.rs"]
mod segment;

use std::fs;
use std::path::Path;

/// Every file of a target's corpus.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable corpus").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
        .iter()
        .map(|file| fs::read(file).expect("a readable file"))
        .collect()
}

/// xorshift64*, from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// Runs the corpus, variations of it and noise; says which input it was.
fn replay(target: &str, run: fn(&[u8]), rounds: u64) {
    let corpus = corpus(target);
    for input in &corpus {
        run(input);
    }
    for seed in 1..=rounds {
        let mut random = Random(seed);
        random.next();
        let mut input = if seed % 2 == 0 {
            let len = random.next() as usize % 600;
            random.bytes(len)
        } else {
            corpus[random.next() as usize % corpus.len()].clone()
        };
        for _ in 0..random.next() % 8 {
            if !input.is_empty() {
                let at = random.next() as usize % input.len();
                input[at] = random.next() as u8;
            }
        }
        if let Err(panic) = std::panic::catch_unwind(|| run(&input)) {
            println!("seed {seed}: {input:02x?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn packet_corpus() {
    replay("packet", packet::run, 4_000);
}

#[test]
fn segment_corpus() {
    replay("segment", segment::run, 4_000);
}
