//! Bypasses: gateways that are out of the wire for a while, their cables patched through.
//!
//! Orders come in views and in files; for each gateway the one with the highest serial stands. What it allows
//! ends by the same rules of time as a rule's `expires`: where nobody has confirmed the time since the start, an
//! order from a view allows nothing. One that was loaded from a file into this running machine is counted from
//! then by the monotonic clock, for whoever stands beside it with a patient waiting may have no clock in reach.
//!
//! What isn't counted that way opens no earlier than the longest bypass before its end: an order that bears a later
//! date than the day on which it was signed would otherwise open again after each start until then.

use std::time::Instant;

use anteroom_proto::bypass::MAX_BYPASS;
use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::Bypass;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::FileBypass;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// By how much an operator's clock may be ahead of the confirmed time, in milliseconds.
const CLOCK_SLACK: u64 = 10 * 60 * 1000;

/// An order that was loaded from a file, its signature checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedBypass {
    /// The gateway that is out.
    pub gateway: GatewayId,
    /// Orders the orders for one gateway, those in views included.
    pub serial: u64,
    /// Until when its devices are met in the clear. None: the bypass is ended.
    pub until: Option<UnixMillis>,
    /// When it ends at the latest, counted from its loading. None: this machine was started since, so that it
    /// counts only once the time is confirmed.
    pub counted: Option<Instant>,
}

/// A bypass in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassStatus {
    /// The gateway that is out.
    pub gateway: GatewayId,
    /// Until when, by the operator's word.
    pub until: UnixMillis,
    /// Whether it was loaded here from a file.
    pub from_file: bool,
    /// The order's serial.
    pub serial: u64,
}

/// The orders from files, and what is in force.
#[derive(Debug, Default)]
pub(crate) struct Bypasses {
    pub(crate) loaded: Vec<LoadedBypass>,
    pub(crate) in_force: Vec<BypassStatus>,
}

/// The order that stands for one gateway.
#[derive(Debug, Clone, Copy)]
struct Standing {
    order: LoadedBypass,
    from_file: bool,
}

impl Bypasses {
    /// The newest order for each gateway.
    fn standing(&self, orders: &[Bypass]) -> Vec<Standing> {
        let signed = orders.iter().map(|order| Standing {
            order: LoadedBypass {
                gateway: order.gateway,
                serial: order.serial,
                until: order.until,
                counted: None,
            },
            from_file: false,
        });
        let loaded = self.loaded.iter().map(|order| Standing { order: *order, from_file: true });
        let mut standing: Vec<Standing> = Vec::new();
        for found in signed.chain(loaded) {
            match standing.iter_mut().find(|known| known.order.gateway == found.order.gateway) {
                Some(known) if known.order.serial >= found.order.serial => {}
                Some(known) => *known = found,
                None => standing.push(found),
            }
        }
        standing
    }

    /// Finds out what is in force, and says whether that changed. What concerns nobody with whom the devices here
    /// share a rule is left out: a file may outlive the gateway that it is about.
    pub(crate) fn renew(
        &mut self,
        orders: &[Bypass],
        concerns: impl Fn(GatewayId) -> bool,
        clock: &Clock,
        now: Instant,
    ) -> bool {
        let in_force: Vec<BypassStatus> = self
            .standing(orders)
            .into_iter()
            .filter(|standing| concerns(standing.order.gateway))
            .filter_map(|standing| {
                let until = standing.order.until?;
                is_open(&standing.order, until, clock, now).then_some(BypassStatus {
                    gateway: standing.order.gateway,
                    until,
                    from_file: standing.from_file,
                    serial: standing.order.serial,
                })
            })
            .collect();
        let changed = in_force != self.in_force;
        self.in_force = in_force;
        changed
    }

    /// Those in force that came from files.
    pub(crate) fn by_file(&self) -> Vec<FileBypass> {
        let files = self.in_force.iter().filter(|open| open.from_file);
        let told = |open: &BypassStatus| FileBypass {
            gateway: open.gateway,
            until: open.until,
            serial: open.serial,
        };
        files.map(told).collect()
    }

