//! cargo +nightly fuzz run segment

#![no_main]

#[path = "../targets/segment.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
