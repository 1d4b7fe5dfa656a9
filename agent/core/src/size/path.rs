//! Finds out how large a packet gets through to one peer: packetization layer path MTU discovery (RFC 8899).
//!
//! Three probes at once find the usual sizes in one round trip; what lies between is searched by halves. A size counts
//! as refused after [`TRIES`] probes of it were lost, and as good once one was answered. While large packets are under
//! way, a probe of the size in use is sent every [`CONFIRM_EVERY`]: a path that carries it no more ("black hole") shows
//! by that, since nobody reports it. Whether a path has grown is looked at now and then, ever more seldom.
//!
//! Each end looks after the direction in which it sends. Time and nonces come from outside.

use std::time::{Duration, Instant};

/// Probes of one size after whose loss it is taken not to get through (RFC 8899: `MAX_PROBES`).
pub const TRIES: u8 = 3;
/// How often the size in use is confirmed while it is used.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(1);
/// First and longest pause until it is looked whether the path has grown (RFC 8899: `PMTU_RAISE_TIMER`).
pub const RAISE_AFTER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// Least time between two searches from the beginning, however often the path changes.
const START_EVERY: Duration = Duration::from_secs(1);
/// The search ends when it is this near.
const GRAIN: u16 = 8;
/// A path counts as grown from this on.
const GROWN: u16 = 16;
/// Probes whose answers are still taken.
const IN_FLIGHT: usize = 8;

/// What sizes of packets, as they are before they are sealed, come into question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// What is used when nothing larger gets through; never probed.
    pub floor: u16,
    /// What is used until something is known.
    pub base: u16,
    /// What gets through most paths, worth a probe of its own.
    pub usual: u16,
    /// What the own interface carries, or the largest that is of use.
    pub ceiling: u16,
}

impl Bounds {
    /// Bounds in order, whatever they were.
    #[must_use]
    pub fn ordered(self) -> Self {
        let ceiling = self.ceiling;
        let base = self.base.min(ceiling);
        Self { floor: self.floor.min(base), base, usual: self.usual.clamp(base, ceiling), ceiling }
    }
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer answers no probes, or isn't there.
    Off,
    /// Sizes are tried.
    Search,
    /// The size is known; this is when to look whether the path has grown.
    Done(Option<Instant>),
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    nonce: u64,
    size: u16,
}

/// The path to one peer, in the direction in which this gateway sends.
#[derive(Debug, Clone)]
pub struct PathMtu {
    bounds: Bounds,
    phase: Phase,
    /// The largest size that gets through, as far as is known.
    low: u16,
    /// Whether a probe of `low` was answered in this search, or nothing smaller could be tried.
    sure: bool,
    /// The smallest size that is taken not to get through. Above the ceiling when there is none.
    refused: u16,
    /// Whether the search only looks if a path that is known has grown.
    raising: bool,
    /// The size that is tried, and how often it was.
    target: (u16, u8),
    /// When the search goes on.
    next: Instant,
    /// When it last began from the beginning.
    started: Option<Instant>,
    raise: Duration,
    /// Sizes to be tried at once, and whether their answers are waited for.
    burst: [u16; 3],
    opening: bool,
    /// When the size in use is confirmed, if it is used, and how often that was tried.
    confirm: Option<(Instant, u8)>,
    confirmed: Option<Instant>,
    flight: [Option<Probe>; IN_FLIGHT],
    cursor: usize,
}

impl PathMtu {
    /// A path of which nothing is known.
    #[must_use]
    pub fn new(bounds: Bounds, now: Instant) -> Self {
        let bounds = bounds.ordered();
        Self {
            bounds,
            phase: Phase::Off,
            low: bounds.base,
            sure: false,
            refused: bounds.ceiling.saturating_add(1),
            raising: false,
            target: (0, 0),
            next: now,
            started: None,
            raise: RAISE_AFTER.0,
            burst: [0; 3],
            opening: false,
            confirm: None,
            confirmed: None,
            flight: [None; IN_FLIGHT],
            cursor: 0,
        }
    }

