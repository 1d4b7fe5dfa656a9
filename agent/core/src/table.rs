//! Hash tables whose order nobody outside can steer, and that come out the same for the same seed.

use foldhash::quality::FixedState;

/// A map with a seed of the engine's own.
pub(crate) type Map<K, V> = hashbrown::HashMap<K, V, FixedState>;

/// Hands out hash seeds and other small choices that grow from the engine's seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeds {
    state: u64,
}

impl Seeds {
    /// Choices that grow from `seed`.
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        let state = seed.chunks_exact(8).fold(0x9e37_79b9_7f4a_7c15_u64, |state, chunk| {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            mix(state ^ u64::from_le_bytes(word))
        });
        Self { state }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// An empty map with a seed of its own.
    pub(crate) fn map<K, V>(&mut self) -> Map<K, V> {
        Map::with_hasher(self.hasher())
    }

    /// A hasher with a seed of its own.
    pub(crate) fn hasher(&mut self) -> FixedState {
        FixedState::with_seed(self.next())
    }
}

/// The finisher of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
