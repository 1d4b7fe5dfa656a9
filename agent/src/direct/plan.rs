//! When a gateway connects to a peer by QUIC, when it lets go again, and which of two connections is kept. It does no
//! I/O and reads no clock.

use std::time::Duration;

use anteroom_proto::id::GatewayId;
use tokio::time::Instant;

/// How long packets must have gone no direct way, or none at all: at a start, WireGuard gets this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How much longer whoever leaves dialling to the other waits for that.
pub(super) const LEFT_TO_THE_OTHER: Duration = Duration::from_secs(10);
/// After a failure, it is tried again after so long, and after up to so long.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// How old a connection must be for both ends to have the same one for certain.
pub(super) const SETTLED: Duration = Duration::from_secs(10);
/// How long a connection must have lasted to have been worth it: some networks let QUIC begin, and end it soon after.
const LASTED: Duration = Duration::from_secs(60);
/// How long WireGuard's own path must have worked before a connection is let go.
pub(super) const KEEP: Duration = Duration::from_secs(60);

/// How it stands with one peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Need {
    /// Since when its packets go no direct way.
    indirect: Option<Instant>,
    /// Since when they do.
    direct: Option<Instant>,
    failures: u32,
    /// Until when it isn't tried.
    rest: Option<Instant>,
    /// When it was tried last.
    tried: Option<Instant>,
}

impl Need {
    /// Notes whether the peer's packets go directly, as WireGuard has it.
    pub(super) fn note(&mut self, directly: bool, now: Instant) {
        let since = |before: Option<Instant>| Some(before.unwrap_or(now));
        (self.direct, self.indirect) =
            if directly { (since(self.direct), None) } else { (None, since(self.indirect)) };
    }

    /// An attempt came to nothing. `random` is any number that differs between gateways.
    pub(super) fn failed(&mut self, now: Instant, random: u32) {
        let whole = PAUSE.0.saturating_mul(1 << self.failures.min(8)).min(PAUSE.1);
        self.failures = self.failures.saturating_add(1);
        let share = f64::from(random) / f64::from(u32::MAX);
        self.rest = Some(now + whole / 2 + (whole / 2).mul_f64(share));
    }

    /// It is tried.
    pub(super) const fn tries(&mut self, now: Instant) {
        self.tried = Some(now);
    }

    /// When it was tried last.
    pub(super) const fn tried(&self) -> Option<Instant> {
        self.tried
    }

    /// Whether the peer's packets go directly, as WireGuard has it.
    pub(super) const fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Since when they do.
    pub(super) const fn direct_since(&self) -> Option<Instant> {
        self.direct
    }

    /// There is a connection, which is so old.
    pub(super) fn is_connected(&mut self, age: Duration) {
        if age >= LASTED {
            self.failures = 0;
            self.rest = None;
        }
    }

    /// A connection ended that was so old. `random`: as with [`Need::failed`].
    pub(super) fn ended(&mut self, age: Duration, now: Instant, random: u32) {
        self.is_connected(age);
        if age < LASTED {
            // Or it would be made anew at once, where the other end or the network doesn't want it.
            self.failed(now, random);
        }
    }

