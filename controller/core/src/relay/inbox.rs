//! What waits for one gateway: a queue for each sender, served in turns by bytes (deficit round robin).
//!
//! No sender's packets take another's place. How much one may have waiting shrinks as the inbox fills (each may have
//! as much as is still free), so that `n` greedy senders leave room for one more; whoever is over that loses its own
//! oldest packets, bulk first. What has waited for too long is thrown away when its turn comes: a tunnelled TCP
//! that is told early by a loss does better than one whose packets come late.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anteroom_proto::relay::packet::{self, PeerNumber};

/// What a sender may hand out in one turn: never less than its longest packet.
const QUANTUM: usize = packet::MAX_LEN;
/// What a packet costs beside its bytes: places in queues.
pub(super) const OVERHEAD: usize = 64;
/// What every sender may have waiting, however full it is: the longest packet.
const MIN_SHARE: usize = packet::MAX_LEN + OVERHEAD;

#[derive(Debug)]
struct Waiting {
    datagram: Vec<u8>,
    since: Instant,
}

/// What one sender has waiting.
#[derive(Debug, Default)]
struct Share {
    first: VecDeque<Waiting>,
    bulk: VecDeque<Waiting>,
    bytes: usize,
    deficit: usize,
}

/// Queues of one receiver, by the sender's slot.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    shares: BTreeMap<u32, Share>,
    turns: VecDeque<u32>,
    bytes: usize,
}

/// A packet that left the inbox.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) from: u32,
    pub(super) cost: usize,
    /// None: it had waited for too long.
    pub(super) datagram: Option<Vec<u8>>,
}

pub(super) const fn cost(datagram: &[u8]) -> usize {
    datagram.len() + OVERHEAD
}

impl Share {
    fn pop_oldest(&mut self, for_bulk: bool) -> Option<usize> {
        let bulk = self.bulk.pop_front();
        let waiting = bulk.or_else(|| if for_bulk { None } else { self.first.pop_front() })?;
        let cost = cost(&waiting.datagram);
        self.bytes -= cost;
        Some(cost)
    }
}

impl Inbox {
    /// How much `from` may have waiting here, if no more than `limit` may in all.
    pub(super) fn allowance(&self, limit: usize) -> usize {
        limit.saturating_sub(self.bytes).max(MIN_SHARE)
    }

    /// What `from` has waiting here.
    pub(super) fn share(&self, from: u32) -> usize {
        self.shares.get(&from).map_or(0, |share| share.bytes)
    }

    /// Throws away the oldest packet of `from`, and says what it cost: bulk first, and nothing else for bulk.
    pub(super) fn shed(&mut self, from: u32, for_bulk: bool) -> Option<usize> {
        let cost = self.shares.get_mut(&from)?.pop_oldest(for_bulk)?;
        self.bytes -= cost;
        Some(cost)
    }

    pub(super) fn push(&mut self, from: u32, datagram: Vec<u8>, bulk: bool, now: Instant) {
        let cost = cost(&datagram);
        let share = self.shares.entry(from).or_insert_with(|| {
            self.turns.push_back(from);
            Share::default()
        });
        share.bytes += cost;
        self.bytes += cost;
        let waiting = Waiting { datagram, since: now };
        if bulk { share.bulk.push_back(waiting) } else { share.first.push_back(waiting) }
    }

    /// The next packet whose turn it is, or that has waited for longer than `patience`.
    pub(super) fn pop(&mut self, patience: Duration, now: Instant) -> Option<Left> {
        loop {
            let from = *self.turns.front()?;
            let Some(share) = self.shares.get_mut(&from) else {
                self.turns.pop_front();
                continue;
            };
            let queue = if share.first.is_empty() { &mut share.bulk } else { &mut share.first };
            let Some(head) = queue.front() else {
                // Who leaves takes no claim along.
                self.shares.remove(&from);
                self.turns.pop_front();
                continue;
            };
            let cost = cost(&head.datagram);
            let late = now.saturating_duration_since(head.since) > patience;
            if !late && share.deficit < cost - OVERHEAD {
                share.deficit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            let Some(waiting) = queue.pop_front() else { continue };
            share.bytes -= cost;
            self.bytes -= cost;
            if late {
                return Some(Left { from, cost, datagram: None });
            }
            share.deficit -= waiting.datagram.len();
            return Some(Left { from, cost, datagram: Some(waiting.datagram) });
        }
    }

    /// From now on the receiver calls `from` by this number, in what waits already, too.
    pub(super) fn renumber(&mut self, from: u32, number: PeerNumber) {
        let Some(share) = self.shares.get_mut(&from) else { return };
        for (queue, bulk) in [(&mut share.first, false), (&mut share.bulk, true)] {
            let header = packet::header(number, bulk);
            for waiting in queue {
                waiting.datagram[..packet::HEADER_LEN].copy_from_slice(&header);
            }
        }
    }

    /// Throws away all that `from` has waiting, and says how many packets and what they cost.
    pub(super) fn purge(&mut self, from: u32) -> (usize, usize) {
        let Some(share) = self.shares.remove(&from) else { return (0, 0) };
        self.turns.retain(|turn| *turn != from);
        self.bytes -= share.bytes;
        (share.first.len() + share.bulk.len(), share.bytes)
    }

    /// Who has how much waiting: packets and bytes.
    pub(super) fn senders(&self) -> impl Iterator<Item = (u32, usize, usize)> + '_ {
        self.shares
            .iter()
            .map(|(from, share)| (*from, share.first.len() + share.bulk.len(), share.bytes))
    }
}
