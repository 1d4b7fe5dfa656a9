//! The rings between the packet thread and one lane thread: full buffers one way, the same ones empty the other way.
//!
//! No buffer is made or given up while packets flow. Whoever has no empty one goes without: the packet thread drops a job
//! and counts it, a lane thread leaves datagrams in its socket. Empty buffers are used last in, first out, so that
//! little traffic touches little memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use super::haul::Haul;
use super::parcel::Parcel;
use super::sleeper::Sleeper;

/// Parcels of one link: what may wait for a lane thread.
pub(super) const PARCELS: usize = 16;
/// Hauls of one link: what may wait for the packet thread.
pub(super) const HAULS: usize = 8;

/// Full buffers go out by one ring, come back empty by another, and wait for use meanwhile.
#[derive(Debug)]
struct Out<T> {
    full: Producer<T>,
    empty: Consumer<T>,
    spare: Vec<T>,
}

/// The other end.
#[derive(Debug)]
struct In<T> {
    full: Consumer<T>,
    empty: Producer<T>,
}

fn way<T>(count: usize, make: impl Fn() -> T) -> (Out<T>, In<T>) {
    let (full_out, full_in) = RingBuffer::new(count);
    let (empty_out, empty_in) = RingBuffer::new(count);
    let spare = (0..count).map(|_| make()).collect();
    let out = Out { full: full_out, empty: empty_in, spare };
    (out, In { full: full_in, empty: empty_out })
}

impl<T> Out<T> {
    /// An empty buffer, the one that was in use last if possible.
    fn take(&mut self) -> Option<T> {
        while let Ok(back) = self.empty.pop() {
            self.spare.push(back);
        }
        self.spare.pop()
    }

    /// Does something to each empty one.
    fn each_spare(&mut self, change: impl FnMut(&mut T)) {
        while let Ok(back) = self.empty.pop() {
            self.spare.push(back);
        }
        self.spare.iter_mut().for_each(change);
    }

    /// How many empty ones there are.
    fn spare(&mut self) -> usize {
        self.spare.len() + self.empty.slots()
    }

    fn send(&mut self, buffer: T) {
        // There are as many places as buffers.
        let sent = self.full.push(buffer);
        debug_assert!(sent.is_ok(), "a ring has a place for each buffer");
    }
}

impl<T> In<T> {
    fn give_back(&mut self, buffer: T) {
        let given = self.empty.push(buffer);
        debug_assert!(given.is_ok(), "a ring has a place for each buffer");
    }
}

/// The packet thread's end.
#[derive(Debug)]
pub(super) struct Near {
    parcels: Out<Parcel>,
    hauls: In<Haul>,
    /// The lane thread.
    other: Arc<Sleeper>,
    starved: Arc<AtomicBool>,
}

/// A lane thread's end.
#[derive(Debug)]
pub(super) struct Far {
    parcels: In<Parcel>,
    hauls: Out<Haul>,
    /// This thread.
    pub(super) own: Arc<Sleeper>,
    /// The packet thread.
    other: Arc<Sleeper>,
    /// Whether this thread waits for a haul to be given back.
    starved: Arc<AtomicBool>,
}

/// Both ends between two threads that sleep by these.
pub(super) fn link(near: Arc<Sleeper>, far: Arc<Sleeper>) -> (Near, Far) {
    let (parcels_out, parcels_in) = way(PARCELS, Parcel::new);
    let (hauls_out, hauls_in) = way(HAULS, Haul::default);
    let starved = Arc::new(AtomicBool::new(false));
    let (other, hauls) = (far.clone(), hauls_in);
    (
        Near { parcels: parcels_out, hauls, other, starved: starved.clone() },
        Far { parcels: parcels_in, hauls: hauls_out, own: far, other: near, starved },
    )
}

impl Near {
    /// A parcel to be filled. None while all are on their way.
    pub(super) fn parcel(&mut self) -> Option<Parcel> {
        self.parcels.take()
    }

    /// The same for what may not take them all.
    pub(super) fn parcel_if_many(&mut self) -> Option<Parcel> {
        (self.parcels.spare() > PARCELS / 2).then(|| self.parcels.take()).flatten()
    }

    /// Sends a parcel.
    pub(super) fn send(&mut self, parcel: Parcel) {
        self.parcels.send(parcel);
        self.other.wake();
    }