    /// Whether it is time to connect. `first`: it is this end's to do so.
    pub(super) fn dials(&self, first: bool, now: Instant) -> bool {
        let patience = if first { PATIENCE } else { PATIENCE + LEFT_TO_THE_OTHER };
        self.rest.is_none_or(|until| until <= now)
            && self.indirect.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    /// Whether a connection is needed no more.
    pub(super) fn lets_go(&self, now: Instant) -> bool {
        self.direct.is_some_and(|since| now.saturating_duration_since(since) >= KEEP)
    }
}

/// Whether it is first this end's to connect: the other can't, or has the higher id.
pub(super) fn is_first(own: GatewayId, peer: GatewayId, listens: bool) -> bool {
    !listens || own < peer
}

/// Whether a connection that has come to be takes the place of the one before, which is so old. Both ends decide alike: of
/// two that were made at the same time the one that the lower id made is kept, or else the newer. Whoever makes one later
/// has none: it was started anew, or lost the one before. `dialled`: by this end.
pub(super) fn replaces(
    own: GatewayId,
    peer: GatewayId,
    (before, age): (bool, Duration),
    dialled: bool,
) -> bool {
    let by_lower = |dialled: bool| dialled == (own < peer);
    age >= SETTLED || by_lower(dialled) || !by_lower(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: GatewayId = GatewayId::from_bytes([1; 16]);
    const HIGH: GatewayId = GatewayId::from_bytes([2; 16]);

    #[test]
    fn it_is_tried_while_there_is_no_direct_path_and_more_and_more_seldom() {
        let start = Instant::now();
        let mut need = Need::default();
        assert!(!need.dials(true, start + KEEP * 9), "nothing is known");
        need.note(false, start);
        assert!(!need.dials(true, start));
        assert!(need.dials(true, start + PATIENCE));
        assert!(!need.dials(false, start + PATIENCE));
        assert!(need.dials(false, start + PATIENCE + LEFT_TO_THE_OTHER));
        let mut now = start + PATIENCE;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            need.failed(now, u32::MAX);
            need.note(false, now);
            let before = now;
            while !need.dials(true, now) {
                now += Duration::from_secs(1);
            }
            pauses.push(now - before);
        }
        assert_eq!(pauses[..3], [5, 10, 20].map(Duration::from_secs));
        assert_eq!(pauses[11], PAUSE.1);
        need.is_connected(LASTED);
        assert!(need.dials(true, now));
        need.note(true, now);
        assert!(!need.dials(true, now + KEEP), "WireGuard's own path works");
    }

    #[test]
    fn where_connections_dont_last_it_is_tried_more_and_more_seldom() {
        let mut now = Instant::now();
        let mut need = Need::default();
        need.note(false, now);
        now += PATIENCE;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            for age in [0, 15, 30, 59].map(Duration::from_secs) {
                need.is_connected(age);
            }
            now += LASTED / 2;
            need.ended(LASTED / 2, now, u32::MAX);
            let before = now;
            while !need.dials(true, now) {
                now += Duration::from_secs(1);
            }
            pauses.push((now - before).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 120]);
        need.ended(LASTED, now, u32::MAX);
        assert!(need.dials(true, now), "that one was worth it");
        need.ended(Duration::ZERO, now, u32::MAX);
        assert!(need.dials(true, now + PAUSE.0), "and so it is as at first");
    }

    #[test]
    fn it_is_let_go_once_the_direct_path_has_worked_for_a_while() {
        let start = Instant::now();
        let mut need = Need::default();
        need.note(true, start);
        need.note(true, start + KEEP / 2);
        assert!(!need.lets_go(start + KEEP / 2));
        assert!(need.lets_go(start + KEEP));
        need.note(false, start + KEEP);
        need.note(true, start + KEEP);
        assert!(!need.lets_go(start + KEEP + KEEP / 2), "it is counted anew");
    }

    #[test]
    fn both_ends_keep_the_same_of_two() {
        assert!(
            is_first(LOW, HIGH, true) && !is_first(HIGH, LOW, true) && is_first(HIGH, LOW, false)
        );
        // Whoever dialled which first.
        for low_first in [true, false] {
            let kept = |own: GatewayId, peer, low_dialled: bool| {
                let dialled = |by_low: bool| by_low == (own < peer);
                let before = (dialled(low_dialled), Duration::ZERO);
                replaces(own, peer, before, dialled(!low_dialled)) != low_dialled
            };
            assert!(kept(LOW, HIGH, low_first) && kept(HIGH, LOW, low_first));
        }
        for (own, peer) in [(LOW, HIGH), (HIGH, LOW)] {
            for dialled in [true, false] {
                assert!(replaces(own, peer, (dialled, Duration::ZERO), dialled), "the newer");
                assert!(replaces(own, peer, (dialled, SETTLED), !dialled), "one started anew");
            }
        }
    }
}
