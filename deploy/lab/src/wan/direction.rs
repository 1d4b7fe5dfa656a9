//! One direction of a link: what came in, what is on its way, what comes out and when. No sockets, no clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::conditions::Conditions;
use super::oversize::{self, Oversize};

/// Most bytes on their way: a safeguard for the lab's own memory.
const MOST: usize = 64 << 20;

/// What became of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Came in.
    pub taken: u64,
    /// Came out, second copies included.
    pub delivered: u64,
    /// Bytes that came out.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Came out twice.
    pub duplicated: u64,
    /// Were held back for later ones to overtake.
    pub held: u64,
    /// Found no room in the queue.
    pub queue_full: u64,
    /// Dropped for their size.
    pub too_big: u64,
    /// Cut into fragments.
    pub cut: u64,
    /// Came while nothing passes, or were on their way then.
    pub down: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    conditions: Conditions,
    chance: Chance,
    flying: BinaryHeap<Reverse<Flying>>,
    flying_bytes: usize,
    /// When the bottleneck has sent what waits for it.
    free: Option<Instant>,
    /// When the last frame that isn't held back comes out.
    last: Option<Instant>,
    number: u64,
    counters: Counters,
}

/// A frame on its way. Ordered by when it comes out, then by when it came in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    due: Instant,
    number: u64,
    frame: Vec<u8>,
}

