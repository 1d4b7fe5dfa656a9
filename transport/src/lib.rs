//! How an agent and a controller reach each other: QUIC with TLS 1.3, raw public keys (RFC 7250) on both
//! ends, and a key exchange that a quantum computer doesn't undo. A shell crate, shared by both ends.
//!
//! - [`exchange`]: which key exchanges TLS may use, and what to say of a handshake that failed for them;
//! - [`tls`]: who is at the other end, by Ed25519 key;
//! - `endpoint`: one `listen` for the controller, one `connect` for the agent;
//! - `message`: typed, bounded messages over a stream.
//!
//! The last two come with the feature `quic`; whoever speaks HTTPS only needs the first.

#![forbid(unsafe_code)]

#[cfg(feature = "quic")]
pub mod endpoint;
pub mod exchange;
#[cfg(feature = "quic")]
pub mod message;
pub mod tls;
