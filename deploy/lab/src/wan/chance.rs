//! Chance that is the same each time: a small generator of numbers, seeded.

use std::time::Duration;

/// Numbers that look like chance and follow from a seed (splitmix64). Good for tests, never for keys.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The numbers that follow from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn fraction(&mut self) -> f64 {
        // 53 bits are what a fraction holds.
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something happens that happens in this share of cases: never at 0, always at 1.
    pub fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.fraction() < share
    }

    /// A time from nothing to `most`, `most` excluded.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.fraction())
    }

    /// A port that needs no privilege.
    pub fn port(&mut self) -> u16 {
        let range = u64::from(u16::MAX) - 1023;
        u16::try_from(1024 + self.number() % range).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_gives_others() {
        let numbers = |seed| {
            let mut chance = Chance::new(seed);
            std::array::from_fn::<u64, 8, _>(|_| chance.number())
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn shares_come_out_as_asked() {
        let mut chance = Chance::new(1);
        for share in [0.0, 0.05, 0.5, 1.0] {
            let hits = (0..100_000).filter(|_| chance.happens(share)).count();
            let found = hits as f64 / 100_000.0;
            assert!((found - share).abs() < 0.005, "{share}: {found}");
        }
        for _ in 0..10_000 {
            assert!(chance.port() >= 1024);
            assert!(chance.up_to(Duration::from_millis(3)) < Duration::from_millis(3));
        }
    }
}
