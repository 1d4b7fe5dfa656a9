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
/// The very same frame more often than this within that time is no device that repeats itself: it goes round, by way
/// of ports out of which it was never sent.
const REPEATED: usize = 64;

/// Digests of frames that went to everybody on a cable, and out of which ports: in a loop it is these that come
/// back, and go round for ever unless they are stopped.
#[derive(Debug)]
pub(crate) struct Echoes {
    hasher: FixedState,
    /// Digest, ports as bits, when. The newest is last.
    sent: VecDeque<(u64, u128, Instant)>,
    /// When a frame for a single address went to everybody on a cable.
    unicast: Option<Instant>,
}

impl Echoes {
    pub(crate) const fn new(hasher: FixedState) -> Self {
        Self { hasher, sent: VecDeque::new(), unicast: None }
    }

    /// The bit that stands for a port.
    pub(crate) fn bit(port: PortId) -> u128 {
        u32::try_from(port.index()).ok().and_then(|at| 1_u128.checked_shl(at)).unwrap_or(0)
    }

    /// Notes that a frame, with the tag beside it, went out of `ports`. `group`: it bears a group address.
    pub(crate) fn sent(&mut self, frame: impl Hash, ports: u128, group: bool, now: Instant) {
        if self.sent.len() >= ROOM {
            self.sent.pop_front();
        }
        if !group {
            self.unicast = Some(now);
        }
        self.sent.push_back((self.hasher.hash_one(frame), ports, now));
    }

    /// Whether a frame that came in on `port` was sent out there a moment ago, or goes round otherwise.
    pub(crate) fn is_back(
        &self,
        frame: impl Hash,
        port: PortId,
        group: bool,
        now: Instant,
    ) -> bool {
        let fresh = |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        if !self.sent.back().is_some_and(|(.., at)| fresh(*at))
            || !(group || self.unicast.is_some_and(fresh))
        {
            return false;
        }
        let digest = self.hasher.hash_one(frame);
        let recent = self.sent.iter().rev().take_while(|(.., at)| fresh(*at));
        let mut times = 0;
        for (_, ports, _) in recent.filter(|(known, ..)| *known == digest) {
            times += 1;
            if ports & Self::bit(port) != 0 || times >= REPEATED {
                return true;
            }
        }
        false
    }
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
}
