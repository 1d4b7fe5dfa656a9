//! How packets of any size get through paths of any size.
//!
//! Every direction of every pair of gateways finds out by itself what gets through ([`path`]), by probes inside the
//! tunnel ([`wire`]): ICMP messages of the underlay are neither authentic nor dependable. What a device sends that is
//! larger, "don't fragment" or not, is cut before it is sealed ([`cut`]) and put together again at the other end
//! ([`join`]), so that the very packet arrives. An outer packet is never fragmented.

pub mod cut;
pub mod join;
pub mod path;
#[cfg(test)]
mod tests;
pub mod wire;

/// The word by which a gateway says that it answers probes and puts parts together.
pub const CAPABILITY: &str = "sizes";
