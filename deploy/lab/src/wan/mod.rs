//! Networks that misbehave, and stay the same each time: for tests of what has to come through them.
//!
//! - [`link`]: a cable that loses, delays, reorders, duplicates, limits, or takes no large packets, each direction by
//!   itself, changed while it runs;
//! - [`router`]: a router in user space that translates addresses in each way that matters, or filters without doing so;
//! - [`kernel`]: the two kinds of translation that the kernel does by itself;
//! - [`probe`]: three hosts that find out by asking which kind a router is (RFC 4787, RFC 5780).
//!
//! Each is a host of its own (see [`crate::topology`]) with two interfaces and a thread that moves frames between them.
//! What chance decides follows from a seed. Objects without sockets or a clock do the thinking: [`direction`],
//! [`nat`] and [`router::Router`].

pub mod chance;
pub mod conditions;
pub mod direction;
mod ends;
pub mod ipv4;
pub mod kernel;
pub mod link;
mod mover;
pub mod nat;
mod oversize;
pub mod probe;
pub mod router;

pub use ends::Attach;

#[cfg(test)]
mod tests;
