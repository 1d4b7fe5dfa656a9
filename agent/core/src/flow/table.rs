//! The flow table: bounded in all and per device, so that one device can't starve its neighbours.

use std::hash::BuildHasher;
use std::time::Instant;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

use super::{Flow, FlowKey, State};
use crate::station::{Share, StationId};

/// A flow's place in the table. Valid until the flow is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowIndex(u32);

const NONE: u32 = u32::MAX;

/// The device has as many flows open as it may have, and none of them can make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableFull;

#[derive(Debug)]
struct Slot {
    flow: Option<Flow>,
    /// Neighbours in the list of the flow's share and state, in the order of the seconds of their last packets.
    before: u32,
    after: u32,
    /// The second, counted from [`FlowTable::epoch`], in which it came to the end of its list.
    listed: u32,
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
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    devices: Vec<Device>,
    limit: usize,
    limit_per_device: usize,
    /// Where the next sweep goes on.
    sweep: usize,
    /// When its first flow came.
    epoch: Option<Instant>,
}

impl FlowTable {
    /// An empty table for at most so many flows.
    pub(crate) fn new(limit: usize, limit_per_device: usize, hasher: FixedState) -> Self {
        Self {
            hasher,
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            devices: Vec::new(),
            limit: limit.clamp(1, NONE as usize - 1),
            limit_per_device: limit_per_device.max(1),
            sweep: 0,
            epoch: None,
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// How many flows use up a share.
    pub(crate) fn count(&self, share: Share) -> usize {
        self.devices.get(share.index()).map_or(0, |device| device.count)
    }

    /// The flow with this key.
    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowIndex> {
        let slots = &self.slots;
        self.index
            .find(self.hasher.hash_one(key), |at| {
                slots[*at as usize].flow.as_ref().is_some_and(|flow| flow.key == *key)
            })
            .map(|at| FlowIndex(*at))
    }

    /// The hash of a key: the same for as long as the table is there.
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The flow at this place.
    pub(crate) fn get(&self, at: FlowIndex) -> Option<&Flow> {
        self.slots.get(at.0 as usize)?.flow.as_ref()
    }

    /// The flow at this place, to be changed. Its key, station, state and times are the table's to change.
    pub(crate) fn get_mut(&mut self, at: FlowIndex) -> Option<&mut Flow> {
        self.slots.get_mut(at.0 as usize)?.flow.as_mut()
    }

    /// All flows, in no useful order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|slot| slot.flow.as_ref())
    }

    /// All flows, for counters to be taken out.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flow> {
        self.slots.iter_mut().filter_map(|slot| slot.flow.as_mut())
    }

