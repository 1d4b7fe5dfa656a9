//! Puts the parts of packets together again, within bounds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anteroom_proto::verdict::DropReason;
use hashbrown::HashMap;

use super::wire::{MAX_PARTS, Part};
use crate::wire::be16;

/// How long a packet waits for its parts. They are sent one right behind the other.
pub const WAIT: Duration = Duration::from_secs(1);
/// Packets of one peer that wait at once. The oldest makes room: what is lost stays lost, and mustn't hold up the rest.
pub const MAX_PACKETS: usize = 64;
/// Bytes that one peer's packets may take.
pub const MAX_BYTES: usize = 256 << 10;
/// Bytes that every peer's packets may take whatever the others do.
pub const OWN_BYTES: usize = 16 << 10;
/// Bytes that all peers' packets may take beyond [`OWN_BYTES`] each.
pub const SHARED_BYTES: usize = 8 << 20;
/// Buffers that are kept for the next packet, and the longest that is.
const SPARE: (usize, usize) = (16, 4_096);

/// A packet that isn't whole yet.
#[derive(Debug)]
struct Unfinished {
    id: u32,
    stride: u16,
    until: Instant,
    missing: usize,
    here: [u64; MAX_PARTS / 64],
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Sender {
    /// Oldest first.
    packets: VecDeque<Unfinished>,
    bytes: usize,
}

impl Sender {
    /// What it takes of the room that all share.
    const fn shared(&self) -> usize {
        self.bytes.saturating_sub(OWN_BYTES)
    }
}

/// Packets that aren't whole yet, of all peers of one engine.
#[derive(Debug, Default)]
pub struct Joiner {
    senders: HashMap<u32, Sender, foldhash::fast::RandomState>,
    shared: usize,
    /// No packet's time is over before.
    next: Option<Instant>,
    spare: Vec<Vec<u8>>,
    /// Packets given up since they were last told, to make room.
    evicted: u64,
}

impl Joiner {
    /// Takes a part from the peer with this number. Gives the whole packet once its last part is here, as it was before
    /// it was cut: as long as its header says, with nothing behind. Whether a peer may say what else stands in it is the
    /// caller's to check.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a whole packet that isn't as long as its header says, which is forgotten;
    /// [`DropReason::FragmentOverlap`] for a part that is here already, and for one that contradicts those before it,
    /// which are forgotten; [`DropReason::FragmentTableFull`] when there is no room.
    pub fn take(
        &mut self,
        sender: u32,
        part: &Part<'_>,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let from = self.senders.entry(sender).or_default();
        // The newest are the likeliest.
        let place = from.packets.iter().rposition(|packet| packet.id == part.id);
        let place = match place {
            Some(place) => place,
            None => self.begin(sender, part, now)?,
        };
        let before = self.senders.get(&sender).map_or(0, Sender::shared);
        let Some(from) = self.senders.get_mut(&sender) else { return Ok(None) };
        let Some(packet) = from.packets.get_mut(place) else { return Ok(None) };
        let (word, bit) = (usize::from(part.index) / 64, 1 << (part.index % 64));
        let agrees = packet.bytes.len() == usize::from(part.total) && packet.stride == part.stride;
        let at = part.offset();
        let room = packet.bytes.get_mut(at..at + part.bytes.len()).filter(|_| agrees);
        let (Some(room), Some(here)) = (room, packet.here.get_mut(word)) else {
            self.forget(sender, place);
            return Err(DropReason::FragmentOverlap);
        };
        if *here & bit != 0 {
            return Err(DropReason::FragmentOverlap);
        }
        *here |= bit;
        room.copy_from_slice(part.bytes);
        packet.missing = packet.missing.saturating_sub(1);
        if packet.missing > 0 {
            return Ok(None);
        }
        let Some(whole) = from.packets.remove(place) else { return Ok(None) };
        from.bytes -= whole.bytes.len();
        self.shared -= before - from.shared();
        if be16(&whole.bytes, 2) != Some(part.total) {
            self.give_back(whole.bytes);
            return Err(DropReason::Malformed);
        }
        Ok(Some(whole.bytes))
    }

