//! Numbered places that are used again as late as possible.

use std::collections::VecDeque;

/// So many freed places are always kept before one is used again.
const FEW: usize = 64;

/// A bounded list with stable numbers. A freed number goes to the end of the queue, so that what still names its
/// old holder rarely meets a new one. There are never many more places than twice what was held at once.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Option<T>>,
    free: VecDeque<u32>,
    max: usize,
}

impl<T> Slots<T> {
    pub(super) const fn new(max: usize) -> Self {
        Self { places: Vec::new(), free: VecDeque::new(), max }
    }

    /// Puts what `make` makes of its number into a place. `None` when all are taken.
    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> T) -> Option<u32> {
        let many_free = self.free.len() > FEW.max(self.places.len() / 2);
        let number = if self.places.len() < self.max && !many_free {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).ok()?
        } else {
            self.free.pop_front()?
        };
        let place = self.places.get_mut(number as usize)?;
        *place = Some(make(number));
        Some(number)
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let taken = self.places.get_mut(number as usize)?.take();
        if taken.is_some() {
            self.free.push_back(number);
        }
        taken
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.places.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.places.get_mut(number as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..).zip(&self.places).filter_map(|(number, place)| Some((number, place.as_ref()?)))
    }

    pub(super) fn numbers(&self) -> Vec<u32> {
        self.iter().map(|(number, _)| number).collect()
    }
}

#[cfg(test)]
impl<T> Slots<T> {
    /// No more places from now on than these.
    pub(super) const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Places that there are, taken or free.
    pub(super) const fn places(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_many_as_were_needed_at_once_however_often_they_change_hands() {
        let mut slots = Slots::new(1 << 20);
        let mut held: VecDeque<u32> =
            (0..300).filter_map(|_| slots.insert(|number| number)).collect();
        let mut last = vec![0_usize; 1000];
        for round in 1..10_000 {
            let number = held.pop_front().unwrap();
            assert_eq!(slots.remove(number), Some(number));
            last[number as usize] = round;
            let number = slots.insert(|number| number).unwrap();
            let freed = std::mem::take(&mut last[number as usize]);
            assert!(freed == 0 || round - freed >= FEW, "{number} is used again too soon");
            held.push_back(number);
        }
        assert!(slots.places() <= 2 * 300 + FEW, "{}", slots.places());
    }

    #[test]
    fn numbers_are_used_again_late_and_never_beyond_the_bound() {
        let mut slots = Slots::new(3);
        let numbers: Vec<_> = (0..4).map(|_| slots.insert(|number| number)).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2), None]);
        assert_eq!((slots.remove(1), slots.remove(0), slots.remove(0)), (Some(1), Some(0), None));
        assert_eq!(slots.insert(|_| 9), Some(1));
        assert_eq!((slots.get(1), slots.get(0), slots.get(99)), (Some(&9), None, None));
        assert_eq!(slots.numbers(), [1, 2]);
    }
}
