//! Which flows are bulk: told by what they carry, not by what they say of themselves.

use std::time::{Duration, Instant};

/// How long is looked back.
const WINDOW: Duration = Duration::from_millis(100);
/// A flow that carries more than so many bytes within [`WINDOW`], in one direction, is bulk: 10 Mb/s. A patient monitor
/// sends a thousandth of that.
const FLOW: u32 = 128 * 1024;
/// A packet counts as at least so many bytes: one that is sealed by itself costs about as much as one of this length, however
/// short it is. A flow of more than 2,560 a second is bulk by that; an alarm or a wave has a hundred.
const SMALL: usize = 512;
/// So much of one device may go through lane 0 within [`WINDOW`]. What any of its flows carries beyond that is bulk, so
/// that no crowd of thin flows fills the lane of its neighbours' alarms.
const DEVICE: u32 = 512 * 1024;
/// A flow that carried no more than this within [`WINDOW`] takes no part in what its device sends at once beside it: images that
/// begin together don't make its waves bulk.
const THIN: u32 = 8 * 1024;
/// Until the device sent this much: then its thin flows are a crowd.
const CROWD: u32 = 2 * DEVICE;
/// A bulk flow that was silent for so long isn't bulk any more: nothing of it is still under way that could be overtaken.
const IDLE: Duration = Duration::from_secs(1);
/// What a [`Window`] counts in, in bytes.
const UNIT: u32 = 16;

/// Milliseconds since some instant, which begin again after 49 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Millis(u32);

impl Millis {
    /// From `start` to `now`.
    #[must_use]
    pub fn between(start: Instant, now: Instant) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "they begin again")]
        Self(now.saturating_duration_since(start).as_millis() as u32)
    }

    const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// How much passed lately.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    since: Millis,
    units: u32,
}

impl Window {
    /// Adds to it. Returns how many bytes passed within the window.
    fn add(&mut self, bytes: usize, now: Millis) -> u32 {
        if now.since(self.since) >= WINDOW.as_millis() as u32 {
            *self = Self { since: now, units: 0 };
        }
        let more = u32::try_from(bytes).unwrap_or(u32::MAX).div_ceil(UNIT);
        self.units = self.units.saturating_add(more);
        self.units.saturating_mul(UNIT)
    }
}

/// What one device sent through lane 0 lately.
#[derive(Debug, Clone, Copy, Default)]
pub struct DevicePace(Window);

impl DevicePace {
    /// Counts a packet for lane 0. Returns how many bytes of this device's passed there within the window.
    pub fn add(&mut self, bytes: usize, now: Millis) -> u32 {
        self.0.add(bytes.max(SMALL), now)
    }
}

/// What is known of one direction of a flow: whether it is bulk, and which lane it takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Since when `units` counts, while it isn't bulk. Since its last packet, once it is.
    since: Millis,
    units: u16,
    bulk: bool,
    lane: u8,
}

impl Pace {
    /// Counts a packet, or the packets of a super-frame. Says whether the flow is bulk.
    pub fn add(&mut self, bytes: usize, device: &mut DevicePace, now: Millis) -> bool {
        if self.bulk {
            if now.since(self.since) < IDLE.as_millis() as u32 {
                self.since = now;
                return true;
            }
            *self = Self { since: now, ..Self::default() };
        }
        let mut window = Window { since: self.since, units: self.units.into() };
        let carried = window.add(bytes.max(SMALL), now);
        // More than fits is more than makes it bulk.
        (self.since, self.units) = (window.since, u16::try_from(window.units).unwrap_or(u16::MAX));
        let most = if carried <= THIN { CROWD } else { DEVICE };
        if carried > FLOW || device.add(bytes, now) > most {
            self.bulk = true;
            self.since = now;
        }
        self.bulk
    }

    /// The lane that its packets take; 0 until another was found for it.
    #[must_use]
    pub const fn lane(&self) -> u8 {
        self.lane
    }

