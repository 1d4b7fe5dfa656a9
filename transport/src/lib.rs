//! How an agent and a controller reach each other: QUIC with TLS 1.3, raw public keys (RFC 7250) on both
//! ends, and a key exchange that a quantum computer doesn't undo. A shell crate, shared by both ends.
//!
//! - [`tls`]: who is at the other end, by Ed25519 key;
//! - [`endpoint`]: one [`endpoint::listen`] for the controller, one [`endpoint::connect`] for the agent;
//! - [`message`]: typed, bounded messages over a stream.

#![forbid(unsafe_code)]

pub mod endpoint;
pub mod message;
pub mod tls;
