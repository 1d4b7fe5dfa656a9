//! The flow table: bounded in all and per device, so that one device can't starve its neighbours. Whatever it does
//! for one packet costs the same however many flows there are.

use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::time::Instant;

use foldhash::quality::FixedState;

use super::chunks::Chunks;
use super::index::Index;
use super::interned::Interned;
use super::{Beginning, Flow, FlowKey, Judgement, Moment, Origin, State};
use crate::station::{Share, StationId};

#[cfg(test)]
mod tests;

/// A flow's place in the table. Valid until the flow is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowIndex(u32);

const NONE: u32 = u32::MAX;

/// How many more flows than asked for [`FlowTable::recent`] puts in order at most, where many have their last packet in
/// the same second.
const SAME_SECOND: usize = 8_192;

/// The device has as many flows open as it may have, and none of them can make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableFull;

/// Packets of a flow that go on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passed {
    /// Whether they come from the initiator.
    pub(crate) forward: bool,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Slot {
    flow: Option<Flow>,
    /// Neighbours in the list of the flow's share and state, in the order of the seconds of their last packets. A free
    /// slot's next one is the next free one.
    before: u32,
    after: u32,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE, tail: NONE };
}

/// Flows of one share.
#[derive(Debug, Clone)]
struct Device {
    lists: [List; State::COUNT],
    count: usize,
}

impl Device {
    const EMPTY: Self = Self { lists: [List::EMPTY; State::COUNT], count: 0 };
}

/// All flows.
#[derive(Debug)]
pub(crate) struct FlowTable {
    hasher: FixedState,
    index: Index,
    slots: Chunks<Slot, 9>,
    /// The first free slot.
    free: u32,
    judgements: Interned<Judgement>,
    /// Which slots hold flows with something to be reported, in words of 64.
    news: Vec<u64>,
    /// The word that is being reported, what is left of it, and how many are left of this round.
    next_news: usize,
    reporting: u64,
    news_left: usize,
    devices: Vec<Device>,
    /// By station: of how many flows it is the other end, where both are here.
    answering: Vec<u32>,
    limit: usize,
    limit_per_device: usize,
    /// Where the next sweep goes on.
    sweep: usize,
    origin: Origin,
}

impl FlowTable {
    /// An empty table for at most so many flows.
    pub(crate) fn new(
        limit: usize,
        limit_per_device: usize,
        hasher: FixedState,
        origin: Origin,
    ) -> Self {
        Self {
            judgements: Interned::new(hasher.clone()),
            hasher,
            index: Index::new(),
            slots: Chunks::new(),
            free: NONE,
            news: Vec::new(),
            next_news: 0,
            reporting: 0,
            news_left: 0,
            devices: Vec::new(),
            answering: Vec::new(),
            // Buckets of the index are numbered, too, and there are twice as many.
            limit: limit.clamp(1, (NONE / 4) as usize),
            limit_per_device: limit_per_device.max(1),
            sweep: 0,
            origin,
        }
    }

    /// How many flows there are.
    pub(crate) const fn len(&self) -> usize {
        self.index.len()
    }

    /// How many flows use up a share.
    pub(crate) fn count_of(&self, share: Share) -> usize {
        self.devices.get(share.index()).map_or(0, |device| device.count)
    }

    /// A moment as flows have it.
    pub(crate) fn moment(&self, at: Instant) -> Moment {
        self.origin.moment(at)
    }