    /// Has its packets take a lane from now on.
    pub const fn take(&mut self, lane: u8) {
        self.lane = lane;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends packets of `size` bytes every `pause` milliseconds, and says how many until the flow is bulk.
    fn packets_until_bulk(size: usize, pause: u32, most: u32) -> Option<u32> {
        let (mut pace, mut device) = (Pace::default(), DevicePace::default());
        (0..most).find(|number| pace.add(size, &mut device, Millis(7 + number * pause)))
    }

    #[test]
    fn what_carries_images_is_bulk_and_what_carries_waves_is_not() {
        assert_eq!(packets_until_bulk(64 * 1024, 1, 100), Some(2), "super-frames");
        assert_eq!(packets_until_bulk(1500, 1, 1000), Some(87), "12 Mb/s");
        assert_eq!(packets_until_bulk(1500, 2, 100_000), None, "6 Mb/s");
        assert_eq!(packets_until_bulk(200, 10, 100_000), None, "a monitor");
    }

    #[test]
    fn a_device_gains_nothing_by_many_thin_flows() {
        let mut device = DevicePace::default();
        let mut flows = vec![Pace::default(); 1000];
        let through = |flows: &mut [Pace], device: &mut DevicePace, at| {
            let bulk = flows.iter_mut().map(|flow| flow.add(1400, device, Millis(at)));
            bulk.filter(|bulk| !bulk).count() * 1400
        };
        assert!(through(&mut flows, &mut device, 1000) <= CROWD as usize);
        let later = through(&mut flows, &mut device, 1200);
        assert!(later <= CROWD as usize, "those that were bulk stay so: {later}");
    }

    #[test]
    fn many_small_packets_are_bulk_by_their_number() {
        assert_eq!(packets_until_bulk(128, 0, 1000), Some(256));
        assert_eq!(packets_until_bulk(128, 1, 100_000), None, "a thousand a second");
    }

    #[test]
    fn waves_beside_images_that_begin_together_stay_thin() {
        let mut device = DevicePace::default();
        let (mut images, mut wave) = (vec![Pace::default(); 8], Pace::default());
        let mut bulk = 0;
        for at in 0..200 {
            if at % 100 == 0 {
                // Others come beside them, again and again.
                images = vec![Pace::default(); 8];
            }
            for image in &mut images {
                bulk += u32::from(image.add(2800, &mut device, Millis(at)));
            }
            if at % 10 == 9 {
                assert!(!wave.add(200, &mut device, Millis(at)), "a wave is bulk after {at} ms");
            }
        }
        assert!(bulk > 0, "the images were too few to show anything");
        // A crowd of waves isn't thin.
        let mut crowd = vec![Pace::default(); 3000];
        let bulk = crowd.iter_mut().map(|flow| flow.add(200, &mut device, Millis(300)));
        let through = bulk.filter(|bulk| !bulk).count();
        assert!(through <= CROWD as usize / SMALL, "{through}");
    }

    #[test]
    fn a_flow_comes_back_only_after_a_second_of_silence() {
        let (mut pace, mut device) = (Pace::default(), DevicePace::default());
        assert!(pace.add(1 << 20, &mut device, Millis(0)));
        pace.take(3);
        for at in [999, 1998, 2997] {
            assert!(pace.add(60, &mut device, Millis(at)), "{at}");
            assert_eq!(pace.lane(), 3);
        }
        assert!(!pace.add(60, &mut device, Millis(3997)));
        assert_eq!(pace.lane(), 0);
    }

    proptest! {
        #[test]
        fn a_lane_is_left_only_after_silence(steps in proptest::collection::vec((0..2500u32, 1..70_000usize), 1..200)) {
            let (mut pace, mut device) = (Pace::default(), DevicePace::default());
            // Across the end of the count.
            let mut now = u32::MAX - 10_000;
            for (pause, bytes) in steps {
                now = now.wrapping_add(pause);
                let before = pace.lane();
                if pace.add(bytes, &mut device, Millis(now)) {
                    prop_assert!(before == 0 || pace.lane() == before);
                    pace.take(1);
                } else {
                    prop_assert!(before == 0 || pause >= 1000);
                    prop_assert_eq!(pace.lane(), 0);
                }
            }
        }
    }

    #[test]
    fn it_takes_little_room() {
        assert!(size_of::<Pace>() <= 8);
    }
}
