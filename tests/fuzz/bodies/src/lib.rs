//! What the fuzzers do with their bytes, and the invariants that they hold against.
//!
//! Each module is one fuzzer: its `run` takes any bytes and panics where something that must always hold doesn't. `cargo
//! fuzz` (see `tests/fuzz`) looks for such bytes; `tests/replay.rs` runs those that were kept through the same functions
//! on a stable compiler.

#![forbid(unsafe_code)]

pub mod documents;
pub mod engine;
pub mod frames;
mod kept;
pub mod peer;
pub mod sensor;
mod sizes;
pub mod streams;
pub mod text;

/// A fuzzer: takes any bytes, panics where an invariant doesn't hold.
pub type Body = fn(&[u8]);

/// All fuzzers by name, which is also the name of their directory under `tests/fuzz/corpus`.
pub const ALL: [(&str, Body); 7] = [
    ("documents", documents::run),
    ("engine", engine::run),
    ("frames", frames::run),
    ("peer", peer::run),
    ("sensor", sensor::run),
    ("streams", streams::run),
    ("text", text::run),
];
