//! When the worker is to wake though nothing has come: a timer that stays armed over many waits.
//!
//! A time-out that is given with each wait is armed before and taken back after every packet. On an idle core each of
//! these sets the core's clock anew, which on a virtual machine is the host's to do; and whoever sent the packet waits for
//! it. What is due hardly ever comes to be due sooner, so that one descriptor, armed once, serves all waits until then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// What an armed timer has at least: none at all would take it back.
const LEAST: Duration = Duration::from_nanos(1);

/// Readable from the time on that it was armed for, until it is armed again.
#[derive(Debug)]
pub(super) struct Timer {
    fd: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self { fd: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?, armed: None })
    }

    /// Has it be readable by `due`, and not at `now`. It may be so earlier, once: where it was armed for a time before
    /// `due` that hasn't come.
    pub(super) fn wake_by(&mut self, due: Instant, now: Instant) -> io::Result<()> {
        if self.armed.is_some_and(|armed| armed > now && armed <= due) {
            return Ok(());
        }
        self.armed = None;
        let wait = TimeSpec::from_duration(due.saturating_duration_since(now).max(LEAST));
        self.fd.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
        self.armed = Some(due);
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Whether it is readable within so many milliseconds.
    fn fires(timer: &Timer, within: u16) -> bool {
        let mut fds = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(within)).unwrap() == 1
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const PATIENCE: u16 = 30_000;

    #[test]
    fn it_fires_when_it_is_due_and_not_before_and_stays_until_it_is_armed_again() {
        let mut timer = Timer::new().unwrap();
        assert!(!fires(&timer, 0));
        let now = Instant::now();
        let due = now + Duration::from_millis(20);
        timer.wake_by(due, now).unwrap();
        assert!(fires(&timer, PATIENCE));
        assert!(Instant::now() >= due);
        assert!(fires(&timer, 0), "nobody has armed it again");
        let now = Instant::now();
        timer.wake_by(now + HOUR, now).unwrap();
        assert!(!fires(&timer, 0));
        // What is overdue.
        timer.wake_by(now, now + HOUR).unwrap();
        assert!(fires(&timer, PATIENCE));
    }

    #[test]
    fn what_comes_to_be_due_sooner_is_heeded_and_later_changes_nothing() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        timer.wake_by(now + HOUR, now).unwrap();
        timer.wake_by(now + HOUR / 2, now).unwrap();
        assert_eq!(timer.armed, Some(now + HOUR / 2));
        timer.wake_by(now + HOUR, now).unwrap();
        assert_eq!(timer.armed, Some(now + HOUR / 2), "it wakes once too early");
        timer.wake_by(now + HOUR, now + HOUR / 2).unwrap();
        assert_eq!(timer.armed, Some(now + HOUR), "which has passed");
        assert!(!fires(&timer, 0));
        timer.wake_by(now + Duration::from_millis(5), now).unwrap();
        assert!(fires(&timer, PATIENCE));
    }
}
