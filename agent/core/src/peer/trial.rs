//! Whether a direct path that answers knocks is good enough for packets, asked while they take a relay.
//!
//! That a knock is answered shows that 44 bytes get through. There are networks that let no more through, and some that
//! let the first datagrams of a flow through and no others. So
//!
//! - a *full* knock, as long as a packet, must be answered at an address before a handshake goes there: as long as what
//!   is sent until a path's size is known, or else as what every host takes;
//! - a direct path that died soon after it was taken is taken again after ever longer pauses.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What a peer can do that answers full knocks.
pub(super) const CAPABILITY: &str = "full-knocks";
/// Addresses of which is remembered when they were last asked.
const MAX_ASKED: usize = 4;
/// Least time between two full knocks at one address.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Full knocks in a row at an address of which all but the last are of the usual length.
const TRIES: u32 = 3;
/// For how long a full knock that was answered counts.
const PASSED_FOR: Duration = Duration::from_secs(10);
/// A direct path that was good for so long is trusted again, whatever was before.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// First and longest pause after a direct path that died sooner. It is doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// How long a full knock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// As what is sent until a path's size is known.
    Usual,
    /// As what every host takes.
    Least,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    to: SocketAddr,
    at: Instant,
    /// How many in a row weren't answered.
    count: u32,
}

/// Direct paths to one address that died soon after they were taken.
#[derive(Debug, Clone, Copy)]
struct Setback {
    ip: IpAddr,
    pause: Duration,
    until: Instant,
}

/// What is known of direct paths to one peer.
#[derive(Debug, Default)]
pub(super) struct Trial {
    asked: Vec<Asked>,
    /// Where a full knock was answered last.
    passed: Option<(SocketAddr, Instant)>,
    setback: Option<Setback>,
}

impl Trial {
    /// How long the full knock is that goes to `to`, where it is time for one.
    pub(super) fn ask(&mut self, to: SocketAddr, now: Instant) -> Option<Length> {
        let recent = |asked: &Asked| now.saturating_duration_since(asked.at) < ASK_EVERY;
        if self.asked.iter().any(|asked| asked.to == to && recent(asked)) {
            return None;
        }
        let place = self.asked.iter().position(|asked| asked.to == to);
        let count = match place {
            Some(place) => self.asked.remove(place).count.saturating_add(1),
            None if self.asked.len() < MAX_ASKED => 1,
            None if self.asked.first().is_some_and(recent) => return None,
            None => {
                self.asked.remove(0);
                1
            }
        };
        self.asked.push(Asked { to, at: now, count });
        Some(if count.is_multiple_of(TRIES) { Length::Least } else { Length::Usual })
    }

    /// A full knock at `to` was answered.
    pub(super) fn note_passed(&mut self, to: SocketAddr, now: Instant) {
        self.asked.iter_mut().filter(|asked| asked.to == to).for_each(|asked| asked.count = 0);
        self.passed = Some((to, now));
    }

    /// Whether there is a reason to wait for a full knock's answer, though a handshake went that way: one wasn't answered, or the
    /// path there died lately.
    pub(super) fn is_doubted(&self, at: SocketAddr) -> bool {
        self.setback.is_some_and(|setback| setback.ip == at.ip())
            || self.asked.iter().any(|asked| asked.to == at && asked.count > 0)
    }

    /// Whether one was answered a moment ago.
    pub(super) fn has_passed(&self, at: SocketAddr, now: Instant) -> bool {
        self.passed.is_some_and(|(to, passed)| {
            to == at && now.saturating_duration_since(passed) < PASSED_FOR
        })
    }

    /// The direct path to `ip` died, which packets had taken for so long.
    pub(super) fn note_death(&mut self, ip: IpAddr, lasted: Duration, now: Instant) {
        let before = self.setback.filter(|setback| setback.ip == ip);
        self.passed = None;
        self.setback = (lasted < GOOD_AFTER).then(|| {
            let pause = before.map_or(PAUSE.0, |setback| (setback.pause * 2).min(PAUSE.1));
            Setback { ip, pause, until: now + pause }
        });
    }

    /// Whether a direct path to `ip` isn't to be taken again yet.
    pub(super) fn is_held(&self, ip: IpAddr, now: Instant) -> bool {
        self.setback.is_some_and(|setback| setback.ip == ip && now < setback.until)
    }

    /// This gateway or the peer isn't any more what it was, or where.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
