//! Blast radius: how far a compromised device could reach.

use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::resolve::Resolved;

/// How far a compromised device could reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlastRadius {
    /// Pairs of a member and a service that rules open to it.
    pub pairs: usize,
    /// Pairs of an external and a service that rules open to it.
    pub external_pairs: usize,
    /// Members that it reaches on any port, because neither end is in enforce or because they share a port.
    pub unguarded: usize,
}

/// How far the device `member` could reach at `now`.
#[must_use]
pub fn blast_radius(resolved: &Resolved, member: MemberId, now: UnixMillis) -> BlastRadius {
    let _ = (resolved, member, now);
    BlastRadius::default()
}
