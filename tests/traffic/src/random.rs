//! Numbers that look random and follow from a seed (SplitMix64).

/// A stream of numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of these parts, which is the same wherever and whenever it is asked for.
    pub(crate) fn of(parts: &[u64]) -> Self {
        let mut random = Self(0x5eed);
        for part in parts {
            random.0 = random.next() ^ part;
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which isn't 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    /// From 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// How often something happens that happens `mean` times on average.
    pub(crate) fn count(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            // Close enough to a Poisson distribution there.
            let spread = (self.share() + self.share() + self.share() - 1.5) * 2.0 * mean.sqrt();
            return (mean + spread).max(0.0) as u64;
        }
        let bound = (-mean).exp();
        let (mut product, mut count) = (self.share(), 0);
        while product > bound {
            product *= self.share();
            count += 1;
        }
        count
    }
}
