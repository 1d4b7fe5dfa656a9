//! How an agent and a controller reach each other: QUIC, or TLS over TCP where UDP doesn't get through, with TLS 1.3, raw
//! public keys (RFC 7250) on both ends, and a key exchange that a quantum computer doesn't undo. A shell crate, shared by both ends.
//!
//! - [`exchange`]: which key exchanges TLS may use, and what to say of a handshake that failed for them;
//! - [`tls`]: who is at the other end, by Ed25519 key;
//! - `endpoint`: QUIC: one `listen` for the controller, one `connect` for the agent;
//! - `direct`: QUIC between two gateways, silent to strangers;
//! - `tcp`: the same over TCP;
//! - `dial`: whichever of the two gets through;
//! - `egress`: by which way connections leave a machine that has two;
//! - `answers`: what the other end of a QUIC connection has acknowledged;
//! - `link`: a connection, whichever of the two it took;
//! - `datagrams`: what a connection carries beside messages, many at once;
//! - `lost`: what of these its queues have thrown away;
//! - `gather`: a socket that hands the system many datagrams at once, where packets are carried;
//! - `mirror`: a relay's socket, which tells gateways, and whoever asks, how theirs looks from outside;
//! - `network`: what counts as one address;
//! - `sifted`: a socket that something looks at before QUIC does;
//! - `message`: typed, bounded messages over a stream.
//!
//! All but the first two come with the feature `quic`; whoever speaks HTTPS only needs the first.

#![forbid(unsafe_code)]

#[cfg(feature = "quic")]
mod answers;
#[cfg(feature = "quic")]
pub mod datagrams;
#[cfg(feature = "quic")]
pub mod dial;
#[cfg(feature = "quic")]
pub mod direct;
#[cfg(feature = "quic")]
pub mod egress;
#[cfg(feature = "quic")]
pub mod endpoint;
pub mod exchange;
#[cfg(feature = "quic")]
mod gather;
#[cfg(feature = "quic")]
pub mod link;
#[cfg(feature = "quic")]
pub mod lost;
#[cfg(feature = "quic")]
pub mod message;
#[cfg(feature = "quic")]
pub mod mirror;
#[cfg(feature = "quic")]
pub mod network;
#[cfg(feature = "quic")]
mod sifted;
#[cfg(feature = "quic")]
pub mod tcp;
pub mod tls;
