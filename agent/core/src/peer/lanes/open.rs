//! A lane that is open: its tunnel, and how long it stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lane::LaneId;
use crate::peer::tunnel::Tunnel;

/// How long a peer may be silent on a lane until that isn't used any more.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// How long an order to open is pursued.
pub(super) const PURSUED_FOR: Duration = Duration::from_secs(30);
/// How long a lane stays though nothing passes. Longer than [`ANSWERS_WITHIN`] by far: whoever may still send there
/// must find somebody who opens it.
pub(super) const IDLE: Duration = Duration::from_secs(180);
/// How long a lane stays that the peer began and that nothing came through: a lost message is sent again within that.
pub(super) const UNPROVEN: Duration = Duration::from_secs(10);

/// How long nothing may have passed, either way, until a lane can make room for another. The last that the peer heard came at
/// most ten seconds after that (a keepalive), and for [`ANSWERS_WITHIN`] from then on it may still send there.
pub(super) const SPARE: Duration = Duration::from_secs(40);

/// A lane that there is a tunnel for.
pub(super) struct Lane {
    pub(super) tunnel: Tunnel,
    pub(super) at: LaneId,
    pub(super) term: u32,
    pub(super) to: SocketAddr,
    /// When something last passed, either way.
    pub(super) used: Instant,
    /// When something was last sealed.
    pub(super) sealed: Option<Instant>,
    /// When the peer last showed that it has the keys.
    pub(super) heard: Option<Instant>,
    /// Until when an order to open it holds.
    pub(super) wanted_until: Option<Instant>,
    /// When it was told last that the peer is elsewhere.
    pub(super) strayed: Option<Instant>,
    /// Whether the engine here has ordered it. Otherwise the peer began it, and only the peer did.
    pub(super) ours: bool,
    /// Whether the engine was told that it can be used.
    pub(super) ready: bool,
    /// Since when nothing is sent through it any more, as there are other keys.
    pub(super) retired: Option<Instant>,
    /// When it is to be looked at.
    pub(super) wake_at: Instant,
}

impl Lane {
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }

    /// Whether the peer began it and never showed that it has the keys.
    pub(super) const fn is_unproven(&self) -> bool {
        self.heard.is_none() && self.wanted_until.is_none()
    }

    /// How long it stays though nothing passes.
    pub(super) const fn stays(&self) -> Duration {
        match (self.heard, self.wanted_until) {
            (Some(_), _) => IDLE,
            (None, Some(_)) => PURSUED_FOR,
            (None, None) => UNPROVEN,
        }
    }

    /// Whether nobody sends there: neither end can think that it is good.
    pub(super) fn is_spare(&self, now: Instant) -> bool {
        let last = self.heard.map_or(self.used, |heard| heard.max(self.used));
        let quiet = now.saturating_duration_since(last);
        quiet > if self.heard.is_some() { SPARE } else { UNPROVEN }
    }

    pub(super) fn is_good(&self, now: Instant) -> bool {
        self.tunnel.has_session() && self.silence(now).is_some_and(|time| time <= ANSWERS_WITHIN)
    }
}
