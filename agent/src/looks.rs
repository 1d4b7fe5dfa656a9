//! Looks that are made now and then, at moments that all of them share: being woken costs more than what is looked at, and
//! whoever wakes for one look makes the others as well.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A look at once, and then one at each moment of its kind. One that comes late isn't made up for.
#[derive(Debug)]
pub(crate) struct Looks {
    every: Duration,
    due: Instant,
}

impl Looks {
    pub(crate) fn every(every: Duration) -> Self {
        Self { every, due: Instant::now() }
    }

    /// Waits for the next one. It may be dropped and asked again.
    pub(crate) async fn next(&mut self) {
        sleep_until(self.due).await;
        self.due = next(self.every, Instant::now());
    }
}

/// Waits for the next moment at which looks so far apart are made: `every` at most.
pub(crate) async fn pause(every: Duration) {
    sleep_until(next(every, Instant::now())).await;
}

/// A whole number of `every` after this process's first look, and later than `now`.
pub(crate) fn next(every: Duration, now: Instant) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    after(*FIRST.get_or_init(|| now), every, now)
}

fn after(first: Instant, every: Duration, now: Instant) -> Instant {
    let every = every.max(Duration::from_millis(1)).as_nanos();
    let past = now.saturating_duration_since(first).as_nanos() % every;
    now + Duration::from_nanos(u64::try_from(every - past).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_fall_together_however_they_began_and_are_never_further_apart_than_they_are_to_be() {
        let first = Instant::now();
        let (half, whole) = (Duration::from_millis(500), Duration::from_secs(1));
        let mut seen = Vec::new();
        for begun in [0, 1, 499_999_999, 500_000_000, 999_999_999] {
            let now = first + Duration::from_secs(7) + Duration::from_nanos(begun);
            for every in [half, whole] {
                let due = after(first, every, now);
                assert!(due > now && due - now <= every, "{:?} after {begun} ns", due - now);
                assert_eq!(after(first, every, due) - due, every);
            }
            seen.push(after(first, whole, now));
        }
        assert!(seen.iter().all(|due| *due == first + Duration::from_secs(8)), "{seen:?}");
        // Before the first one, too, whoever asks is answered.
        assert_eq!(after(first + whole, half, first), first + half);
    }

    #[tokio::test]
    async fn the_first_look_is_at_once_and_one_that_was_late_is_made_once() {
        let every = Duration::from_millis(50);
        let mut looks = Looks::every(every);
        looks.due -= Duration::from_secs(3_600);
        looks.next().await;
        let now = Instant::now();
        assert!(looks.due <= now + every && looks.due + every > now, "{looks:?} at {now:?}");
        looks.next().await;
        pause(every).await;
    }
}