    /// Makes room for a packet of which this is the first part to come.
    fn begin(&mut self, sender: u32, part: &Part<'_>, now: Instant) -> Result<usize, DropReason> {
        let total = usize::from(part.total);
        loop {
            let Some(from) = self.senders.get(&sender) else {
                return Err(DropReason::FragmentTableFull);
            };
            let more = (from.bytes + total).saturating_sub(OWN_BYTES.max(from.bytes));
            let fits = from.packets.len() < MAX_PACKETS
                && from.bytes + total <= MAX_BYTES
                && self.shared + more <= SHARED_BYTES;
            if fits {
                self.shared += more;
                break;
            }
            if !self.forget(sender, 0) {
                return Err(DropReason::FragmentTableFull);
            }
            self.evicted += 1;
        }
        // Memory that comes from the system anew is touched only where parts are written.
        let bytes = match self.spare.pop_if(|spare| total <= spare.capacity()) {
            Some(mut spare) => {
                spare.clear();
                spare.resize(total, 0);
                spare
            }
            None => vec![0; total],
        };
        let until = now + WAIT;
        self.next = Some(self.next.map_or(until, |next| next.min(until)));
        let Some(from) = self.senders.get_mut(&sender) else {
            return Err(DropReason::FragmentTableFull);
        };
        from.bytes += total;
        from.packets.push_back(Unfinished {
            id: part.id,
            stride: part.stride,
            until,
            missing: part.count(),
            here: [0; MAX_PARTS / 64],
            bytes,
        });
        Ok(from.packets.len() - 1)
    }

    /// Forgets one packet of a peer. Says whether there was one.
    fn forget(&mut self, sender: u32, place: usize) -> bool {
        let Some(from) = self.senders.get_mut(&sender) else { return false };
        let before = from.shared();
        let Some(packet) = from.packets.remove(place) else { return false };
        from.bytes -= packet.bytes.len();
        self.shared -= before - from.shared();
        self.give_back(packet.bytes);
        true
    }

    /// Takes back the buffer of a packet that was dealt with.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < SPARE.0 && bytes.capacity() <= SPARE.1 {
            self.spare.push(bytes);
        }
    }

    /// Forgets a peer.
    pub fn remove(&mut self, sender: u32) {
        if let Some(gone) = self.senders.remove(&sender) {
            self.shared -= gone.shared();
        }
    }

    /// Gives up the packets that have waited too long. Says how many those were.
    pub fn expire(&mut self, now: Instant) -> u64 {
        if self.next.is_none_or(|next| now < next) {
            return 0;
        }
        let (mut late, mut next) = (0, None::<Instant>);
        let (shared, spare) = (&mut self.shared, &mut self.spare);
        self.senders.retain(|_, from| {
            let before = from.shared();
            while let Some(packet) = from.packets.pop_front_if(|packet| packet.until <= now) {
                from.bytes -= packet.bytes.len();
                late += 1;
                if spare.len() < SPARE.0 && packet.bytes.capacity() <= SPARE.1 {
                    spare.push(packet.bytes);
                }
            }
            *shared -= before - from.shared();
            if let Some(first) = from.packets.front() {
                next = Some(next.map_or(first.until, |next| next.min(first.until)));
            }
            !from.packets.is_empty()
        });
        self.next = next;
        late
    }

    /// When [`Self::expire`] may have something to give up.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Packets that were given up to make room, since this was last asked.
    pub const fn take_evicted(&mut self) -> u64 {
        std::mem::replace(&mut self.evicted, 0)
    }

    /// Packets that wait, of all peers, and the bytes that they take.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        let all = self.senders.values();
        all.fold((0, 0), |(packets, bytes), from| {
            (packets + from.packets.len(), bytes + from.bytes)
        })
    }
}
