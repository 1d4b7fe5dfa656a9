//! Follows fragmented packets: later fragments get the verdict of their first.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::verdict::DropReason;
use hashbrown::HashMap;

use crate::wire::Ipv4Packet;

#[cfg(test)]
mod tests;

/// Most stretches with gaps between them that are remembered of one packet.
const MAX_STRETCHES: usize = 64;
/// An unfinished packet that was silent for this long gives way to a new one with the same id.
const ID_REUSED_AFTER: Duration = Duration::from_secs(2);

/// How much a [`Tracker`] may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Packets followed at once. Where there are more, the owner with the most gives one up.
    pub packets: usize,
    /// Packets followed at once of one owner. One more pushes the owner's oldest out.
    pub packets_per_owner: usize,
    /// Packets followed at once of all owners that share a device. Where there are more, the one with the most gives
    /// one up.
    pub packets_per_device: usize,
    /// Fragments of one packet that are held until their first arrives.
    pub held_per_packet: usize,
    /// Bytes of held fragments altogether. Where there are more, the owner that holds the most gives some up.
    pub held_bytes: usize,
    /// Bytes of held fragments of one owner.
    pub held_bytes_per_owner: usize,
    /// Bytes of held fragments of all owners that share a device.
    pub held_bytes_per_device: usize,
    /// How long a packet is followed after its first fragment to arrive.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets: 4_096,
            packets_per_owner: 128,
            packets_per_device: 512,
            held_per_packet: 16,
            held_bytes: 2 * 1024 * 1024,
            held_bytes_per_owner: 64 * 1024,
            held_bytes_per_device: 256 * 1024,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What becomes of a fragment that isn't the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Its first fragment was seen, with this token.
    Follow(T),
    /// It waits for its first fragment; the tracker took a copy.
    Held,
    /// It goes no further.
    Drop(DropReason),
}

/// Whose share of the table a fragment uses up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Whose {
    /// Stands for a device and the way by which the fragment came.
    pub device: u32,
    /// Stands for the peer out of whose tunnel it came; 0 for none. Peers take nothing from each other.
    pub peer: u32,
}

impl From<u32> for Whose {
    /// A device's, whatever came by no tunnel.
    fn from(device: u32) -> Self {
        Self { device, peer: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    owner: Whose,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    id: u16,
}

impl Key {
    fn of(owner: Whose, packet: &Ipv4Packet<'_>) -> Self {
        Self {
            owner,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            id: packet.id,
        }
    }
}

/// Which parts of a packet have come.
#[derive(Debug, Default)]
struct Stretches {
    /// Apart from each other and in order: (first byte, byte behind the last).
    seen: Vec<(u16, u16)>,
    total: Option<u16>,
}

impl Stretches {
    /// Takes note of a fragment, or refuses one that overlaps, or that contradicts where the packet ends.
    fn add(&mut self, start: u16, end: u16, more: bool) -> Result<(), DropReason> {
        let overlap = DropReason::FragmentOverlap;
        let at = self.seen.partition_point(|seen| seen.1 <= start);
        if self.seen.get(at).is_some_and(|next| next.0 < end) {
            return Err(overlap);
        }
        if more {
            if self.total.is_some_and(|total| end > total) {
                return Err(overlap);
            }
        } else {
            let beyond = self.seen.last().is_some_and(|last| last.1 > end);
            if beyond || self.total.is_some_and(|total| total != end) {
                return Err(overlap);
            }
        }
        let before = at.checked_sub(1).filter(|before| self.seen[*before].1 == start);
        let after = self.seen.get(at).is_some_and(|next| next.0 == end);
        match (before, after) {
            (Some(before), true) => {
                self.seen[before].1 = self.seen[at].1;
                self.seen.remove(at);
            }
            (Some(before), false) => self.seen[before].1 = end,
            (None, true) => self.seen[at].0 = start,
            (None, false) if self.seen.len() < MAX_STRETCHES => self.seen.insert(at, (start, end)),
            (None, false) => return Err(DropReason::FragmentTableFull),
        }
        if !more {
            self.total = Some(end);
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.total.is_some_and(|total| self.seen == [(0, total)])
    }
}

#[derive(Debug)]
struct Entry<T> {
    serial: u64,
    last: Instant,
    /// The first fragment's, once it was seen.
    token: Option<T>,
    stretches: Stretches,
    held: Vec<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct Owner {
    /// Oldest first. What was finished stays here until it is met.
    order: VecDeque<(Key, u64, Instant)>,
    live: usize,
    held_bytes: usize,
}

/// Fragmented packets in flight. `T` is what the engine wants to know of a first fragment's verdict.
///
/// An owner is whoever's share of the table a fragment uses up: a device, or a device and the peer out of whose tunnel
/// the fragment came for it. Fragments of different owners never meet. An overlapping fragment is dropped, so that a receiver can't be shown two versions of the
/// same bytes.
#[derive(Debug)]
pub struct Tracker<T> {
    limits: Limits,
    entries: HashMap<Key, Entry<T>, foldhash::fast::RandomState>,
    owners: HashMap<Whose, Owner, foldhash::fast::RandomState>,
    /// Packets followed and bytes held for each device.
    devices: HashMap<u32, (usize, usize), foldhash::fast::RandomState>,
    held_bytes: usize,
    lost: u64,
    next_serial: u64,
}

impl<T: Copy> Tracker<T> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::default(),
            owners: HashMap::default(),
            devices: HashMap::default(),
            held_bytes: 0,
            lost: 0,
            next_serial: 0,
        }
    }

    /// A first fragment passed with `token`, also when that says "drop". Returns the fragments that waited for
    /// it, in the order of their arrival and as they were given to [`Self::later`]: they follow it now.
    ///
    /// # Errors
    /// [`DropReason::FragmentOverlap`] when one was seen already, [`DropReason::FragmentTableFull`].
    pub fn first(
        &mut self,
        owner: impl Into<Whose>,
        packet: &Ipv4Packet<'_>,
        token: T,
        now: Instant,
    ) -> Result<Vec<Box<[u8]>>, DropReason> {
        let owner = owner.into();
        let key = Key::of(owner, packet);
        match self.note(key, packet, now) {
            Err(DropReason::FragmentOverlap) if self.is_stale(&key, now) => {
                self.remove(&key);
                self.note(key, packet, now)?;
            }
            result => result?,
        }
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(Vec::new()) };
        entry.token = Some(token);
        let held = std::mem::take(&mut entry.held);
        self.release(owner, &held);
        self.finish(&key);
        Ok(held)
    }

