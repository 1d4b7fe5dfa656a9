#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| anteroom_fuzz_bodies::streams::run(data));
