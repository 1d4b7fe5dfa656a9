//! Waiting on a condition, with a deadline.

use std::time::{Duration, Instant};

/// What wasn't so in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("waited {waited:?} for {what}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
}

/// Asks again and again until `condition` gives something, for `limit` at most.
///
/// # Errors
/// [`TimedOut`] when the limit has passed.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(TimedOut { what: what.into(), waited: limit });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// Like [`until`] for conditions that can say why they aren't met: the last reason is in the error.
///
/// # Errors
/// What `attempt` said last when the limit has passed.
pub fn until_ok<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut last = None;
    until(limit, what, || match attempt() {
        Ok(value) => Some(value),
        Err(error) => {
            last = Some(error);
            None
        }
    })
    .map_err(|timed_out| match last {
        Some(error) => error.context(timed_out),
        None => timed_out.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_what_the_condition_gives_and_gives_up_in_time() {
        let mut left = 3;
        let value = until(Duration::from_secs(5), "three", || {
            left -= 1;
            (left == 0).then_some(7)
        });
        assert_eq!(value.unwrap(), 7);
        let error = until(Duration::from_millis(10), "never", || None::<()>).unwrap_err();
        assert_eq!(error.to_string(), "waited 10ms for never");
        let error = until_ok(Duration::from_millis(1), "it", || {
            anyhow::Result::<()>::Err(anyhow::anyhow!("so it is"))
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("so it is"));
    }
}
