//! Finds numbered entries by their hash. It grows by one bucket at a time (linear hashing, Litwin 1980), so that no
//! entry ever waits for all the others to be put elsewhere, and nothing that was removed leaves a trace.

use super::chunks::Chunks;

const NONE: u32 = u32::MAX;
/// Buckets at first; a power of two.
const FIRST: u32 = 16;
/// Buckets for each entry: most hold one or none.
const BUCKETS_AN_ENTRY: u32 = 2;

/// An index of entries that are kept elsewhere.
#[derive(Debug)]
pub(super) struct Index {
    /// The first entry of each bucket.
    heads: Chunks<u32, 12>,
    /// By entry: the next one in its bucket.
    nexts: Chunks<u32, 12>,
    /// As many buckets as there were when growing last came round; a power of two.
    base: u32,
    /// Buckets below this were split since.
    split: u32,
    len: u32,
    /// Entries that were put into another bucket, since the start.
    #[cfg(test)]
    moved: u64,
}

impl Index {
    pub(super) fn new() -> Self {
        let mut heads = Chunks::new();
        for _ in 0..FIRST {
            heads.push(NONE);
        }
        Self {
            heads,
            nexts: Chunks::new(),
            base: FIRST,
            split: 0,
            len: 0,
            #[cfg(test)]
            moved: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    /// The entry with this hash that `is` says it is.
    #[inline]
    pub(super) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = *self.heads.get(self.bucket(hash))?;
        while at != NONE {
            if is(at) {
                return Some(at);
            }
            at = *self.nexts.get(at)?;
        }
        None
    }

    /// The entry that [`Self::find`] looks at first.
    #[inline]
    pub(super) fn first(&self, hash: u64) -> Option<u32> {
        self.heads.get(self.bucket(hash)).copied().filter(|at| *at != NONE)
    }

    /// Puts an entry in that isn't there yet. `hash_of` tells those of others.
    pub(super) fn insert(&mut self, hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) {
        while self.nexts.len() <= entry {
            if self.nexts.push(NONE).is_none() {
                return;
            }
        }
        self.link(self.bucket(hash), entry);
        self.len += 1;
        for _ in 0..BUCKETS_AN_ENTRY {
            if self.heads.len() < self.len.saturating_mul(BUCKETS_AN_ENTRY) {
                self.grow(&hash_of);
            }
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, hash: u64, entry: u32) {
        let bucket = self.bucket(hash);
        let Some(next) = self.nexts.get(entry).copied() else { return };
        let mut before = NONE;
        let mut at = self.heads.get(bucket).copied().unwrap_or(NONE);
        while at != NONE && at != entry {
            before = at;
            at = self.nexts.get(at).copied().unwrap_or(NONE);
        }
        if at == NONE {
            return;
        }
        let link = match before {
            NONE => self.heads.get_mut(bucket),
            before => self.nexts.get_mut(before),
        };
        if let Some(link) = link {
            *link = next;
            self.len -= 1;
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "any of a hash's bits will do")]
    const fn bucket(&self, hash: u64) -> u32 {
        let hash = hash as u32;
        let bucket = hash & (self.base - 1);
        if bucket < self.split { hash & (2 * self.base - 1) } else { bucket }
    }

    fn link(&mut self, bucket: u32, entry: u32) {
        let Some(head) = self.heads.get_mut(bucket) else { return };
        let next = std::mem::replace(head, entry);
        if let Some(place) = self.nexts.get_mut(entry) {
            *place = next;
        }
    }

    /// Makes one bucket more, out of the entries of one.
    fn grow(&mut self, hash_of: impl Fn(u32) -> u64) {
        let from = self.split;
        if self.heads.push(NONE).is_none() {
            return;
        }
        let mut at = self.heads.get_mut(from).map_or(NONE, |head| std::mem::replace(head, NONE));
        self.split += 1;
        while at != NONE {
            let next = self.nexts.get(at).copied().unwrap_or(NONE);
            self.link(self.bucket(hash_of(at)), at);
            #[cfg(test)]
            {
                self.moved += 1;
            }
            at = next;
        }
        if self.split == self.base {
            (self.base, self.split) = (2 * self.base, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::BuildHasher;

    use foldhash::quality::FixedState;
    use proptest::prelude::*;

    use super::*;

    fn hash(entry: u32) -> u64 {
        FixedState::with_seed(7).hash_one(entry)
    }

    #[test]
    fn growing_costs_each_entry_the_same() {
        let mut index = Index::new();
        let mut most = 0;
        for entry in 0..200_000 {
            let before = index.moved;
            index.insert(hash(entry), entry, hash);
            most = most.max(index.moved - before);
        }
        assert!(most < 24, "one entry moved {most} others");
        assert!(index.moved < 2 * 200_000, "{} moves", index.moved);
        let longest = (0..index.heads.len()).map(|bucket| {
            let first = *index.heads.get(bucket).unwrap();
            std::iter::successors(Some(first), |at| index.nexts.get(*at).copied())
                .take_while(|at| *at != NONE)
                .count()
        });
        assert!(longest.max().unwrap() < 14, "a bucket is long");
        for entry in 0..200_000 {
            assert_eq!(index.find(hash(entry), |at| at == entry), Some(entry));
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_was_put_in(actions in prop::collection::vec((0u32..300, any::<bool>()), 1..2_000)) {
            let mut index = Index::new();
            let mut known = BTreeMap::new();
            // Few different hashes, so that buckets are shared.
            let hash = |entry: u32| hash(entry / 3);
            for (entry, put) in actions {
                if put && known.insert(entry, ()).is_none() {
                    index.insert(hash(entry), entry, hash);
                } else if !put && known.remove(&entry).is_some() {
                    index.remove(hash(entry), entry);
                }
                prop_assert_eq!(index.len(), known.len());
            }
            for entry in 0..300 {
                let found = index.find(hash(entry), |at| at == entry);
                prop_assert_eq!(found.is_some(), known.contains_key(&entry));
            }
        }
    }
}
