//! Packets that wait for a handshake.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::target::Whose;

/// Most packets that wait for one peer.
pub(super) const MAX_PACKETS: usize = 64;
/// Most bytes that wait for one peer.
pub(super) const MAX_BYTES: usize = 96 * 1024;
/// What waited longer is of no use: its sender has sent it again. Longer than packets wait for a pre-shared key, or what waited from
/// the beginning would be thrown away the moment it may go.
pub(super) const MAX_AGE: Duration = Duration::from_secs(4);

/// A bounded queue that pushes out its oldest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    packets: VecDeque<(Instant, Whose, Box<[u8]>)>,
    bytes: usize,
}

impl Queue {
    /// Takes a copy of somebody's packet. Returns how many older ones it pushed out; `None` when it is too long by itself.
    pub(super) fn push(&mut self, whose: Whose, packet: &[u8], now: Instant) -> Option<u64> {
        if packet.len() > MAX_BYTES {
            return None;
        }
        let mut lost = 0;
        while self.packets.len() >= MAX_PACKETS || self.bytes + packet.len() > MAX_BYTES {
            self.pop()?;
            lost += 1;
        }
        self.bytes += packet.len();
        self.packets.push_back((now, whose, packet.into()));
        Some(lost)
    }

    /// Takes the oldest out.
    pub(super) fn pop(&mut self) -> Option<(Whose, Box<[u8]>)> {
        let (_, whose, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some((whose, packet))
    }

    /// Throws away what waited too long. Returns how many.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        while self.due().is_some_and(|due| due <= now) && self.pop().is_some() {
            lost += 1;
        }
        lost
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.packets.front().map(|(since, ..)| *since + MAX_AGE)
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_age_is_bounded() {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let now = Instant::now();
        let mut queue = Queue::default();
        for i in 0..70u8 {
            let lost = queue.push(Whose::Gateways, &[i], now).unwrap();
            assert_eq!(lost, u64::from(usize::from(i) >= MAX_PACKETS));
        }
        assert_eq!(queue.len(), MAX_PACKETS);
        assert_eq!(queue.pop().unwrap().1[0], 6);
        assert_eq!(queue.push(Whose::Gateways, &vec![0; MAX_BYTES + 1], now), None);
        assert_eq!(queue.push(Whose::Gateways, &vec![0; MAX_BYTES], now), Some(63));
        assert_eq!((queue.len(), queue.bytes), (1, MAX_BYTES));
        assert_eq!(queue.expire(now), 0);
        assert_eq!(queue.expire(queue.due().unwrap()), 1);
        assert_eq!((queue.len(), queue.bytes, queue.due()), (0, 0, None));
    }
}
