//! How long this machine itself kept a program waiting that wanted to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Between two looks at the clock.
const BEAT: Duration = Duration::from_millis(5);

/// A thread that sleeps for moments, and notes by how much it woke too late.
#[derive(Debug)]
pub struct Stalls {
    /// Microseconds.
    worst: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Stalls {
    /// Begins to look.
    ///
    /// # Errors
    /// If there are no more threads to be had.
    pub fn watch() -> Result<Self> {
        let (worst, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (noted, ended) = (worst.clone(), stop.clone());
        std::thread::Builder::new().name("stalls".into()).spawn(move || {
            while !ended.load(Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(BEAT);
                let late = begun.elapsed().saturating_sub(BEAT).as_micros();
                noted.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Relaxed);
            }
        })?;
        Ok(Self { worst, stop })
    }

    /// The worst since the last question.
    #[must_use]
    pub fn worst(&self) -> Duration {
        Duration::from_micros(self.worst.swap(0, Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_takes_its_time_and_is_noted_once() {
        let stalls = Stalls::watch().unwrap();
        let noted = || {
            crate::wait::until(Duration::from_secs(60), "a look at the clock", || {
                let worst = stalls.worst();
                (!worst.is_zero()).then_some(worst)
            })
        };
        assert!(noted().unwrap() < Duration::from_secs(60));
        noted().unwrap();
    }
}
