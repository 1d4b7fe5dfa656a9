//! How messages and datagrams share one TCP connection, where nothing but that gets through.
//!
//! Each is behind four bytes, big-endian: one that says what it is (0: a message, 1: a datagram), three with its
//! length. Messages are CBOR, as on a QUIC stream.

use serde::Serialize;

use super::packet;
use crate::cbor;

/// Length of the prefix in bytes.
pub const PREFIX_LEN: usize = 4;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Message,
    /// A datagram.
    Datagram,
}

/// A prefix that can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither message nor datagram.
    #[error("a frame of kind {0} is neither a message nor a datagram")]
    Kind(u8),
    /// Too long.
    #[error("a frame of {len} bytes is longer than the {max} that are read here")]
    TooLong {
        /// Length announced.
        len: usize,
        /// Length allowed.
        max: usize,
    },
}

/// What a prefix announces: the kind, and how many bytes follow. Messages may have `max` bytes.
///
/// # Errors
/// [`FrameError`].
pub fn announced(prefix: [u8; PREFIX_LEN], max: usize) -> Result<(Kind, usize), FrameError> {
    let [kind, a, b, c] = prefix;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    let (kind, max) = match kind {
        0 => (Kind::Message, max),
        1 => (Kind::Datagram, packet::MAX_LEN),
        other => return Err(FrameError::Kind(other)),
    };
    if len > max { Err(FrameError::TooLong { len, max }) } else { Ok((kind, len)) }
}

/// A message behind its prefix.
#[must_use]
pub fn message<T: Serialize>(message: &T) -> Vec<u8> {
    framed(0, &cbor::encode(message))
}

/// A datagram behind its prefix.
#[must_use]
pub fn datagram(datagram: &[u8]) -> Vec<u8> {
    framed(1, datagram)
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    // Nobody writes what is longer than three bytes of length can say: all that is sent is bounded far below.
    let [_, a, b, c] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = Vec::with_capacity(PREFIX_LEN + body.len());
    bytes.extend_from_slice(&[kind, a, b, c]);
    bytes.extend_from_slice(body);
    bytes
}
