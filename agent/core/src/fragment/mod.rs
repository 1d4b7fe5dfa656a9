//! IPv4 fragments: made where a packet doesn't fit its path, followed where a device sends them.

pub mod cut;
pub mod track;

pub use cut::Fragments;
pub use track::{Limits, Outcome, Tracker, Whose};
