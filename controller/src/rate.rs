//! How often one address may try something.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are remembered. When there are more, newcomers share one allowance.
const MAX_ADDRESSES: usize = 10_000;

/// An allowance per address: so many at once, then one per interval.
#[derive(Debug)]
pub struct Rate {
    burst: f64,
    interval: Duration,
    buckets: Mutex<HashMap<Option<IpAddr>, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rate {
    /// `burst` at once, then one per `interval`.
    #[must_use]
    pub fn new(burst: u16, interval: Duration) -> Self {
        Self { burst: f64::from(burst), interval, buckets: Mutex::default() }
    }

    /// Whether `address` may try now; counts the attempt if so.
    #[must_use]
    pub fn allow(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(address.to_canonical());
        if !buckets.contains_key(&key) && buckets.len() >= MAX_ADDRESSES {
            buckets.retain(|_, bucket| self.refilled(*bucket, now) < self.burst);
            if buckets.len() >= MAX_ADDRESSES {
                key = None;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: self.burst, at: now });
        let left = self.refilled(*bucket, now);
        let allowed = left >= 1.0;
        *bucket = Bucket { left: if allowed { left - 1.0 } else { left }, at: now };
        allowed
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + passed / self.interval.as_secs_f64()).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let rate = Rate::new(3, Duration::from_secs(2));
        let (here, there) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let start = Instant::now();
        let tries = |address, after| {
            (0..5).filter(|_| rate.allow(address, start + Duration::from_secs(after))).count()
        };
        assert_eq!(tries(here, 0), 3);
        assert_eq!(tries(there, 0), 3, "addresses have allowances of their own");
        assert_eq!(tries(here, 1), 0);
        assert_eq!(tries(here, 2), 1);
        assert_eq!(tries(here, 1000), 3);
    }

    #[test]
    fn a_crowd_of_addresses_takes_no_more_memory_and_no_more_turns() {
        let rate = Rate::new(1, Duration::from_secs(60));
        let now = Instant::now();
        let allowed =
            (0..20_000u32).filter(|n| rate.allow(IpAddr::from(n.to_be_bytes()), now)).count();
        assert_eq!(allowed, MAX_ADDRESSES + 1);
    }
}