impl Direction {
    /// A direction that does nothing to frames yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            conditions: Conditions::default(),
            chance: Chance::new(seed),
            flying: BinaryHeap::new(),
            flying_bytes: 0,
            free: None,
            last: None,
            number: 0,
            counters: Counters::default(),
        }
    }

    /// From now on frames meet with these conditions. What is on its way comes out as it would have, unless nothing
    /// passes any more.
    pub fn set(&mut self, conditions: Conditions) {
        if !conditions.up {
            self.counters.down += self.flying.len() as u64;
            self.flying.clear();
            self.flying_bytes = 0;
            self.free = None;
            self.last = None;
        }
        self.conditions = conditions;
    }

    /// What it does to frames.
    #[must_use]
    pub const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// What became of frames until now.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a frame in. Gives the frame that goes back to its sender, if a router tells that it was too large.
    pub fn offer(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.counters.taken += 1;
        if !self.conditions.up {
            self.counters.down += 1;
            return None;
        }
        let Some(limit) = self.conditions.limit else {
            self.pass(frame.to_vec(), now);
            return None;
        };
        match oversize::check(frame, &limit) {
            Oversize::Fits => self.pass(frame.to_vec(), now),
            Oversize::Cut(parts) => {
                self.counters.cut += 1;
                for part in parts {
                    self.pass(part, now);
                }
            }
            Oversize::Dropped(answer) => {
                self.counters.too_big += 1;
                return answer;
            }
        }
        None
    }

    fn pass(&mut self, frame: Vec<u8>, now: Instant) {
        if self.chance.happens(self.conditions.loss) {
            self.counters.lost += 1;
            return;
        }
        if self.chance.happens(self.conditions.duplicate) && self.send(frame.clone(), now) {
            self.counters.duplicated += 1;
        }
        self.send(frame, now);
    }

    /// Sends a frame on its way, if there is room.
    fn send(&mut self, frame: Vec<u8>, now: Instant) -> bool {
        let Some(sent) = self.transmit(frame.len(), now) else {
            self.counters.queue_full += 1;
            return false;
        };
        let mut due = sent + self.conditions.delay + self.chance.up_to(self.conditions.jitter);
        if self.chance.happens(self.conditions.reorder) {
            self.counters.held += 1;
            due += self.conditions.held;
        } else {
            due = self.last.map_or(due, |last| due.max(last));
            self.last = Some(due);
        }
        self.number += 1;
        self.flying_bytes += frame.len();
        self.flying.push(Reverse(Flying { due, number: self.number, frame }));
        true
    }

    /// When the bottleneck has sent a frame of this length. None if it finds no room before it.
    fn transmit(&mut self, length: usize, now: Instant) -> Option<Instant> {
        if self.flying_bytes + length > MOST {
            return None;
        }
        let Some(rate) = self.conditions.rate else { return Some(now) };
        let begin = self.free.map_or(now, |free| free.max(now));
        let waiting = (begin - now).as_secs_f64() * rate as f64 / 8.0;
        if waiting + length as f64 > self.conditions.queue as f64 {
            return None;
        }
        let end = begin + Duration::from_secs_f64(length as f64 * 8.0 / rate.max(1) as f64);
        self.free = Some(end);
        Some(end)
    }

    /// The next frame that has arrived by `now`.
    pub fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.flying.peek()?.0.due > now {
            return None;
        }
        let Reverse(Flying { frame, .. }) = self.flying.pop()?;
        self.flying_bytes -= frame.len();
        self.counters.delivered += 1;
        self.counters.bytes += frame.len() as u64;
        Some(frame)
    }

    /// When the next frame arrives.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.flying.peek().map(|next| next.0.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// What comes out, and when, of frames that come in a millisecond apart.
    fn run(conditions: Conditions, frames: u32, length: usize) -> (Vec<(u32, Duration)>, Counters) {
        let mut direction = Direction::new(42);
        direction.set(conditions);
        let start = Instant::now();
        for number in 0..frames {
            let mut frame = vec![0; length];
            frame[..4].copy_from_slice(&number.to_be_bytes());
            assert!(direction.offer(&frame, start + MILLI * number).is_none());
        }
        let mut out = Vec::new();
        while let Some(due) = direction.next() {
            assert!(direction.arrived(due - Duration::from_nanos(1)).is_none());
            let frame = direction.arrived(due).unwrap();
            out.push((u32::from_be_bytes(frame[..4].try_into().unwrap()), due - start));
        }
        (out, direction.counters())
    }

    fn in_order(out: &[(u32, Duration)]) -> bool {
        out.windows(2).all(|pair| pair[0].0 <= pair[1].0)
    }

    #[test]
    fn without_conditions_everything_comes_out_at_once() {
        let (out, counters) = run(Conditions::default(), 100, 60);
        assert!(out.iter().all(|(number, due)| *due == MILLI * *number), "{out:?}");
        assert_eq!((counters.taken, counters.delivered, counters.bytes), (100, 100, 6000));
    }

    #[test]
    fn so_many_are_lost_and_the_same_ones_each_time() {
        let (out, counters) = run(Conditions::default().losing(0.05), 20_000, 60);
        assert_eq!(out.len() as u64, 20_000 - counters.lost);
        assert!((900..=1100).contains(&counters.lost), "{counters:?}");
        let (again, _) = run(Conditions::default().losing(0.05), 20_000, 60);
        assert_eq!(out, again);
    }

    #[test]
    fn delay_and_jitter_are_kept_and_let_nothing_overtake() {
        let conditions = Conditions::default().delayed(100 * MILLI, 50 * MILLI);
        let (out, _) = run(conditions, 2000, 60);
        let waits: Vec<_> = out.iter().map(|(number, due)| *due - MILLI * *number).collect();
        assert!(waits.iter().all(|wait| (100 * MILLI..150 * MILLI).contains(wait)));
        let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
        assert!(spread > 20 * MILLI, "{spread:?}");
        assert!(in_order(&out));
    }

    #[test]
    fn what_is_held_back_is_overtaken() {
        let conditions = Conditions::default().reordering(0.1, 5 * MILLI);
        let (out, counters) = run(conditions, 5000, 60);
        assert_eq!(out.len(), 5000);
        assert!((400..=600).contains(&counters.held), "{counters:?}");
        assert!(!in_order(&out));
        let late = out.iter().filter(|(number, due)| *due == MILLI * *number + 5 * MILLI).count();
        assert_eq!(late as u64, counters.held);
    }

    #[test]
    fn some_come_twice() {
        let (out, counters) = run(Conditions::default().duplicating(0.2), 5000, 60);
        assert!((900..=1100).contains(&counters.duplicated), "{counters:?}");
        assert_eq!(out.len() as u64, 5000 + counters.duplicated);
        assert!(in_order(&out));
    }

    #[test]
    fn a_bottleneck_sends_at_its_rate_and_its_queue_is_bounded() {
        // 1,000 bytes a millisecond come, 500 go; 10,000 wait at most.
        let (out, counters) = run(Conditions::default().limited(4_000_000, 10_000), 1000, 1000);
        let (_, last) = *out.last().unwrap();
        let rate = out.len() as f64 * 8000.0 / last.as_secs_f64();
        assert!((3_960_000.0..4_040_000.0).contains(&rate), "{rate}");
        assert!((470..=500).contains(&counters.queue_full), "{counters:?}");
        let longest = out.iter().map(|(number, due)| *due - MILLI * *number).max().unwrap();
        assert!(longest <= 20 * MILLI, "{longest:?}");
    }

    #[test]
    fn what_is_cut_off_loses_what_was_on_its_way() {
        let mut direction = Direction::new(1);
        direction.set(Conditions::default().delayed(MILLI, Duration::ZERO));
        let now = Instant::now();
        direction.offer(&[0; 60], now);
        direction.set(Conditions::down());
        direction.offer(&[0; 60], now);
        assert_eq!((direction.next(), direction.counters().down), (None, 2));
        direction.set(Conditions::default());
        direction.offer(&[0; 60], now);
        assert!(direction.arrived(now).is_some(), "what was before holds up what comes after");
    }
}