    /// A fragment that isn't the first. `bytes` is what is kept if it must be held: the whole frame, or the
    /// packet, as the engine needs it later.
    pub fn later(
        &mut self,
        owner: impl Into<Whose>,
        packet: &Ipv4Packet<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Outcome<T> {
        let owner = owner.into();
        let key = Key::of(owner, packet);
        let entry = self.entries.get(&key);
        let known = entry.and_then(|entry| entry.token);
        if known.is_none() {
            let held = entry.map_or(0, |entry| entry.held.len());
            let own = self.owners.get(&owner).map_or(0, |owner| owner.held_bytes);
            let room = self.limits.held_bytes_per_owner.saturating_sub(own);
            if held >= self.limits.held_per_packet
                || bytes.len() > room
                || !self.make_room_for(owner, bytes.len())
            {
                return Outcome::Drop(DropReason::FragmentNoFirst);
            }
        }
        if let Err(reason) = self.note(key, packet, now) {
            return Outcome::Drop(reason);
        }
        match (known, self.entries.get_mut(&key)) {
            (Some(token), _) => {
                self.finish(&key);
                Outcome::Follow(token)
            }
            (None, Some(entry)) => {
                entry.held.push(bytes.into());
                self.held_bytes += bytes.len();
                self.devices.entry(owner.device).or_default().1 += bytes.len();
                if let Some(owner) = self.owners.get_mut(&owner) {
                    owner.held_bytes += bytes.len();
                }
                Outcome::Held
            }
            (None, None) => Outcome::Drop(DropReason::FragmentNoFirst),
        }
    }

    /// Forgets what was followed for too long. Returns how many held fragments were lost since the call before,
    /// pushed out ones included ([`DropReason::FragmentNoFirst`]).
    pub fn expire(&mut self, now: Instant) -> u64 {
        let mut late = Vec::new();
        for owner in self.owners.values_mut() {
            while let Some((key, serial, begun)) = owner.order.front().copied() {
                let current = self.entries.get(&key).is_some_and(|entry| entry.serial == serial);
                if current && now.saturating_duration_since(begun) < self.limits.timeout {
                    break;
                }
                owner.order.pop_front();
                if current {
                    late.push(key);
                }
            }
        }
        for key in late {
            self.remove(&key);
        }
        std::mem::take(&mut self.lost)
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = |owner: &Owner| owner.order.front().map(|(_, _, begun)| *begun);
        self.owners.values().filter_map(oldest).min().map(|begun| begun + self.limits.timeout)
    }

    /// Packets followed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is followed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes note of a fragment in its entry, which is made if need be.
    fn note(&mut self, key: Key, packet: &Ipv4Packet<'_>, now: Instant) -> Result<(), DropReason> {
        let fragment = packet.fragment.ok_or(DropReason::Malformed)?;
        let end = usize::from(fragment.offset) + packet.payload().len();
        let end = u16::try_from(end).map_err(|_| DropReason::Malformed)?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.stretches.add(fragment.offset, end, fragment.more)?;
            entry.last = now;
            return Ok(());
        }
        let mut stretches = Stretches::default();
        stretches.add(fragment.offset, end, fragment.more)?;
        self.make_room(key.owner)?;
        let serial = self.next_serial;
        self.next_serial += 1;
        let owner = self.owners.entry(key.owner).or_default();
        owner.order.push_back((key, serial, now));
        owner.live += 1;
        self.devices.entry(key.owner.device).or_default().0 += 1;
        let entry = Entry { serial, last: now, token: None, stretches, held: Vec::new() };
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Makes sure that an owner may have one entry more.
    fn make_room(&mut self, owner: Whose) -> Result<(), DropReason> {
        let live = self.owners.get(&owner).map_or(0, |owner| owner.live);
        let of_device = self.devices.get(&owner.device).map_or(0, |device| device.0);
        let victim = if live >= self.limits.packets_per_owner {
            Some(owner)
        } else if of_device >= self.limits.packets_per_device {
            self.fullest(Some(owner.device), |owner| owner.live).map(|most| most.0)
        } else if self.entries.len() >= self.limits.packets {
            self.fullest(None, |owner| owner.live).map(|most| most.0)
        } else {
            return Ok(());
        };
        match victim {
            Some(victim) if self.push_out(victim) => Ok(()),
            _ => Err(DropReason::FragmentTableFull),
        }
    }

    /// Makes sure that so many bytes more may be held: whoever holds the most gives way, of those that share the
    /// device if it is that which has too many.
    fn make_room_for(&mut self, owner: Whose, bytes: usize) -> bool {
        loop {
            let of_device = self.devices.get(&owner.device).map_or(0, |device| device.1);
            let among = if of_device + bytes > self.limits.held_bytes_per_device {
                Some(owner.device)
            } else if self.held_bytes + bytes > self.limits.held_bytes {
                None
            } else {
                return true;
            };
            let Some((fullest, holding)) = self.fullest(among, |owner| owner.held_bytes) else {
                return false;
            };
            let own = self.owners.get(&owner).map_or(0, |owner| owner.held_bytes);
            if holding <= own + bytes || !self.push_out(fullest) {
                return false;
            }
        }
    }

    /// The owner that has the most of something, of one device's or of all.
    fn fullest(
        &self,
        device: Option<u32>,
        much: impl Fn(&Owner) -> usize,
    ) -> Option<(Whose, usize)> {
        let owners = self.owners.iter().map(|(whose, owner)| (*whose, much(owner)));
        let among = owners.filter(|(whose, _)| device.is_none_or(|device| whose.device == device));
        among.max_by_key(|(_, much)| *much)
    }

    /// Removes an owner's oldest packet.
    fn push_out(&mut self, owner: Whose) -> bool {
        while let Some(found) = self.owners.get_mut(&owner)
            && let Some((key, serial, _)) = found.order.pop_front()
        {
            if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
                self.remove(&key);
                return true;
            }
        }
        false
    }

