//! cargo +nightly fuzz run packet

#![no_main]

#[path = "../targets/packet.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
