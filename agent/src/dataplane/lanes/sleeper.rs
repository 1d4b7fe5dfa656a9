//! Waking a thread that sleeps, and leaving alone one that doesn't.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// One thread sleeps by its descriptor, others wake it. A wake-up costs a system call only while it sleeps.
///
/// Whoever brings something puts it where the sleeper looks, and then wakes it. The sleeper says that it
/// [is about to sleep](Self::doze), looks once more, and then waits for the descriptor; so nothing is overlooked.
#[derive(Debug)]
pub(in crate::dataplane) struct Sleeper {
    dozes: AtomicBool,
    event: EventFd,
}

impl Sleeper {
    /// Awake.
    pub(in crate::dataplane) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { dozes: AtomicBool::new(false), event })
    }

    /// Says that the thread is about to wait. It has to look once more whether there is something.
    pub(in crate::dataplane) fn doze(&self) {
        self.dozes.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either that one sees the store, or the look that follows sees what was brought.
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub(in crate::dataplane) fn rouse(&self) {
        self.dozes.store(false, Ordering::Relaxed);
        // Also where it woke by itself: somebody may be about to wake it all the same.
        let _ = self.event.read();
    }

    /// Wakes it, if it sleeps or is about to.
    pub(in crate::dataplane) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.dozes.load(Ordering::Relaxed) && self.dozes.swap(false, Ordering::Relaxed) {
            // A full counter (EAGAIN) wakes just as well.
            let _ = self.event.write(1);
        }
    }
}

/// Readable once somebody woke the thread.
impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_readable(sleeper: &Sleeper, wait: PollTimeout) -> bool {
        poll(&mut [PollFd::new(sleeper.as_fd(), PollFlags::POLLIN)], wait).unwrap() > 0
    }

    #[test]
    fn only_who_sleeps_is_woken_and_once() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.wake();
        assert!(!is_readable(&sleeper, PollTimeout::ZERO), "it was awake");
        sleeper.doze();
        sleeper.wake();
        sleeper.wake();
        assert!(is_readable(&sleeper, PollTimeout::ZERO));
        sleeper.rouse();
        assert!(!is_readable(&sleeper, PollTimeout::ZERO), "it was taken back");
        sleeper.doze();
        sleeper.rouse();
        sleeper.wake();
        assert!(!is_readable(&sleeper, PollTimeout::ZERO), "it woke by itself");
        // Somebody who saw it asleep comes late: that wakes it once more, and no more than once.
        sleeper.event.write(1).unwrap();
        assert!(is_readable(&sleeper, PollTimeout::ZERO));
        sleeper.doze();
        sleeper.rouse();
        assert!(!is_readable(&sleeper, PollTimeout::ZERO));
    }

    /// Each side waits for the other's step; one lost wake-up stops both.
    #[test]
    fn no_wake_up_is_lost() {
        const STEPS: u64 = 20_000;
        let sides: Arc<[(Sleeper, AtomicU64); 2]> =
            Arc::new([0, 1].map(|_| (Sleeper::new().unwrap(), AtomicU64::new(0))));
        let run = |own: usize, sides: Arc<[(Sleeper, AtomicU64); 2]>| {
            let ((sleeper, brought), (other, to)) = (&sides[own], &sides[1 - own]);
            for step in 1..=STEPS {
                if own == 0 {
                    to.store(step, Ordering::Release);
                    other.wake();
                }
                while brought.load(Ordering::Acquire) < step {
                    sleeper.doze();
                    let woken = brought.load(Ordering::Acquire) >= step
                        || is_readable(sleeper, PollTimeout::from(10_000_u16));
                    sleeper.rouse();
                    assert!(woken, "side {own} slept through step {step}");
                }
                if own == 1 {
                    to.store(step, Ordering::Release);
                    other.wake();
                }
            }
        };
        let other = sides.clone();
        let thread = std::thread::spawn(move || run(1, other));
        run(0, sides);
        thread.join().unwrap();
    }
}
