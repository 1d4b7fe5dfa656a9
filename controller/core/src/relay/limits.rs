//! What a relay may hold.

use std::time::Duration;

use super::Rate;

/// How much a relay takes upon itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Gateways at once.
    pub gateways: usize,
    /// Bytes that may wait for one gateway.
    pub inbox: usize,
    /// Bytes that one gateway may have waiting for all others together.
    pub outbox: usize,
    /// Bytes that may wait in all.
    pub waiting: usize,
    /// How long a packet may wait.
    pub patience: Duration,
    /// How fast each gateway may send; none for as fast as the others leave room.
    pub rate: Option<Rate>,
    /// Gateways of which the newest pass number is remembered.
    pub remembered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            gateways: 10_000,
            inbox: 1024 * 1024,
            outbox: 2 * 1024 * 1024,
            waiting: 256 * 1024 * 1024,
            patience: Duration::from_millis(250),
            rate: None,
            remembered: 65_536,
        }
    }
}