    /// A moment of a flow.
    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.origin.instant(moment)
    }

    /// The flow with this key.
    #[inline]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowIndex> {
        let is = |at| self.get(FlowIndex(at)).is_some_and(|flow| flow.key == *key);
        self.index.find(self.hasher.hash_one(key), is).map(FlowIndex)
    }

    /// How many flows are read ahead together.
    pub(crate) const READ_AHEAD: usize = 16;

    /// Reads what finding flows with these hashes, and handling their packets, will read: of all of them before any is
    /// needed. No more than [`Self::READ_AHEAD`].
    pub(crate) fn read_ahead(&self, hashes: &[u64]) {
        let mut places = [NONE; Self::READ_AHEAD];
        for (place, hash) in places.iter_mut().zip(hashes) {
            *place = self.index.first(*hash).unwrap_or(NONE);
        }
        let read = |at: u32| {
            let flow = self.get(FlowIndex(at))?;
            // Each in another line of the cache.
            Some(u64::from(flow.tuple().source_port) ^ flow.epoch ^ flow.share.index() as u64)
        };
        // The reads are what counts, not what they bring.
        std::hint::black_box(places.into_iter().filter_map(read).fold(0, |all, one| all ^ one));
    }

    /// The hash of a key: the same for as long as the table is there.
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The flow at this place.
    #[inline]
    pub(crate) fn get(&self, at: FlowIndex) -> Option<&Flow> {
        self.slots.get(at.0)?.flow.as_ref()
    }

    /// The flow at this place, to be changed. Its key, station, state, times and counters are the table's to change.
    #[inline]
    pub(crate) fn get_mut(&mut self, at: FlowIndex) -> Option<&mut Flow> {
        self.slots.get_mut(at.0)?.flow.as_mut()
    }

    /// What was decided about the flow at this place.
    pub(crate) fn judgement(&self, at: FlowIndex) -> Option<Judgement> {
        self.judgement_of(self.get(at)?)
    }

    /// What was decided about a flow of this table.
    pub(crate) fn judgement_of(&self, flow: &Flow) -> Option<Judgement> {
        self.judgements.get(flow.judgement)
    }

    /// Puts another judgement on a flow. What was proven of it is void.
    pub(crate) fn judge(&mut self, at: FlowIndex, judgement: Judgement) {
        let Some(held) = self.judgements.hold(judgement) else { return };
        let Some(flow) = self.get_mut(at) else { return self.judgements.release(held) };
        let before = std::mem::replace(&mut flow.judgement, held);
        flow.verdict = judgement.verdict;
        flow.disprove();
        self.judgements.release(before);
    }

    /// All flows, in no useful order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|slot| slot.flow.as_ref())
    }

    /// Puts a flow in, whose key must not be there yet. Where there is no room, the oldest unfinished flow of
    /// the same device makes it, and of all devices' the one with the most flows; `evicted` gets what went.
    ///
    /// # Errors
    /// [`TableFull`] where nothing can make room.
    pub(crate) fn insert(
        &mut self,
        beginning: &Beginning,
        mut evicted: impl FnMut(Flow, &Judgement),
    ) -> Result<FlowIndex, TableFull> {
        let share = beginning.share.index();
        if self.devices.len() <= share {
            self.devices.resize(share + 1, Device::EMPTY);
        }
        if self.devices[share].count >= self.limit_per_device {
            let (gone, judgement) = self.evict(share).ok_or(TableFull)?;
            evicted(gone, &judgement);
        }
        if self.index.len() >= self.limit {
            let fullest = (0..self.devices.len()).max_by_key(|at| self.devices[*at].count);
            let gone = fullest.and_then(|at| self.evict(at)).or_else(|| self.evict(share));
            let (gone, judgement) = gone.ok_or(TableFull)?;
            evicted(gone, &judgement);
        }
        let judgement = self.judgements.hold(beginning.judgement).ok_or(TableFull)?;
        let flow = Flow::new(beginning, judgement);
        let (key, state, other) = (flow.key, flow.state, flow.other());
        let Some(at) = self.take_place(flow) else {
            self.judgements.release(judgement);
            return Err(TableFull);
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash_of = |at| {
            let flow = slots.get(at).and_then(|slot: &Slot| slot.flow.as_ref());
            flow.map_or(0, |flow| hasher.hash_one(flow.key))
        };
        self.index.insert(hasher.hash_one(key), at, hash_of);
        self.devices[share].count += 1;
        if let Some(other) = other {
            if self.answering.len() <= other.index() {
                self.answering.resize(other.index() + 1, 0);
            }
            self.answering[other.index()] += 1;
        }
        self.append(share, state, at);
        self.note_news(at);
        Ok(FlowIndex(at))
    }

    /// Gives a flow a free place, or one more.
    fn take_place(&mut self, flow: Flow) -> Option<u32> {
        let slot = Slot { flow: Some(flow), before: NONE, after: NONE };
        let at = self.free;
        if at == NONE {
            return self.slots.push(slot);
        }
        let place = self.slots.get_mut(at)?;
        self.free = place.after;
        *place = slot;
        Some(at)
    }

    /// Accounts for packets of a flow; `next` makes of its tracker and state those after them. Its place in its list
    /// follows once a second: most packets touch nothing but their flow. Says whether its counters are to be reported at
    /// once, as they have become large.
    #[inline]
    pub(crate) fn account(
        &mut self,
        at: FlowIndex,
        passed: &Passed,
        now: Instant,
        next: impl FnOnce(&mut Flow) -> State,
    ) -> bool {
        let now = self.origin.moment(now);
        let Some(flow) = self.slots.get_mut(at.0).and_then(|slot| slot.flow.as_mut()) else {
            return false;
        };
        let had_news = flow.has_news();
        let much = flow.count(passed, now);
        let (share, before, state) = (flow.share.index(), flow.state, next(flow));
        if flow.tracker.refused() {
            flow.uncount_answer();
        }
        let listed = flow.last.second();
        flow.state = state;
        flow.last = now;
        if before != state || listed != now.second() {
            self.unlink(share, before, at.0);
            self.append(share, state, at.0);
        }
        if !had_news {
            self.note_news(at.0);
        }
        much
    }

    /// Takes a flow out.
    pub(crate) fn remove(&mut self, at: FlowIndex) -> Option<(Flow, Judgement)> {
        let flow = self.get(at)?;
        let (share, state, other) = (flow.share.index(), flow.state, flow.other());
        let hash = self.hasher.hash_one(flow.key);
        self.unlink(share, state, at.0);
        self.index.remove(hash, at.0);
        self.devices[share].count -= 1;
        if let Some(count) = other.and_then(|other| self.answering.get_mut(other.index())) {
            *count -= 1;
        }
        self.forget_news(at.0);
        let slot = self.slots.get_mut(at.0)?;
        slot.after = std::mem::replace(&mut self.free, at.0);
        let flow = slot.flow.take()?;
        let judgement = self.judgements.get(flow.judgement)?;
        self.judgements.release(flow.judgement);
        Some((flow, judgement))
    }

    /// Removes flows whose time has come, at most `budget` of them; `expired` gets them. Returns whether there
    /// may be more.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        budget: usize,
        mut expired: impl FnMut(Flow, &Judgement),
    ) -> bool {
        let mut left = budget;
        for _ in 0..self.devices.len() {
            self.sweep = (self.sweep + 1) % self.devices.len();
            for state in State::ALL {
                while let Some(head) = self.head(self.sweep, state) {
                    let old = self.get(head).is_none_or(|flow| {
                        now.saturating_duration_since(self.instant(flow.last)) >= state.time_out()
                    });
                    if !old {
                        break;
                    }
                    if left == 0 {
                        return true;
                    }
                    left -= 1;
                    if let Some((flow, judgement)) = self.remove(head) {
                        expired(flow, &judgement);
                    }
                }
            }
        }
        false
    }

    /// Takes out all flows that touch a station, which uses up no other shares than these; `removed` gets them.
    pub(crate) fn remove_station(
        &mut self,
        station: StationId,
        shares: [Share; 2],
        mut removed: impl FnMut(Flow, &Judgement),
    ) {
        let own = |flow: &Flow| flow.station == station || flow.other() == Some(station);
        let found: Vec<FlowIndex> = if self.answering.get(station.index()).is_none_or(|n| *n == 0) {
            let listed = shares.into_iter().flat_map(|share| self.of_share(share));
            listed.filter(|(_, flow)| own(flow)).map(|(at, _)| at).collect()
        } else {
            // Flows with another device here are in that one's share.
            (0..self.slots.len())
                .map(FlowIndex)
                .filter(|at| self.get(*at).is_some_and(own))
                .collect()
        };
        for at in found {
            if let Some((flow, judgement)) = self.remove(at) {
                removed(flow, &judgement);
            }
        }
    }

    /// The flows of a share, by state, and of each state the last used first.
    pub(crate) fn of_share(&self, share: Share) -> impl Iterator<Item = (FlowIndex, &Flow)> {
        let lists = self.devices.get(share.index()).map(|device| device.lists);
        let tails = lists.into_iter().flatten().map(|list| list.tail);
        tails.flat_map(move |tail| {
            let before = |at: &u32| self.slots.get(*at).map(|slot| slot.before);
            std::iter::successors(Some(tail), before)
                .take_while(|at| *at != NONE)
                .filter_map(|at| Some((FlowIndex(at), self.get(FlowIndex(at))?)))
        })
    }

    /// At most `limit` flows, the last used first. It looks at as many, and at the ends of the lists, not at all flows.
    pub(crate) fn recent(&self, limit: usize) -> Vec<&Flow> {
        let second = |at: u32| Some((self.get(FlowIndex(at))?.last.second(), at));
        let tails = self.devices.iter().filter(|device| device.count > 0);
        let tails = tails.flat_map(|device| device.lists.iter().map(|list| list.tail));
        let mut next: BinaryHeap<(u64, u32)> = tails.filter_map(second).collect();
        let mut found: Vec<&Flow> = Vec::new();
        while let Some((listed, at)) = next.pop() {
            // Within a second their order isn't that of the lists.
            let ends = found.last().is_none_or(|last| last.last.second() > listed);
            if (found.len() >= limit && ends) || found.len() >= limit.saturating_add(SAME_SECOND) {
                break;
            }
            found.extend(self.get(FlowIndex(at)));
            next.extend(self.slots.get(at).and_then(|slot| second(slot.before)));
        }
        found.sort_by_key(|flow| std::cmp::Reverse(flow.last));
        found.truncate(limit);
        found
    }

    /// Begins to go through all flows with something to be reported: [`Self::report_some`] does it.
    pub(crate) fn begin_report(&mut self) {
        self.news_left = self.news.len();
    }

    /// Hands out flows with something to be reported, at most `budget` of them. Says whether it has more to do.
    pub(crate) fn report_some(
        &mut self,
        budget: usize,
        mut take: impl FnMut(&mut Flow, &Judgement),
    ) -> bool {
        for _ in 0..budget {
            while self.reporting == 0 {
                if self.news_left == 0 {
                    return false;
                }
                self.news_left -= 1;
                self.next_news = (self.next_news + 1) % self.news.len().max(1);
                // What comes up while this word has its turn waits for the next round.
                self.reporting = self.news.get(self.next_news).copied().unwrap_or(0);
            }
            let bit = self.reporting.trailing_zeros();
            self.reporting &= self.reporting - 1;
            let at = u32::try_from(self.next_news).unwrap_or(NONE / 64).saturating_mul(64) + bit;
            self.report_one(FlowIndex(at), &mut take);
        }
        self.reporting != 0 || self.news_left > 0
    }

    /// Hands out one flow, to be reported at once.
    pub(crate) fn report_one(&mut self, at: FlowIndex, take: impl FnOnce(&mut Flow, &Judgement)) {
        let Some(judgement) = self.judgement(at) else { return };
        self.forget_news(at.0);
        if let Some(flow) = self.get_mut(at) {
            take(flow, &judgement);
        }
    }

    fn note_news(&mut self, at: u32) {
        let place = (at / 64) as usize;
        if self.news.len() <= place {
            self.news.resize(place + 1, 0);
        }
        self.news[place] |= 1 << (at % 64);
    }

    fn forget_news(&mut self, at: u32) {
        if let Some(word) = self.news.get_mut((at / 64) as usize) {
            *word &= !(1 << (at % 64));
        }
    }

    fn head(&self, device: usize, state: State) -> Option<FlowIndex> {
        let head = self.devices.get(device)?.lists[state.index()].head;
        (head != NONE).then_some(FlowIndex(head))
    }

    fn evict(&mut self, device: usize) -> Option<(Flow, Judgement)> {
        let victim = State::EVICTABLE.iter().find_map(|state| self.head(device, *state))?;
        self.remove(victim)
    }

    fn append(&mut self, device: usize, state: State, at: u32) {
        let list = &mut self.devices[device].lists[state.index()];
        let tail = std::mem::replace(&mut list.tail, at);
        if tail == NONE {
            list.head = at;
        } else if let Some(slot) = self.slots.get_mut(tail) {
            slot.after = at;
        }
        if let Some(slot) = self.slots.get_mut(at) {
            (slot.before, slot.after) = (tail, NONE);
        }
    }

    fn unlink(&mut self, device: usize, state: State, at: u32) {
        let Some(Slot { before, after, .. }) = self.slots.get(at) else { return };
        let (before, after) = (*before, *after);
        let list = &mut self.devices[device].lists[state.index()];
        if before == NONE {
            list.head = after;
        }
        if after == NONE {
            list.tail = before;
        }
        if let Some(slot) = self.slots.get_mut(before) {
            slot.after = after;
        }
        if let Some(slot) = self.slots.get_mut(after) {
            slot.before = before;
        }
    }
}
