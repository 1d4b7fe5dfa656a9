//! Loops: frames that the gateway sent out and that come back in where they went out.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};

use foldhash::quality::FixedState;

use crate::port::PortId;

/// How long a frame is remembered. A loop brings it back within a fraction of that.
const REMEMBERED: Duration = Duration::from_millis(500);
/// Most frames remembered.
const ROOM: usize = 1_024;
/// Copies of a frame that went out of the same ports within this time are remembered as one.
const SLOT: Duration = Duration::from_millis(50);
/// The very same frame more often than this within [`REMEMBERED`] is no device that repeats itself: it goes round, by
/// way of ports out of which it was never sent. Devices do repeat a constant frame a thousand times a second; what
/// goes round is faster.
const REPEATED: u32 = 1_024;
/// The same, for [`SUSPICIOUS`] after a frame came back in where it went out: then a loop is known to be there.
const REPEATED_IN_A_LOOP: u32 = 64;
/// For how long after a frame came back others are suspected, too.
const SUSPICIOUS: Duration = Duration::from_secs(10);

/// A frame that was sent, and how often.
#[derive(Debug)]
struct Sent {
    digest: u64,
    /// As bits.
    ports: u128,
    first: Instant,
    copies: u32,
}

/// Digests of frames that went to everybody on a cable, and out of which ports: in a loop it is these that come
/// back, and go round for ever unless they are stopped.
#[derive(Debug)]
pub(crate) struct Echoes {
    hasher: FixedState,
    /// The newest is last.
    sent: VecDeque<Sent>,
    /// When a frame for a single address went to everybody on a cable.
    unicast: Option<Instant>,
    /// When a frame last came back in where it went out.
    looped: Option<Instant>,
}

impl Echoes {
    pub(crate) const fn new(hasher: FixedState) -> Self {
        Self { hasher, sent: VecDeque::new(), unicast: None, looped: None }
    }

    /// The bit that stands for a port.
    pub(crate) fn bit(port: PortId) -> u128 {
        u32::try_from(port.index()).ok().and_then(|at| 1_u128.checked_shl(at)).unwrap_or(0)
    }

    /// Notes that a frame, with the tag beside it, went out of `ports`. `group`: it bears a group address.
    pub(crate) fn sent(&mut self, frame: impl Hash, ports: u128, group: bool, now: Instant) {
        if !group {
            self.unicast = Some(now);
        }
        let digest = self.hasher.hash_one(frame);
        let mut recent =
            self.sent.iter_mut().rev().take_while(|sent| within(sent.first, SLOT, now));
        if let Some(same) = recent.find(|sent| sent.digest == digest && sent.ports == ports) {
            same.copies = same.copies.saturating_add(1);
            return;
        }
        if self.sent.len() >= ROOM {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { digest, ports, first: now, copies: 1 });
    }

    /// Whether a frame that came in on `port` was sent out there a moment ago, or goes round otherwise.
    pub(crate) fn is_back(
        &mut self,
        frame: impl Hash,
        port: PortId,
        group: bool,
        now: Instant,
    ) -> bool {
        let fresh = |at: Instant| within(at, REMEMBERED, now);
        if !self.sent.back().is_some_and(|sent| fresh(sent.first))
            || !(group || self.unicast.is_some_and(fresh))
        {
            return false;
        }
        let digest = self.hasher.hash_one(frame);
        let suspicious = self.looped.is_some_and(|at| within(at, SUSPICIOUS, now));
        let most = if suspicious { REPEATED_IN_A_LOOP } else { REPEATED };
        let recent = self.sent.iter().rev().take_while(|sent| fresh(sent.first));
        let mut copies: u32 = 0;
        for sent in recent.filter(|sent| sent.digest == digest) {
            if sent.ports & Self::bit(port) != 0 {
                self.looped = Some(now);
                return true;
            }
            copies = copies.saturating_add(sent.copies);
        }
        copies >= most
    }
}

/// Whether `at` is less than `span` ago.
fn within(at: Instant, span: Duration, now: Instant) -> bool {
    now.saturating_duration_since(at) < span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Seeds;

    #[test]
    fn a_frame_is_back_only_where_it_went_out_and_only_for_a_moment() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut echoes = Echoes::new(Seeds::new(&[0; 32]).hasher());
        let (one, two) = (PortId::device(0), PortId::device(1));
        echoes.sent(b"who has", Echoes::bit(one), true, now);
        assert!(echoes.is_back(b"who has", one, true, now));
        assert!(!echoes.is_back(b"who has", two, true, now));
        assert!(!echoes.is_back(b"who hat", one, true, now));
        assert!(!echoes.is_back(b"who has", one, true, now + REMEMBERED));
        for number in 0..2_000_u32 {
            echoes.sent(number.to_be_bytes(), 1, true, now);
        }
        assert_eq!(echoes.sent.len(), ROOM);
        assert!(!echoes.is_back(b"who has", one, true, now), "the oldest gave way");
    }

    #[test]
    fn copies_are_counted_more_strictly_once_something_came_back() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let mut now = Instant::now();
        let mut echoes = Echoes::new(Seeds::new(&[0; 32]).hasher());
        let (one, two) = (PortId::device(0), PortId::device(1));
        let passes = |echoes: &mut Echoes, now: &mut Instant, step| {
            *now += REMEMBERED;
            (0..5_000)
                .take_while(|_| {
                    *now += step;
                    let back = echoes.is_back(b"beat", one, true, *now);
                    echoes.sent(b"beat", Echoes::bit(two), true, *now);
                    !back
                })
                .count()
        };
        assert_eq!(passes(&mut echoes, &mut now, Duration::from_millis(1)), 5_000);
        assert_eq!(passes(&mut echoes, &mut now, Duration::ZERO), REPEATED as usize);
        assert!(echoes.is_back(b"beat", two, true, now));
        assert_eq!(
            passes(&mut echoes, &mut now, Duration::from_millis(1)),
            REPEATED_IN_A_LOOP as usize
        );
        now += SUSPICIOUS;
        assert_eq!(passes(&mut echoes, &mut now, Duration::from_millis(1)), 5_000);
    }
}