    fn is_stale(&self, key: &Key, now: Instant) -> bool {
        let idle = |entry: &Entry<T>| now.saturating_duration_since(entry.last) >= ID_REUSED_AFTER;
        self.entries.get(key).is_some_and(idle)
    }

    /// Removes an entry all of whose fragments have come.
    fn finish(&mut self, key: &Key) {
        if self.entries.get(key).is_some_and(|entry| entry.stretches.complete()) {
            self.remove(key);
        }
    }

    /// Counts fragments that are held no longer out of their owner's share.
    fn release(&mut self, owner: Whose, held: &[Box<[u8]>]) {
        let bytes = held.iter().map(|bytes| bytes.len()).sum::<usize>();
        self.held_bytes -= bytes;
        if let Some(device) = self.devices.get_mut(&owner.device) {
            device.1 -= bytes;
        }
        if let Some(owner) = self.owners.get_mut(&owner) {
            owner.held_bytes -= bytes;
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.lost += entry.held.len() as u64;
        self.release(key.owner, &entry.held);
        if let Some(device) = self.devices.get_mut(&key.owner.device) {
            device.0 -= 1;
            if device.0 == 0 {
                self.devices.remove(&key.owner.device);
            }
        }
        let Some(owner) = self.owners.get_mut(&key.owner) else { return };
        owner.live -= 1;
        if owner.live == 0 {
            self.owners.remove(&key.owner);
        } else if owner.order.len() > 2 * self.limits.packets_per_owner {
            let entries = &self.entries;
            owner.order.retain(|(key, serial, _)| {
                entries.get(key).is_some_and(|entry| entry.serial == *serial)
            });
        }
    }
}