    /// When the next of those in force ends, or one that ends too late yet comes to open.
    pub(crate) fn next_change(
        &self,
        orders: &[Bypass],
        clock: &Clock,
        now: Instant,
    ) -> Option<Instant> {
        self.standing(orders)
            .into_iter()
            .filter_map(|standing| {
                let until = standing.order.until?;
                let gateway = standing.order.gateway;
                if !self.in_force.iter().any(|open| open.gateway == gateway) {
                    return opens_by_clock(&standing.order, until, clock, now);
                }
                let by_clock = clock.is_confirmed().then(|| clock.instant(until, now)).flatten();
                [by_clock, standing.order.counted].into_iter().flatten().min()
            })
            .min()
    }
}

fn is_open(order: &LoadedBypass, until: UnixMillis, clock: &Clock, now: Instant) -> bool {
    let counts = order.counted.map(|end| now < end);
    match clock.has_passed(until, now) {
        Some(true) => false,
        Some(false) => counts.unwrap_or_else(|| clock.wall(now) >= earliest(until)),
        None => counts == Some(true),
    }
}

/// Before this moment an order that ends at `until` can't have been signed, nor begun.
const fn earliest(until: UnixMillis) -> UnixMillis {
    UnixMillis(until.0.saturating_sub(MAX_BYPASS + CLOCK_SLACK))
}

