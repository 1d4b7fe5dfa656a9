//! A queue in which everyone has a share: served in turns by bytes (deficit round robin), and no one's items take the
//! place of another's.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Bytes that a share hands out in one turn, at least.
const QUANTUM: usize = 2_048;
/// Places without an owner whose queues are kept for the next one.
const SPARE: usize = 16;

#[derive(Debug)]
struct Share<K, T> {
    owner: K,
    items: VecDeque<(T, usize)>,
    deficit: usize,
}

/// Items of many owners.
///
/// How many one may have waiting shrinks as the queue fills: as many as there is still room for, so that `n` greedy
/// ones leave room for one more. Everyone may have one, up to twice the limit in all.
#[derive(Debug)]
pub(super) struct Shares<K, T> {
    /// By place. There are never more than owners had something waiting at once.
    shares: Vec<Share<K, T>>,
    /// Where those are who have something waiting. Items mostly come in runs of one owner's, for which nobody is looked up.
    places: HashMap<K, usize>,
    turns: VecDeque<usize>,
    free: Vec<usize>,
    /// Whose item came last, as long as some of that owner's wait.
    last: Option<usize>,
    waiting: usize,
    limit: usize,
}

impl<K: Copy + Eq + Hash, T> Shares<K, T> {
    /// Nothing yet, of which one owner alone may have half of `limit` waiting.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            shares: Vec::new(),
            places: HashMap::new(),
            turns: VecDeque::new(),
            free: Vec::new(),
            last: None,
            waiting: 0,
            limit,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Where what `owner` has waiting is.
    fn place(&self, owner: K) -> Option<usize> {
        let is_owners =
            |place: &usize| self.shares.get(*place).is_some_and(|share| share.owner == owner);
        self.last.filter(is_owners).or_else(|| self.places.get(&owner).copied())
    }

    /// Has an item wait; false where its owner has too many.
    pub(super) fn push(&mut self, owner: K, item: T, bytes: usize) -> bool {
        let allowed = self.limit.saturating_sub(self.waiting);
        let place = match self.place(owner) {
            Some(place) => place,
            None if self.waiting >= 2 * self.limit => return false,
            None => self.open(owner),
        };
        let Some(share) = self.shares.get_mut(place) else { return false };
        if !share.items.is_empty() && share.items.len() >= allowed {
            return false;
        }
        share.items.push_back((item, bytes));
        self.last = Some(place);
        self.waiting += 1;
        true
    }

    /// Gives an owner a place, and a turn.
    fn open(&mut self, owner: K) -> usize {
        let place = self.free.pop().unwrap_or(self.shares.len());
        match self.shares.get_mut(place) {
            Some(share) => {
                share.owner = owner;
                share.deficit = 0;
            }
            None => self.shares.push(Share { owner, items: VecDeque::new(), deficit: 0 }),
        }
        self.places.insert(owner, place);
        self.turns.push_back(place);
        place
    }

    /// The item whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        loop {
            let place = *self.turns.front()?;
            let Some(share) = self.shares.get_mut(place) else {
                self.turns.pop_front();
                continue;
            };
            if let Some((_, bytes)) = share.items.front()
                && share.deficit < *bytes
            {
                share.deficit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            let item = share.items.pop_front();
            if let Some((_, bytes)) = &item {
                share.deficit -= bytes;
            }
            if share.items.is_empty() {
                // Who leaves takes no claim along.
                self.turns.pop_front();
                self.places.remove(&share.owner);
                if self.free.len() >= SPARE {
                    share.items = VecDeque::new();
                }
                self.free.push(place);
                self.last = self.last.filter(|last| *last != place);
            }
            if let Some((item, _)) = item {
                self.waiting -= 1;
                return Some(item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_leaves_its_neighbour_room_and_every_second_turn() {
        let mut shares = Shares::new(100);
        let taken = (0..1_000).filter(|n| shares.push("flood", *n, 1_400)).count();
        assert_eq!(taken, 50);
        for n in 0..10 {
            assert!(
                shares.push("quiet", 5_000 + n, 1_400),
                "there is room for {n} of the neighbour's"
            );
        }
        let first: Vec<_> = std::iter::from_fn(|| shares.pop()).take(24).collect();
        let quiet = first.iter().filter(|n| **n >= 5_000).count();
        assert_eq!(quiet, 10, "by turns: {first:?}");
    }

    #[test]
    fn turns_are_by_bytes() {
        let mut shares = Shares::new(1_000);
        for _ in 0..400 {
            shares.push('s', 's', 100);
        }
        for _ in 0..200 {
            shares.push('l', 'l', 1_400);
        }
        let mut bytes = HashMap::from([('s', 0_usize), ('l', 0)]);
        for _ in 0..200 {
            let owner = shares.pop().expect("there is more");
            *bytes.get_mut(&owner).unwrap() += if owner == 's' { 100 } else { 1_400 };
        }
        assert!(bytes[&'s'].abs_diff(bytes[&'l']) <= 2 * QUANTUM, "{bytes:?}");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_that_was_taken_and_everyones_items_stay_in_order(
            pushes in prop::collection::vec((0_u8..40, 1_usize..2_100, prop::bool::weighted(0.3)), 0..600),
            limit in 1_usize..64,
        ) {
            let mut shares = Shares::new(limit);
            let (mut inside, mut out): (HashMap<u8, VecDeque<usize>>, usize) = (HashMap::new(), 0);
            let mut taken = 0;
            let mut leave = |shares: &mut Shares<u8, (u8, usize)>, inside: &mut HashMap<u8, VecDeque<usize>>| {
                let (owner, n) = shares.pop()?;
                let expected = inside.get_mut(&owner).and_then(VecDeque::pop_front);
                out += 1;
                Some(expected == Some(n))
            };
            for (n, (owner, bytes, pops)) in pushes.into_iter().enumerate() {
                let first = inside.get(&owner).is_none_or(VecDeque::is_empty);
                let took = shares.push(owner, (owner, n), bytes);
                prop_assert!(took || !first || shares.waiting >= 2 * limit, "everyone may have one");
                if took {
                    taken += 1;
                    inside.entry(owner).or_default().push_back(n);
                }
                prop_assert!(shares.waiting <= 2 * limit + 1);
                if pops {
                    prop_assert_ne!(leave(&mut shares, &mut inside), Some(false));
                }
            }
            while let Some(in_order) = leave(&mut shares, &mut inside) {
                prop_assert!(in_order);
            }
            prop_assert_eq!(out, taken);
            prop_assert!(shares.is_empty() && shares.places.is_empty() && shares.turns.is_empty());
            prop_assert_eq!(shares.free.len(), shares.shares.len());
            prop_assert!(shares.shares.len() <= 40, "a place is used again");
        }
    }
}
