//! A list that grows in pieces: nothing in it is ever moved or copied, and what isn't needed yet takes no memory.

/// A list in pieces of `1 << BITS` entries.
#[derive(Debug)]
pub(super) struct Chunks<T, const BITS: u32> {
    pieces: Vec<Vec<T>>,
    len: u32,
}

impl<T, const BITS: u32> Chunks<T, BITS> {
    const MASK: u32 = (1 << BITS) - 1;

    pub(super) const fn new() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Puts an entry at the end and says where that is. None where no number is left for it.
    pub(super) fn push(&mut self, entry: T) -> Option<u32> {
        let at = self.len;
        self.len = at.checked_add(1)?;
        if at & Self::MASK == 0 {
            self.pieces.push(Vec::with_capacity(1 << BITS));
        }
        self.pieces.last_mut()?.push(entry);
        Some(at)
    }

    #[inline]
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.pieces.get((at >> BITS) as usize)?.get((at & Self::MASK) as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.pieces.get_mut((at >> BITS) as usize)?.get_mut((at & Self::MASK) as usize)
    }

    /// All entries, in their order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_where_they_are() {
        let mut list: Chunks<u32, 2> = Chunks::new();
        assert_eq!((list.len(), list.get(0)), (0, None));
        list.push(0);
        let first = std::ptr::from_ref(list.get(0).unwrap());
        for number in 1..1_000 {
            assert_eq!(list.push(number), Some(number));
        }
        assert_eq!(std::ptr::from_ref(list.get(0).unwrap()), first, "growing moved an entry");
        *list.get_mut(517).unwrap() += 10_000;
        assert_eq!(
            (list.get(517), list.get(999), list.get(1_000)),
            (Some(&10_517), Some(&999), None)
        );
        assert_eq!(list.iter().count(), 1_000);
    }
}
