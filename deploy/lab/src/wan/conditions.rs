//! What one direction of a link does to frames.

use std::net::Ipv4Addr;
use std::time::Duration;

/// What one direction of a link does to frames. The default does nothing to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// Whether anything passes at all.
    pub up: bool,
    /// Share of frames that are lost, from 0 to 1.
    pub loss: f64,
    /// Share of frames that come twice, from 0 to 1.
    pub duplicate: f64,
    /// How long each frame is on its way.
    pub delay: Duration,
    /// How much longer than `delay` a frame may be on its way. It lets no frame overtake another.
    pub jitter: Duration,
    /// Share of frames that are held back, so that later ones overtake them, from 0 to 1.
    pub reorder: f64,
    /// How long these are held back.
    pub held: Duration,
    /// Bits per second, or as many as come.
    pub rate: Option<u64>,
    /// Bytes that wait for their turn at `rate` at most; what comes beyond is dropped.
    pub queue: usize,
    /// What becomes of large packets.
    pub limit: Option<SizeLimit>,
}

/// The largest packet that passes, as where a path has a smaller MTU further on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    /// Bytes from the IP header on.
    pub bytes: usize,
    /// The router that tells the sender by ICMP. None: a black hole.
    pub told_by: Option<Ipv4Addr>,
    /// Whether packets that allow it are cut into fragments instead of being dropped.
    pub cuts: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            up: true,
            loss: 0.0,
            duplicate: 0.0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: 0.0,
            held: Duration::from_millis(10),
            rate: None,
            queue: 256 * 1024,
            limit: None,
        }
    }
}

impl Conditions {
    /// Nothing passes.
    #[must_use]
    pub fn down() -> Self {
        Self { up: false, ..Self::default() }
    }

    /// This share of frames is lost.
    #[must_use]
    pub fn losing(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// Frames take this long, and up to `jitter` longer.
    #[must_use]
    pub fn delayed(self, delay: Duration, jitter: Duration) -> Self {
        Self { delay, jitter, ..self }
    }

    /// This share of frames is overtaken by what comes within `held` behind them.
    #[must_use]
    pub fn reordering(self, reorder: f64, held: Duration) -> Self {
        Self { reorder, held, ..self }
    }

    /// This share of frames comes twice.
    #[must_use]
    pub fn duplicating(self, duplicate: f64) -> Self {
        Self { duplicate, ..self }
    }

    /// So many bits per second pass, and `queue` bytes wait at most.
    #[must_use]
    pub fn limited(self, rate: u64, queue: usize) -> Self {
        Self { rate: Some(rate), queue, ..self }
    }

    /// No larger packets pass, and nobody is told.
    #[must_use]
    pub fn swallowing_above(self, bytes: usize) -> Self {
        Self { limit: Some(SizeLimit { bytes, told_by: None, cuts: false }), ..self }
    }

    /// Larger packets are cut, or their sender is told by `router`.
    #[must_use]
    pub fn with_path_mtu(self, bytes: usize, router: Ipv4Addr) -> Self {
        Self { limit: Some(SizeLimit { bytes, told_by: Some(router), cuts: true }), ..self }
    }
}