    /// Gives back the memory of parcels that aren't in use.
    pub(super) fn shrink(&mut self) {
        self.parcels.each_spare(Parcel::shrink);
    }

    /// How many hauls have come.
    pub(super) fn waiting(&self) -> usize {
        self.hauls.full.slots()
    }

    /// The haul that came first.
    pub(super) fn haul(&mut self) -> Option<Haul> {
        self.hauls.full.pop().ok()
    }

    /// Gives an emptied haul back. Its thread may wait for that.
    pub(super) fn give_back(&mut self, haul: Haul) {
        self.hauls.give_back(haul);
        // Pairs with the fence in `Sleeper::doze`, before which this is set.
        fence(Ordering::SeqCst);
        if self.starved.load(Ordering::Relaxed) {
            self.other.wake();
        }
    }

    /// What the lane thread sleeps by.
    pub(super) fn sleeper(&self) -> Arc<Sleeper> {
        self.other.clone()
    }
}

impl Far {
    /// Whether a parcel has come.
    pub(super) fn has_parcel(&self) -> bool {
        !self.parcels.full.is_empty()
    }

    /// The parcel that came first.
    pub(super) fn parcel(&mut self) -> Option<Parcel> {
        self.parcels.full.pop().ok()
    }

    /// Gives an emptied parcel back.
    pub(super) fn give_back(&mut self, parcel: Parcel) {
        self.parcels.give_back(parcel);
    }

    /// A haul to be filled. None while all are on their way.
    pub(super) fn haul(&mut self) -> Option<Haul> {
        self.hauls.take()
    }

    /// Keeps a haul that isn't needed after all.
    pub(super) fn keep(&mut self, haul: Haul) {
        self.hauls.spare.push(haul);
    }

    /// Gives back the memory of hauls that aren't in use.
    pub(super) fn shrink(&mut self) {
        self.hauls.each_spare(Haul::shrink);
    }

    /// Says whether this thread is to be woken when a haul is given back. To be called before it dozes.
    pub(super) fn starve(&self, starved: bool) {
        self.starved.store(starved, Ordering::Relaxed);
    }

    /// How many hauls are there to be filled.
    pub(super) fn spare_hauls(&mut self) -> usize {
        self.hauls.spare()
    }

    /// Sends a haul.
    pub(super) fn send(&mut self, haul: Haul) {
        self.hauls.send(haul);
        self.other.wake();
    }

    /// Whether the packet thread has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.parcels.full.is_abandoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_go_round_and_the_one_used_last_is_used_next() {
        let (mut out, mut far) = way(3, Vec::<u8>::new);
        let mut seen = Vec::new();
        for round in 0..10 {
            let mut buffer = out.take().unwrap();
            buffer.push(round);
            out.send(buffer);
            let buffer = far.full.pop().unwrap();
            seen.push(buffer.len());
            far.give_back(buffer);
        }
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "it is the same one each time");
        let all: Vec<_> = std::iter::from_fn(|| out.take()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(out.spare(), 0);
        all.into_iter().for_each(|buffer| out.send(buffer));
        assert!(out.take().is_none(), "none is made beyond those");
        let first = far.full.pop().unwrap();
        far.give_back(first);
        assert_eq!(out.spare(), 1);
    }

    #[test]
    fn everything_that_is_sent_comes_in_its_order_between_threads() {
        const COUNT: u64 = 50_000;
        let (mut out, mut far) = way(4, Vec::<u64>::new);
        let thread = std::thread::spawn(move || {
            let mut expected = 0;
            while expected < COUNT {
                let Ok(mut buffer) = far.full.pop() else {
                    assert!(!far.full.is_abandoned() || !far.full.is_empty());
                    std::thread::yield_now();
                    continue;
                };
                for number in buffer.drain(..) {
                    assert_eq!(number, expected);
                    expected += 1;
                }
                far.give_back(buffer);
            }
        });
        let mut next = 0;
        while next < COUNT {
            let Some(mut buffer) = out.take() else {
                assert!(!out.full.is_abandoned());
                std::thread::yield_now();
                continue;
            };
            let end = (next + 1 + next % 7).min(COUNT);
            buffer.extend(next..end);
            next = end;
            out.send(buffer);
        }
        thread.join().unwrap();
    }
}