    /// Puts a flow in, whose key must not be there yet. Where there is no room, the oldest unfinished flow of
    /// the same device makes it, and of all devices' the one with the most flows; `evicted` gets what went.
    ///
    /// # Errors
    /// [`TableFull`] where nothing can make room.
    pub(crate) fn insert(
        &mut self,
        flow: Flow,
        mut evicted: impl FnMut(Flow),
    ) -> Result<FlowIndex, TableFull> {
        let station = flow.share.index();
        if self.devices.len() <= station {
            self.devices.resize(station + 1, Device::EMPTY);
        }
        if self.devices[station].count >= self.limit_per_device {
            evicted(self.evict(station).ok_or(TableFull)?);
        }
        if self.index.len() >= self.limit {
            let fullest = (0..self.devices.len()).max_by_key(|at| self.devices[*at].count);
            let gone = fullest.and_then(|at| self.evict(at)).or_else(|| self.evict(station));
            evicted(gone.ok_or(TableFull)?);
        }
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let at = u32::try_from(self.slots.len()).map_err(|_| TableFull)?;
                self.slots.push(Slot { flow: None, before: NONE, after: NONE, listed: 0 });
                at
            }
        };
        let (hash, state) = (self.hasher.hash_one(flow.key), flow.state);
        let second = self.second(flow.last);
        self.slots[at as usize].flow = Some(flow);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, at, |at| {
            slots[*at as usize].flow.as_ref().map_or(0, |flow| hasher.hash_one(flow.key))
        });
        self.devices[station].count += 1;
        self.append(station, state, at, second);
        Ok(FlowIndex(at))
    }

    /// Notes a packet of a flow, and the state that the flow is in after it. Its place in its list follows once a
    /// second: most packets touch nothing but their flow.
    pub(crate) fn touch(&mut self, at: FlowIndex, state: State, now: Instant) {
        let second = self.second(now);
        let Some(slot) = self.slots.get_mut(at.0 as usize) else { return };
        let Some(flow) = &mut slot.flow else { return };
        let (station, before) = (flow.share.index(), flow.state);
        flow.state = state;
        flow.last = now;
        if before == state && slot.listed == second {
            return;
        }
        self.unlink(station, before, at.0);
        self.append(station, state, at.0, second);
    }

    /// The second that a moment lies in.
    fn second(&mut self, now: Instant) -> u32 {
        let epoch = *self.epoch.get_or_insert(now);
        u32::try_from(now.saturating_duration_since(epoch).as_secs()).unwrap_or(u32::MAX)
    }

    /// Takes a flow out.
    pub(crate) fn remove(&mut self, at: FlowIndex) -> Option<Flow> {
        let flow = self.get(at)?;
        let (station, state, hash) =
            (flow.share.index(), flow.state, self.hasher.hash_one(flow.key));
        self.unlink(station, state, at.0);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == at.0) {
            entry.remove();
        }
        self.devices[station].count -= 1;
        self.free.push(at.0);
        self.slots[at.0 as usize].flow.take()
    }

    /// Removes flows whose time has come, at most `budget` of them; `expired` gets them. Returns whether there
    /// may be more.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        budget: usize,
        mut expired: impl FnMut(Flow),
    ) -> bool {
        let mut left = budget;
        for _ in 0..self.devices.len() {
            self.sweep = (self.sweep + 1) % self.devices.len();
            for state in State::ALL {
                while let Some(head) = self.head(self.sweep, state) {
                    let old = self.get(head).is_none_or(|flow| {
                        now.saturating_duration_since(flow.last) >= state.time_out()
                    });
                    if !old {
                        break;
                    }
                    if left == 0 {
                        return true;
                    }
                    left -= 1;
                    if let Some(flow) = self.remove(head) {
                        expired(flow);
                    }
                }
            }
        }
        false
    }

    /// Takes out all flows that touch a station; `removed` gets them.
    pub(crate) fn remove_station(&mut self, station: StationId, mut removed: impl FnMut(Flow)) {
        for at in 0..self.slots.len() {
            let touches = self.slots[at]
                .flow
                .as_ref()
                .is_some_and(|flow| flow.station == station || flow.other == Some(station));
            if touches {
                #[expect(clippy::cast_possible_truncation, reason = "slots are numbered by u32")]
                if let Some(flow) = self.remove(FlowIndex(at as u32)) {
                    removed(flow);
                }
            }
        }
    }

    fn head(&self, device: usize, state: State) -> Option<FlowIndex> {
        let head = self.devices.get(device)?.lists[state.index()].head;
        (head != NONE).then_some(FlowIndex(head))
    }

    fn evict(&mut self, device: usize) -> Option<Flow> {
        let victim = State::EVICTABLE.iter().find_map(|state| self.head(device, *state))?;
        self.remove(victim)
    }

    fn append(&mut self, device: usize, state: State, at: u32, second: u32) {
        let list = &mut self.devices[device].lists[state.index()];
        let tail = std::mem::replace(&mut list.tail, at);
        if tail == NONE {
            list.head = at;
        } else {
            self.slots[tail as usize].after = at;
        }
        let slot = &mut self.slots[at as usize];
        (slot.before, slot.after, slot.listed) = (tail, NONE, second);
    }

    fn unlink(&mut self, device: usize, state: State, at: u32) {
        let Slot { before, after, .. } = self.slots[at as usize];
        let list = &mut self.devices[device].lists[state.index()];
        if before == NONE {
            list.head = after;
        }
        if after == NONE {
            list.tail = before;
        }
        if before != NONE {
            self.slots[before as usize].after = after;
        }
        if after != NONE {
            self.slots[after as usize].before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use anteroom_proto::verdict::Verdict;
    use proptest::prelude::*;

    use super::super::{Count, Judgement, Proof, Tracker, Unreported, Zone};
    use super::*;
    use crate::wire::FiveTuple;

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn start() -> Instant {
        Instant::now()
    }

    fn flow(station: u16, port: u16, state: State, now: Instant) -> Flow {
        let station = StationId(station);
        let tuple = FiveTuple {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 0, 2),
            source_port: port,
            destination_port: 104,
            protocol: 6,
        };
        let (key, initiator_low) = FlowKey::new(Zone::outside(station), &tuple);
        Flow {
            key,
            initiator_low,
            station,
            share: Share(u32::from(station.0)),
            other: None,
            outbound: true,
            judgement: Judgement::of(Verdict::Clear, None),
            epoch: 0,
            leaving: Proof::NONE,
            coming: Proof::NONE,
            pace: crate::lane::pace::Pace::default(),
            tracker: Tracker::default(),
            state,
            created: now,
            last: now,
            totals: [Count::default(); 2],
            unreported: Unreported {
                opened: true,
                counts: [Count::default(); 2],
                first: now,
                last: now,
            },
        }
    }

    fn table(limit: usize, per_device: usize) -> FlowTable {
        FlowTable::new(limit, per_device, FixedState::with_seed(1))
    }

    #[test]
    fn both_directions_find_the_same_flow() {
        let now = start();
        let mut table = table(10, 10);
        let flow = flow(0, 7, State::HalfOpen, now);
        let (there, back) = (flow.tuple(), flow.tuple().reversed());
        let at = table.insert(flow, |_| ()).unwrap();
        let zone = Zone::outside(StationId(0));
        let (key, upwards) = FlowKey::new(zone, &there);
        let (reverse, downwards) = FlowKey::new(zone, &back);
        assert_eq!((table.find(&key), table.find(&reverse)), (Some(at), Some(at)));
        assert_ne!(upwards, downwards);
        assert_eq!(table.find(&FlowKey::new(Zone::outside(StationId(1)), &there).0), None);
    }

    #[test]
    fn half_open_flows_make_room_oldest_first_and_established_ones_never() {
        let now = start();
        let mut table = table(100, 3);
        table.insert(flow(0, 1, State::Established, now), |_| ()).unwrap();
        table.insert(flow(0, 2, State::HalfOpen, now), |_| ()).unwrap();
        table.insert(flow(0, 3, State::HalfOpen, now), |_| ()).unwrap();
        let mut gone = Vec::new();
        for port in 4..6 {
            table
                .insert(flow(0, port, State::Established, now), |f| {
                    gone.push(f.tuple().source_port);
                })
                .unwrap();
        }
        assert_eq!(gone, [2, 3]);
        assert_eq!(table.insert(flow(0, 9, State::HalfOpen, now), |_| ()), Err(TableFull));
        assert!(table.insert(flow(1, 9, State::HalfOpen, now), |_| ()).is_ok());
    }

    #[test]
    fn a_full_table_takes_from_the_device_with_the_most_flows() {
        let now = start();
        let mut table = table(4, 4);
        for port in 0..4 {
            table.insert(flow(0, port, State::OneWay, now), |_| ()).unwrap();
        }
        let mut gone = Vec::new();
        table.insert(flow(1, 1, State::HalfOpen, now), |f| gone.push(f.station)).unwrap();
        assert_eq!((gone, table.len()), (vec![StationId(0)], 4));
    }

    #[test]
    fn expiry_goes_by_state_and_last_packet() {
        let now = start();
        let mut table = table(10, 10);
        let half = table.insert(flow(0, 1, State::HalfOpen, now), |_| ()).unwrap();
        table.insert(flow(0, 2, State::HalfOpen, now), |_| ()).unwrap();
        table.insert(flow(0, 3, State::Established, now), |_| ()).unwrap();
        table.touch(half, State::HalfOpen, now + Duration::from_secs(20));
        let mut gone = Vec::new();
        table.expire(now + Duration::from_secs(31), 10, |f| gone.push(f.tuple().source_port));
        assert_eq!(gone, [2]);
        table
            .expire(now + Duration::from_secs(24 * 3600), 10, |f| gone.push(f.tuple().source_port));
        assert_eq!(gone, [2, 1], "established TCP stays for more than a day");
    }

    proptest! {
        /// Whatever is done, counts, lists and index stay one.
        #[test]
        fn the_table_stays_whole(actions in prop::collection::vec((0u16..3, 0u16..12, 0usize..=State::COUNT, 0u64..40), 1..200)) {
            let mut now = start();
            let mut table = table(8, 5);
            for (station, port, what, seconds) in actions {
                now += Duration::from_secs(seconds);
                let made = flow(station, port, State::ALL[what % State::COUNT], now);
                match (table.find(&made.key), what) {
                    (Some(at), State::COUNT) => { table.remove(at); }
                    (Some(at), _) => table.touch(at, made.state, now),
                    (None, _) => { let _ = table.insert(made, |_| ()); }
                }
                if seconds > 30 {
                    table.expire(now, 3, |_| ());
                }
                prop_assert!(table.len() <= 8);
                let counted: usize = (0..3).map(|s| table.count(Share(s))).sum();
                prop_assert_eq!(counted, table.len());
                let mut linked = 0;
                for device in 0..table.devices.len() {
                    prop_assert!(table.devices[device].count <= 5);
                    for state in State::ALL {
                        let mut at = table.devices[device].lists[state.index()].head;
                        let mut before = None;
                        while at != NONE {
                            let flow = table.slots[at as usize].flow.as_ref().unwrap();
                            prop_assert_eq!(flow.state, state);
                            prop_assert!(before.is_none_or(|before| before <= flow.last));
                            before = Some(flow.last);
                            linked += 1;
                            at = table.slots[at as usize].after;
                        }
                    }
                }
                prop_assert_eq!(linked, table.len());
                let seen = table.iter().filter(|flow| table.find(&flow.key).is_some()).count();
                prop_assert_eq!(seen, table.len());
            }
        }
    }
}