/// When the confirmed time opens an order that isn't open yet. None: never, or nobody knows.
fn opens_by_clock(
    order: &LoadedBypass,
    until: UnixMillis,
    clock: &Clock,
    now: Instant,
) -> Option<Instant> {
    let waits = clock.is_confirmed() && order.counted.is_none();
    waits.then(|| clock.instant(earliest(until), now)).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OUT: GatewayId = GatewayId::from_bytes([7; 16]);

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        Instant::now()
    }

    fn signed(serial: u64, until: Option<u64>) -> Bypass {
        Bypass { gateway: OUT, serial, until: until.map(UnixMillis), since: 1 }
    }

    fn loaded(serial: u64, until: Option<u64>, counted: Option<Instant>) -> LoadedBypass {
        LoadedBypass { gateway: OUT, serial, until: until.map(UnixMillis), counted }
    }

    fn open(files: &[LoadedBypass], orders: &[Bypass], clock: &Clock, now: Instant) -> bool {
        let mut bypasses = Bypasses { loaded: files.to_vec(), ..Bypasses::default() };
        bypasses.renew(orders, |_| true, clock, now);
        !bypasses.in_force.is_empty()
    }

    #[test]
    fn an_order_in_a_view_needs_a_confirmed_time() {
        let now = start();
        let mut clock = Clock::new(now);
        let order = [signed(1, Some(10_000))];
        clock.set(UnixMillis(5_000), false, now);
        assert!(!open(&[], &order, &clock, now), "a clock that nobody confirmed");
        clock.set(UnixMillis(5_000), true, now);
        assert!(open(&[], &order, &clock, now));
        assert!(!open(&[], &order, &clock, now + Duration::from_secs(5)), "at its end");
    }

    #[test]
    fn a_file_counts_from_its_loading_where_nobody_knows_the_time_and_never_after_a_start() {
        let now = start();
        let mut clock = Clock::new(now);
        let hour = now + Duration::from_secs(3600);
        let until = Some(5_000_000);
        let file = [loaded(1, until, Some(hour))];
        assert!(open(&file, &[], &clock, now));
        assert!(!open(&file, &[], &clock, hour), "its hour is over");
        assert!(!open(&[loaded(1, until, None)], &[], &clock, now), "after a start");
        clock.raise_floor(UnixMillis(5_000_000), now);
        assert!(!open(&file, &[], &clock, now), "something signed later is held");
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(1_000_000), true, now);
        assert!(open(&[loaded(1, until, None)], &[], &clock, now), "the time is confirmed again");
        assert!(!open(&file, &[], &clock, hour), "a clock that was set back prolongs nothing");
        clock.set(UnixMillis(5_000_000), true, now);
        assert!(!open(&file, &[], &clock, now), "the confirmed time ends it early");
    }

    #[test]
    fn the_newest_order_stands_wherever_it_came_from() {
        let now = start();
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(1_000), true, now);
        let later = Some(now + Duration::from_secs(60));
        let on = Some(50_000);
        assert!(open(&[loaded(5, on, later)], &[signed(4, None)], &clock, now));
        assert!(!open(&[loaded(5, on, later)], &[signed(6, None)], &clock, now), "ended online");
        assert!(!open(&[loaded(7, None, None)], &[signed(6, on)], &clock, now), "ended by a file");
        assert!(!open(&[loaded(6, on, later)], &[signed(6, None)], &clock, now), "a tie");
        assert!(open(&[loaded(5, None, None), loaded(6, on, later)], &[], &clock, now));
    }

    #[test]
    fn files_in_force_are_reported_with_their_serials() {
        let now = start();
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(1_000), true, now);
        let file = loaded(5, Some(50_000), Some(now + Duration::from_secs(60)));
        let mut bypasses = Bypasses { loaded: vec![file], ..Bypasses::default() };
        bypasses.renew(&[signed(4, None)], |_| true, &clock, now);
        let told = FileBypass { gateway: OUT, until: UnixMillis(50_000), serial: 5 };
        assert_eq!(bypasses.by_file(), [told]);
        bypasses.renew(&[signed(6, Some(50_000))], |_| true, &clock, now);
        assert!(bypasses.by_file().is_empty(), "what revisions order isn't a file's");
    }

    #[test]
    fn its_end_is_known_beforehand() {
        let now = start();
        let mut clock = Clock::new(now);
        let mut bypasses = Bypasses {
            loaded: vec![loaded(1, Some(9_000), Some(now + Duration::from_secs(8)))],
            ..Bypasses::default()
        };
        assert!(bypasses.renew(&[], |_| true, &clock, now));
        assert!(!bypasses.renew(&[], |_| true, &clock, now), "nothing changed");
        assert_eq!(bypasses.next_change(&[], &clock, now), Some(now + Duration::from_secs(8)));
        clock.set(UnixMillis(6_000), true, now);
        assert_eq!(bypasses.next_change(&[], &clock, now), Some(now + Duration::from_secs(3)));
        assert!(bypasses.renew(&[], |_| true, &clock, now + Duration::from_secs(3)));
        assert_eq!(bypasses.next_change(&[], &clock, now + Duration::from_secs(3)), None);
    }

    #[test]
    fn what_is_dated_later_than_it_was_signed_opens_again_at_no_start() {
        let now = start();
        let today = 1_795_305_600_000;
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(today), true, now);
        let hour = now + Duration::from_secs(3600);
        let ahead = |millis: u64| Some(today + MAX_BYPASS + CLOCK_SLACK + millis);
        let next_year = ahead(365 * 86_400_000);
        assert!(!open(&[loaded(1, next_year, None)], &[], &clock, now), "a file, after a start");
        assert!(!open(&[], &[signed(1, next_year)], &clock, now), "in a view");
        assert!(open(&[], &[signed(1, ahead(0))], &clock, now), "the longest that can be ordered");
        // Whoever loads it with a clock that is wrong gets what it allows, once.
        let counted = [loaded(1, next_year, Some(hour))];
        assert!(open(&counted, &[], &clock, now));
        assert!(!open(&counted, &[], &clock, hour));

        // An operator's clock that is ahead of the controller's only delays.
        let order = [signed(1, ahead(5_000))];
        let mut bypasses = Bypasses::default();
        assert!(!bypasses.renew(&order, |_| true, &clock, now));
        let opens = now + Duration::from_secs(5);
        assert_eq!(bypasses.next_change(&order, &clock, now), Some(opens));
        assert!(bypasses.renew(&order, |_| true, &clock, opens));
        let ends = opens + Duration::from_millis(MAX_BYPASS + CLOCK_SLACK);
        assert_eq!(bypasses.next_change(&order, &clock, opens), Some(ends));
    }

    #[test]
    fn an_order_about_a_stranger_is_none() {
        let now = start();
        let clock = Clock::new(now);
        let order = loaded(1, Some(9_000), Some(now + Duration::from_secs(8)));
        let mut bypasses = Bypasses { loaded: vec![order], ..Bypasses::default() };
        assert!(!bypasses.renew(&[], |gateway| gateway != OUT, &clock, now));
        assert!(bypasses.in_force.is_empty());
        assert!(bypasses.renew(&[], |gateway| gateway == OUT, &clock, now));
    }
}
