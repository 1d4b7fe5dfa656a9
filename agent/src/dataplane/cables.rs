//! What devices and the network are shown of the cables on the gateway's other side.

use std::time::Duration;

use tokio::time::Instant;

/// How long a cable has to be dead before the other side is shown that. A moment's loss, as when a switch
/// renegotiates, shouldn't make anybody start over.
const DARK: Duration = Duration::from_secs(1);

/// How long both ends of a cable may take to agree once it is switched on again.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// How long after the uplink was switched it is looked at, and switched once more where that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether a cable is live, as far as the other side is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// It wasn't live since the start: nothing that anybody would have to be told.
    Unseen,
    /// It is.
    Live,
    /// It isn't; the other side is still on, and stays so until a while after this.
    Lost(Instant),
    /// It isn't, and the other side is off to show it.
    Mirrored,
}

/// What is to be done to show the one side what the other is like. The ports are switched on again by whoever opens
/// interfaces that are there again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Switch the ports off.
    PortsOff,
    /// Switch the uplink off.
    UplinkOff,
    /// Switch the uplink on.
    UplinkOn,
}

/// A look at the cables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// The uplink's is live.
    pub(super) uplink: bool,
    /// The uplink is switched on.
    pub(super) uplink_on: bool,
    /// The port's is live. Counts only where the uplink follows it.
    pub(super) port: bool,
}

/// The uplink's cable and, where the uplink is to follow it, the only port's.
#[derive(Debug)]
pub(super) struct Cables {
    uplink: Carrier,
    port: Option<Carrier>,
    /// The uplink was switched on or off to follow the port, and hasn't been seen to be so: when to look again.
    switched: Option<Instant>,
    /// Whether the uplink is off by that, or may be.
    off: bool,
}

impl Cables {
    /// `follows`: whether the network is shown the port's cable.
    pub(super) fn new(follows: bool, now: Instant) -> Self {
        // The network may have been shown a dead port until a moment ago, by an agent that ended since.
        let port = follows.then_some(Carrier::Lost(now));
        Self { uplink: Carrier::Unseen, port, switched: None, off: false }
    }

    /// Whether the port's cable counts.
    pub(super) fn follows(&self) -> bool {
        self.port.is_some()
    }

    /// Whether the ports are off to show a dead uplink.
    pub(super) fn ports_are_off(&self) -> bool {
        self.uplink == Carrier::Mirrored
    }

    /// Whether the uplink is off to show a dead port, or may be.
    pub(super) fn uplink_is_off(&self) -> bool {
        self.off
    }

    /// Notes how the cables are.
    pub(super) fn seen(&mut self, seen: Seen, now: Instant) -> Option<Act> {
        let mut act = self.notice(seen, now);
        let shown = self.port == Some(Carrier::Mirrored);
        if act.is_none() && self.off && !shown {
            // It was to be switched on. Once it is, whoever else switches it off may.
            self.off = !seen.uplink_on;
            act = self.off.then_some(Act::UplinkOn);
        }
        self.switched = act.map(|_| now + AGAIN);
        act
    }

    fn notice(&mut self, seen: Seen, now: Instant) -> Option<Act> {
        if self.port == Some(Carrier::Mirrored) {
            // The uplink is dead because it was switched off.
            if !seen.port {
                return seen.uplink_on.then_some(Act::UplinkOff);
            }
            self.port = Some(Carrier::Live);
            if self.uplink != Carrier::Unseen {
                self.uplink = Carrier::Lost(now + NEGOTIATION);
            }
            return Some(Act::UplinkOn);
        }
        let before = self.uplink;
        self.uplink = match (before, seen.uplink) {
            (_, true) => Carrier::Live,
            (Carrier::Live, false) => Carrier::Lost(now),
            (other, false) => other,
        };
        self.port = self.port.map(|port| match (port, seen.port) {
            // It is dead because it was switched off.
            (_, false) if self.uplink == Carrier::Mirrored => Carrier::Unseen,
            (_, false) if before == Carrier::Mirrored => Carrier::Lost(now + NEGOTIATION),
            (_, true) => Carrier::Live,
            (Carrier::Live, false) => Carrier::Lost(now),
            (other, false) => other,
        });
        None
    }

