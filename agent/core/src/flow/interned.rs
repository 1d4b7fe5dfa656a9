//! Values that many have in common, kept once.

use std::hash::{BuildHasher, Hash};

use foldhash::quality::FixedState;

use super::chunks::Chunks;
use super::index::Index;

/// Names a value as long as somebody holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(u32);

#[derive(Debug)]
struct Entry<T> {
    value: T,
    holders: u32,
}

/// Values, each with the number of those who hold it. One that nobody holds gives its place to another.
#[derive(Debug)]
pub(super) struct Interned<T> {
    hasher: FixedState,
    index: Index,
    entries: Chunks<Entry<T>, 6>,
    free: Vec<u32>,
}

impl<T: Copy + Eq + Hash> Interned<T> {
    pub(super) fn new(hasher: FixedState) -> Self {
        Self { hasher, index: Index::new(), entries: Chunks::new(), free: Vec::new() }
    }

    /// How many different values are held.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.index.len()
    }

    /// The value with this name, while somebody holds it.
    pub(super) fn get(&self, id: Id) -> Option<T> {
        self.entries.get(id.0).filter(|entry| entry.holders > 0).map(|entry| entry.value)
    }

    /// Names a value for one more holder. None where no number is left for it.
    pub(super) fn hold(&mut self, value: T) -> Option<Id> {
        let hash = self.hasher.hash_one(value);
        let entries = &self.entries;
        let is = |at| entries.get(at).is_some_and(|entry: &Entry<T>| entry.value == value);
        if let Some(at) = self.index.find(hash, is) {
            let entry = self.entries.get_mut(at)?;
            entry.holders = entry.holders.checked_add(1)?;
            return Some(Id(at));
        }
        let entry = Entry { value, holders: 1 };
        let at = match self.free.pop() {
            Some(at) => {
                *self.entries.get_mut(at)? = entry;
                at
            }
            None => self.entries.push(entry)?,
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash_of =
            |at| entries.get(at).map_or(0, |entry: &Entry<T>| hasher.hash_one(entry.value));
        self.index.insert(hash, at, hash_of);
        Some(Id(at))
    }

    /// One holder less.
    pub(super) fn release(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(id.0).filter(|entry| entry.holders > 0) else {
            return;
        };
        entry.holders -= 1;
        if entry.holders == 0 {
            let hash = self.hasher.hash_one(entry.value);
            self.index.remove(hash, id.0);
            self.free.push(id.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_as_long_as_somebody_holds_it() {
        let mut values = Interned::new(FixedState::with_seed(3));
        let (one, two) = (values.hold("one").unwrap(), values.hold("two").unwrap());
        assert_eq!(values.hold("one"), Some(one));
        assert_eq!((values.get(one), values.get(two), values.len()), (Some("one"), Some("two"), 2));
        values.release(one);
        assert_eq!(values.get(one), Some("one"));
        values.release(one);
        values.release(one);
        assert_eq!((values.get(one), values.len()), (None, 1));
        assert_eq!(values.hold("three"), Some(one), "its place is used again");
        assert_eq!((values.get(one), values.get(two)), (Some("three"), Some("two")));
    }
}