    /// Largest packet, before it is sealed, that is sent in one piece.
    #[must_use]
    pub const fn limit(&self) -> u16 {
        self.low
    }

    /// Whether the limit was found out, and isn't just being looked for.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        matches!(self.phase, Phase::Done(_)) || self.raising
    }

    /// Whether a probe of the size in use was answered.
    const fn is_proven(&self) -> bool {
        self.sure && self.low > self.bounds.floor
    }

    /// Whether probes are sent at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        !matches!(self.phase, Phase::Off)
    }

    /// The bounds.
    #[must_use]
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Begins from the beginning: the peer is there, or is reached another way.
    pub fn start(&mut self, now: Instant) {
        // One that was put off is still to come.
        let pending = |at: &Instant| *at > now;
        let earliest = self.started.map(|at| if pending(&at) { at } else { at + START_EVERY });
        self.next = earliest.filter(pending).unwrap_or(now);
        self.started = Some(self.next);
        self.phase = Phase::Search;
        self.low = self.bounds.base;
        self.sure = false;
        self.refused = self.bounds.ceiling.saturating_add(1);
        self.raising = false;
        self.raise = RAISE_AFTER.0;
        self.target = (0, 0);
        let Bounds { base, usual, ceiling, .. } = self.bounds;
        self.burst = [ceiling, usual, base];
        self.opening = true;
        self.confirm = None;
        self.flight = [None; IN_FLIGHT];
    }

    /// Stops probing; what needs no proof is used.
    pub fn stop(&mut self, now: Instant) {
        *self = Self::new(self.bounds, now);
    }

    /// Takes over other bounds: of another interface, or another way to the peer. `moved`: what is known doesn't hold
    /// any more.
    pub fn set_bounds(&mut self, bounds: Bounds, moved: bool, now: Instant) {
        let bounds = bounds.ordered();
        if bounds == self.bounds && !moved {
            return;
        }
        let before = std::mem::replace(&mut self.bounds, bounds);
        if !self.is_on() {
            self.stop(now);
        } else if moved || bounds.ceiling < self.low || bounds.base > self.low {
            self.start(now);
        } else if bounds.ceiling != before.ceiling {
            self.look_for_more(now);
        }
    }

    /// A packet of `len` bytes is sent. Says whether [`Self::poll_timeout`] may have changed.
    #[must_use]
    pub fn note_use(&mut self, len: usize, now: Instant) -> bool {
        let small = len <= usize::from(self.bounds.floor);
        if self.confirm.is_some() || small || !self.is_on() || !self.is_proven() {
            return false;
        }
        let due = self.confirmed.map_or(now, |at| (at + CONFIRM_EVERY).max(now));
        self.confirm = Some((due, 0));
        true
    }

    /// Something hints that the size in use gets through no more. A hint is looked into, not believed.
    pub fn suspect(&mut self, now: Instant) {
        let tries = self.confirm.map_or(0, |(_, tries)| tries);
        if self.is_on() && self.is_proven() && tries == 0 {
            let soon = self.confirmed.map_or(now, |at| (at + CONFIRM_EVERY / 4).max(now));
            self.confirm = Some((self.confirm.map_or(soon, |(at, _)| at.min(soon)), 0));
        }
    }

    /// When [`Self::probe`] has something to send.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let search = match self.phase {
            Phase::Off => return None,
            Phase::Search => Some(self.next),
            Phase::Done(raise) => raise,
        };
        [search, self.confirm.map(|(at, _)| at)].into_iter().flatten().min()
    }

    /// The size of the probe that is to be sent now, with this nonce, if one is. Called until there is none.
    /// `patience` is how long the answer to a probe may take.
    pub fn probe(&mut self, nonce: u64, patience: Duration, now: Instant) -> Option<u16> {
        let size = self.due(patience, now)?;
        let place = self.cursor % IN_FLIGHT;
        self.cursor = place + 1;
        self.flight[place] = Some(Probe { nonce, size });
        Some(size)
    }

    fn due(&mut self, patience: Duration, now: Instant) -> Option<u16> {
        if let Some((at, tries)) = self.confirm.filter(|(at, _)| *at <= now) {
            if tries < TRIES {
                self.confirm = Some((at.max(now) + patience, tries + 1));
                return Some(self.low);
            }
            // What got through gets through no more.
            self.start(now);
        }
        match self.phase {
            Phase::Off => return None,
            Phase::Done(Some(at)) if at <= now => self.look_for_more(now),
            Phase::Done(_) => return None,
            Phase::Search => {}
        }
        if self.next > now {
            return None;
        }
        let largest = self.burst.iter().copied().max().unwrap_or(0);
        if largest > 0 {
            for size in &mut self.burst {
                if *size == largest {
                    *size = 0;
                }
            }
            if self.burst == [0; 3] {
                self.next = now + patience;
            }
            return Some(largest);
        }
        self.opening = false;
        loop {
            let Some(size) = self.candidate() else {
                self.finish(now);
                return None;
            };
            if self.target.0 != size {
                self.target = (size, 0);
            }
            if self.target.1 < TRIES {
                self.target.1 += 1;
                self.next = now + patience;
                return Some(size);
            }
            self.refuse(size);
        }
    }

    /// The size to be tried next; `None` when all is known that is worth it.
    fn candidate(&self) -> Option<u16> {
        let Bounds { usual, ceiling, .. } = self.bounds;
        if !self.sure {
            return Some(self.low);
        }
        if self.low >= ceiling {
            return None;
        }
        if self.refused > ceiling {
            return Some(ceiling);
        }
        let gap = self.refused.saturating_sub(self.low);
        if self.raising {
            return (gap > GROWN).then_some(self.low + GROWN);
        }
        if self.low < usual && usual < self.refused {
            return Some(usual);
        }
        (gap > GRAIN).then_some(self.low + gap / 2)
    }

    fn refuse(&mut self, size: u16) {
        self.target = (0, 0);
        self.refused = self.refused.min(size);
        if size <= self.low {
            // Not even the base. The floor is used unproven: below it nothing would be worth sending.
            self.low = self.bounds.floor;
            self.sure = true;
            self.raising = false;
        }
    }

    fn finish(&mut self, now: Instant) {
        let raise = (self.low < self.bounds.ceiling).then(|| now + self.raise);
        self.raise = (self.raise * 2).min(RAISE_AFTER.1);
        self.raising = false;
        self.phase = Phase::Done(raise);
    }

    fn look_for_more(&mut self, now: Instant) {
        self.phase = Phase::Search;
        self.raising = self.is_proven();
        self.refused = self.bounds.ceiling.saturating_add(1);
        self.target = (0, 0);
        self.next = now;
    }

    /// The answer to a probe came. Says whether [`Self::poll_timeout`] may have changed.
    pub fn answered(&mut self, nonce: u64, now: Instant) -> bool {
        let place = self.flight.iter().position(|probe| probe.is_some_and(|p| p.nonce == nonce));
        let Some(size) = place.and_then(|place| self.flight[place].take()).map(|probe| probe.size)
        else {
            return false;
        };
        if size >= self.low {
            self.confirmed = Some(now);
            self.confirm = None;
            self.sure = true;
        }
        if size >= self.refused {
            // It was late, or the path has grown meanwhile.
            self.refused = self.bounds.ceiling.saturating_add(1);
        }
        if size > self.low {
            self.low = size.min(self.bounds.ceiling);
            self.raising = false;
            self.raise = RAISE_AFTER.0;
        }
        let larger = |probe: &Probe| probe.size > self.low;
        let waits =
            self.burst != [0; 3] || (self.opening && self.flight.iter().flatten().any(larger));
        if self.phase == Phase::Search && size >= self.target.0 && !waits {
            self.target = (0, 0);
            self.next = now;
        }
        true
    }
}