    /// When something has been dark for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        let dark = |carrier: Carrier| match carrier {
            Carrier::Lost(since) => Some(since + DARK),
            _ => None,
        };
        if self.port == Some(Carrier::Mirrored) {
            return self.switched;
        }
        let cables = [Some(self.uplink), self.port].into_iter().flatten().filter_map(dark);
        cables.chain(self.switched).min()
    }

    /// What is dark by now is shown to the other side. The cables are to be looked at after each call, since what was
    /// switched may not be.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Act> {
        let due = |carrier: Carrier| matches!(carrier, Carrier::Lost(since) if since + DARK <= now);
        if self.switched.is_some_and(|at| at <= now) {
            self.switched = Some(now + AGAIN);
        }
        if self.port == Some(Carrier::Mirrored) {
            return None;
        }
        if due(self.uplink) {
            self.uplink = Carrier::Mirrored;
            self.port = self.port.map(|_| Carrier::Unseen);
            return Some(Act::PortsOff);
        }
        if self.port.is_some_and(due) {
            self.port = Some(Carrier::Mirrored);
            self.off = true;
            self.switched = Some(now + AGAIN);
            return Some(Act::UplinkOff);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const fn seen(uplink: bool, port: bool) -> Seen {
        Seen { uplink, uplink_on: true, port }
    }

    /// Both live, at this moment.
    fn live(follows: bool) -> (Cables, Instant) {
        let now = Instant::now();
        let mut cables = Cables::new(follows, now);
        assert_eq!(cables.seen(seen(true, true), now), None);
        assert_eq!(cables.due(), None);
        (cables, now)
    }

    #[test]
    fn a_dead_uplink_is_shown_after_a_while_and_a_moment_isnt() {
        for follows in [false, true] {
            let (mut cables, now) = live(follows);
            cables.seen(seen(false, true), now);
            assert_eq!(cables.expire(now + SECOND / 2), None);
            cables.seen(seen(true, true), now + SECOND / 2);
            assert_eq!((cables.due(), cables.expire(now + SECOND * 2)), (None, None));
            cables.seen(seen(false, true), now);
            assert_eq!(cables.due(), Some(now + SECOND));
            assert_eq!(cables.expire(now + SECOND), Some(Act::PortsOff));
            assert!(cables.ports_are_off());
            // The ports are dead by our own hand.
            assert_eq!(cables.seen(seen(false, false), now + SECOND), None);
            assert_eq!(cables.due(), None);
            // Back: the port takes its time.
            assert_eq!(cables.seen(seen(true, false), now + SECOND * 9), None);
            assert!(!cables.ports_are_off());
            assert_eq!(cables.expire(now + SECOND * 15), None);
            cables.seen(seen(true, true), now + SECOND * 16);
            assert_eq!(cables.due(), None);
        }
    }

    #[test]
    fn a_port_is_shown_where_the_uplink_follows_it_and_nowhere_else() {
        let (mut cables, now) = live(false);
        assert_eq!(cables.seen(seen(true, false), now), None);
        assert_eq!((cables.due(), cables.expire(now + SECOND * 100)), (None, None));

        let (mut cables, now) = live(true);
        assert_eq!(cables.seen(seen(true, false), now), None);
        assert_eq!(cables.expire(now + SECOND / 2), None);
        assert_eq!(cables.expire(now + SECOND), Some(Act::UplinkOff));
        // The uplink is dead by our own hand, and its port stays on, or nobody would see the device return.
        let off = Seen { uplink: false, uplink_on: false, port: false };
        assert_eq!(cables.seen(off, now + SECOND), None);
        assert_eq!((cables.due(), cables.expire(now + SECOND * 100)), (None, None));
        assert!(!cables.ports_are_off());
        // Somebody else switched it on.
        assert_eq!(cables.seen(seen(true, false), now + SECOND * 2), Some(Act::UplinkOff));
        let back = Seen { port: true, ..off };
        let later = now + SECOND * 3;
        assert_eq!(cables.seen(back, later), Some(Act::UplinkOn));
        // It takes its time, too, and only then counts as dead itself.
        assert_eq!(cables.seen(seen(false, true), later), None);
        assert_eq!(cables.expire(later + NEGOTIATION), None);
        assert_eq!(cables.expire(later + NEGOTIATION + DARK), Some(Act::PortsOff));
    }

    #[test]
    fn an_uplink_that_isnt_switched_is_switched_again_until_it_is() {
        let (mut cables, now) = live(true);
        assert!(!cables.uplink_is_off());
        cables.seen(seen(true, false), now);
        assert_eq!(cables.expire(now + SECOND), Some(Act::UplinkOff));
        assert!(cables.uplink_is_off(), "or may be");
        // It wasn't switched off: no change tells of that.
        assert_eq!(cables.due(), Some(now + SECOND * 2));
        assert_eq!(cables.expire(now + SECOND * 2), None);
        assert_eq!(cables.due(), Some(now + SECOND * 3), "should the uplink be unreadable");
        assert_eq!(cables.seen(seen(true, false), now + SECOND * 2), Some(Act::UplinkOff));
        let off = Seen { uplink: false, uplink_on: false, port: false };
        assert_eq!(cables.seen(off, now + SECOND * 3), None);
        assert_eq!(cables.due(), None);
        let back = Seen { port: true, ..off };
        for tries in 4..20 {
            let now = now + SECOND * tries;
            assert_eq!(cables.seen(back, now), Some(Act::UplinkOn), "{tries}");
            assert!(cables.uplink_is_off());
            assert_eq!(cables.due(), Some(now + SECOND));
            let act = cables.expire(now + SECOND);
            assert!(matches!(act, None | Some(Act::PortsOff)), "{act:?}");
        }
        let on = Seen { uplink_on: true, ..back };
        assert_eq!(cables.seen(on, now + SECOND * 20), None);
        assert!(!cables.uplink_is_off());
        // An administrator switches it off: that is no matter of ours.
        assert_eq!(cables.seen(back, now + SECOND * 21), None);
    }

    #[test]
    fn a_device_that_is_off_when_the_agent_starts_is_shown_too() {
        let now = Instant::now();
        let mut cables = Cables::new(true, now);
        assert_eq!(cables.seen(seen(true, false), now), None);
        assert_eq!(cables.expire(now + SECOND), Some(Act::UplinkOff));
    }

    #[test]
    fn both_dead_at_once_come_back_in_either_order() {
        for uplink_first in [true, false] {
            let (mut cables, now) = live(true);
            let ports = !uplink_first;
            cables.seen(seen(!uplink_first, !ports), now);
            cables.seen(seen(false, false), now + SECOND / 10);
            let act = cables.expire(now + SECOND);
            let shown = if uplink_first { Act::PortsOff } else { Act::UplinkOff };
            assert_eq!(act, Some(shown));
            assert_eq!(cables.expire(now + SECOND * 20), None, "one side stays on");
            let back = now + SECOND * 30;
            let act = cables
                .seen(Seen { uplink: uplink_first, uplink_on: uplink_first, port: ports }, back);
            assert_eq!(act, ports.then_some(Act::UplinkOn));
            cables.seen(seen(true, true), back + SECOND);
            assert_eq!(cables.due(), None);
        }
    }
}
