//! The first bytes of TCP streams, put in order.
//!
//! Associations of DICOM and hellos of TLS span segments, so the first [`MOST_BYTES`] of each direction are kept until their parser
//! is done with them. Flows and bytes are bounded in all, and for each machine that opens flows: whoever opens too many
//! pushes out its own.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use anteroom_proto::mac::MacAddr;

use crate::frame::Segment;
use crate::gate::Look;
use crate::sight::Station;

/// Most flows that are known at a time, and most of those that one machine began.
const MOST_FLOWS: usize = 1024;
const MOST_FLOWS_OF_ONE: usize = MOST_FLOWS / 4;
/// Most bytes of one direction that are kept, whether they wait for others or not.
const MOST_BYTES: usize = 16 * 1024;
/// Most segments with bytes of one direction that are looked at.
const MOST_SEGMENTS: u8 = 24;
/// Most segments of one direction that wait for one before them.
const MOST_WAITING: usize = 4;
/// Most bytes of all flows together, and of those that one machine began.
const MOST_KEPT: usize = 4 * 1024 * 1024;
const MOST_KEPT_OF_ONE: usize = MOST_KEPT / 4;
/// Most bytes that compressed bodies of one flow are let grow to, together.
const MOST_INFLATED: u64 = 64 * 1024;

/// An end of a flow.
type End = (IpAddr, u16);

/// A flow, its lower end first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    vlan: Option<u16>,
    ends: [End; 2],
}

/// What was said so far between two stations.
#[derive(Debug)]
pub(crate) struct Talk<'a> {
    /// Who opened the connection; none where it stands behind a router, whose station says nothing of it.
    pub(crate) client: Option<Station>,
    /// Who took it; none as above.
    pub(crate) server: Option<Station>,
    /// The addresses of both.
    pub(crate) ips: (IpAddr, IpAddr),
    /// The port that the server listens at.
    pub(crate) port: u16,
    /// The first bytes of the client.
    pub(crate) asked: &'a [u8],
    /// The first bytes of the server.
    pub(crate) answered: &'a [u8],
    /// Whether those are the very first: the connection's opening was seen.
    pub(crate) answered_from_start: bool,
    /// Whether nothing more comes of the client's bytes, and of the server's.
    pub(crate) ended: [bool; 2],
    /// How many of the client's bytes, and of the server's, a parser that reads message by message is done with.
    pub(crate) done: [&'a mut usize; 2],
    /// How many bytes compressed bodies of this flow may still grow to.
    pub(crate) inflate: &'a mut u64,
}

/// One direction of a flow.
#[derive(Debug, Default)]
struct Half {
    who: Option<Station>,
    /// Whether it was heard itself; else it is whom the other side speaks to.
    heard: bool,
    /// Whether what was heard of it was passed on by a router.
    forwarded: bool,
    /// Whether its bytes are the connection's first.
    from_start: bool,
    /// The sequence number that comes next, once it is known.
    next: Option<u32>,
    bytes: Vec<u8>,
    segments: u8,
    /// Segments that came before their time, and whether they were cut short.
    waiting: Vec<(u32, Vec<u8>, bool)>,
    /// Nothing more is taken.
    full: bool,
    /// How many bytes a parser is done with.
    done: usize,
}

impl Half {
    fn open(segment: &Segment<'_>) -> Self {
        Self {
            who: Some(segment.from),
            heard: true,
            forwarded: segment.forwarded,
            from_start: true,
            next: Some(segment.sequence.wrapping_add(1)),
            ..Self::default()
        }
    }

    /// Whether a segment that opens is a router's copy of the one by which this began.
    fn is_copied_by(&self, segment: &Segment<'_>) -> bool {
        segment.forwarded
            && self.heard
            && !self.forwarded
            && self.bytes.is_empty()
            && self.next == Some(segment.sequence.wrapping_add(1))
    }

    /// Who its hints are of.
    fn speaker(&self) -> Option<Station> {
        self.who.filter(|_| !self.forwarded)
    }

    fn kept(&self) -> usize {
        self.bytes.len() + self.waiting.iter().map(|(_, bytes, _)| bytes.len()).sum::<usize>()
    }

    /// Takes a segment's bytes. Says whether there is something new to be read.
    fn take(&mut self, segment: &Segment<'_>) -> bool {
        // Another machine that speaks by this one's address puts no words into its mouth.
        if self.heard && self.who != Some(segment.from) {
            return false;
        }
        (self.who, self.heard) = (Some(segment.from), true);
        self.forwarded |= segment.forwarded;
        if self.full {
            return false;
        }
        self.segments = self.segments.saturating_add(1);
        let next = *self.next.get_or_insert(segment.sequence);
        let before = self.bytes.len();
        match ahead(next, segment.sequence) {
            Place::Here(known) => {
                let new = segment.payload.get(known..);
                self.append(new.unwrap_or_default());
                self.full |= new.is_some() && (segment.cut || segment.fin);
            }
            Place::Later if self.waiting.len() < MOST_WAITING => {
                let most = segment.payload.len().min(MOST_BYTES.saturating_sub(self.kept()));
                let cut = segment.cut || most < segment.payload.len();
                self.waiting.push((segment.sequence, segment.payload[..most].to_vec(), cut));
            }
            Place::Later | Place::Far => {}
        }
        while !self.full
            && let Some(at) = self.waiting.iter().position(|(sequence, _, _)| {
                self.next.is_some_and(|next| matches!(ahead(next, *sequence), Place::Here(_)))
            })
        {
            let (sequence, bytes, cut) = self.waiting.swap_remove(at);
            let next = self.next.unwrap_or(sequence);
            if let Place::Here(known) = ahead(next, sequence) {
                let new = bytes.get(known..);
                self.append(new.unwrap_or_default());
                self.full |= new.is_some() && cut;
            }
        }
        self.full |= self.segments >= MOST_SEGMENTS || self.bytes.len() >= MOST_BYTES;
        if self.full {
            self.waiting = Vec::new();
        }
        self.bytes.len() > before || self.full && !self.bytes.is_empty()
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = MOST_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.full |= bytes.len() >= room;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.next = self.next.map(|next| next.wrapping_add(length));
    }

    /// Whether a segment continues what is known.
    fn continues(&self, sequence: u32) -> bool {
        self.next.is_none_or(|next| matches!(ahead(next, sequence), Place::Here(_)))
    }

    fn forget(&mut self) {
        self.bytes = Vec::new();
        self.waiting = Vec::new();
        self.full = true;
    }
}

/// Where a segment stands, by what comes next.
enum Place {
    /// It holds what comes next, behind so many known bytes.
    Here(usize),
    /// Something is missing before it.
    Later,
    /// It has nothing to do with what was kept.
    Far,
}

fn ahead(next: u32, sequence: u32) -> Place {
    let late = next.wrapping_sub(sequence);
    let early = sequence.wrapping_sub(next);
    // A super-frame is 64 KiB at most.
    if late <= 1 << 16 {
        Place::Here(usize::try_from(late).unwrap_or(usize::MAX))
    } else if early <= 1 << 16 {
        Place::Later
    } else {
        Place::Far
    }
}

/// Whether these are the first bytes of one that asks, whatever its port: an association of DICOM, a hello of TLS or OPC UA, a
/// request by HTTP.
fn asks(payload: &[u8]) -> bool {
    matches!(payload, [1, 0, _, _, _, _, 0, 1, 0, 0, ..] | [22, 3, 0..=4, _, _, 1, ..])
        || [&b"HELF"[..], b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS "]
            .iter()
            .any(|start| payload.starts_with(start))
}

#[derive(Debug)]
struct Flow {
    /// Of the key's ends, in their order.
    halves: [Half; 2],
    /// Which of the ends opened the flow.
    client: usize,
    /// Whether that is known, since the opening was seen; else it is a guess.
    opened: bool,
    /// Who it is held against.
    opener: MacAddr,
    inflate: u64,
    done: bool,
}

impl Flow {
    fn new(client: usize, opener: MacAddr) -> Self {
        Self {
            halves: Default::default(),
            client,
            opened: false,
            opener,
            inflate: MOST_INFLATED,
            done: false,
        }
    }

    fn kept(&self) -> usize {
        self.halves.iter().map(Half::kept).sum()
    }

    /// Its ends open it: whatever was said between them before is over.
    fn open(&mut self, segment: &Segment<'_>, sender: usize) {
        // Seen on both sides of a router, it is of the one whom it was heard of first hand.
        if self.halves[sender].is_copied_by(segment) {
            return;
        }
        let half = Half::open(segment);
        if segment.ack {
            self.client = 1 - sender;
            if self.halves[sender].bytes.is_empty() {
                self.halves[sender] = half;
            }
        } else {
            *self = Self::new(sender, self.opener);
            self.halves[sender] = half;
        }
        self.opened = true;
    }

    /// Takes a segment with bytes, or the last one.
    fn take(
        &mut self,
        segment: &Segment<'_>,
        sender: usize,
        look: Look,
        ends: &[End; 2],
        read: impl FnOnce(Talk<'_>) -> bool,
    ) {
        if look == Look::Anew {
            if self.done {
                *self = Self { opened: self.opened, ..Self::new(self.client, self.opener) };
            } else if !self.halves[sender].continues(segment.sequence) {
                self.halves[sender] = Half::default();
            }
        }
        if self.done {
            return;
        }
        if !self.opened && self.halves[sender].bytes.is_empty() && asks(segment.payload) {
            (self.client, self.opened) = (sender, true);
        }
        self.halves[1 - sender].who.get_or_insert(segment.to);
        let news = self.halves[sender].take(segment);
        let client = self.client;
        let [first, second] = &mut self.halves;
        let (asking, answering) = if client == 0 { (first, second) } else { (second, first) };
        if news {
            self.done = read(Talk {
                client: asking.speaker(),
                server: answering.speaker(),
                ips: (ends[client].0, ends[1 - client].0),
                port: ends[1 - client].1,
                asked: &asking.bytes,
                answered: &answering.bytes,
                answered_from_start: answering.from_start,
                ended: [asking.full, answering.full],
                done: [&mut asking.done, &mut answering.done],
                inflate: &mut self.inflate,
            });
        }
        self.done |= self.halves.iter().all(|half| half.full);
        if self.done {
            self.halves.iter_mut().for_each(Half::forget);
        }
    }
}

/// What one machine's flows take up.
#[derive(Debug, Default)]
struct Share {
    flows: usize,
    kept: usize,
}

/// The flows that are known.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    flows: HashMap<Key, Flow>,
    /// In the order of their beginnings.
    order: VecDeque<Key>,
    shares: HashMap<MacAddr, Share>,
    kept: usize,
    pushed_out: u64,
}

impl Streams {
    /// Takes a segment. Has `read` look at what was said once there is more of it; it says whether it is done with the flow.
    pub(crate) fn take(
        &mut self,
        segment: &Segment<'_>,
        look: Look,
        read: impl FnOnce(Talk<'_>) -> bool,
    ) {
        let (from, to) = ((segment.ips.0, segment.ports.0), (segment.ips.1, segment.ports.1));
        let up = from <= to;
        let ends = if up { [from, to] } else { [to, from] };
        let key = Key { vlan: segment.from.vlan, ends };
        let sender = usize::from(!up);
        let says = !segment.payload.is_empty() || segment.fin && self.flows.contains_key(&key);
        if segment.rst || !(segment.syn || says) {
            return;
        }
        // Of a flow whose beginning nobody saw, the end with the lower port is taken for the server.
        let client = if from.1 >= to.1 { sender } else { 1 - sender };
        let flow = self.flow(key, client, segment.from.mac);
        let before = flow.kept();
        if segment.syn {
            flow.open(segment, sender);
        } else {
            flow.take(segment, sender, look, &ends, read);
        }
        let (opener, after) = (flow.opener, flow.kept());
        self.kept = (self.kept + after).saturating_sub(before);
        let share = self.shares.entry(opener).or_default();
        share.kept = (share.kept + after).saturating_sub(before);
        while self.shares.get(&opener).is_some_and(|share| share.kept > MOST_KEPT_OF_ONE) {
            self.push_out(Some(opener));
        }
        while self.kept > MOST_KEPT {
            let heaviest = self.shares.iter().max_by_key(|(_, share)| share.kept);
            let heaviest = heaviest.map(|(mac, _)| *mac);
            self.push_out(heaviest);
        }
    }

    /// Flows that were forgotten before their time, to make room for others.
    pub(crate) const fn pushed_out(&self) -> u64 {
        self.pushed_out
    }

    /// The flow of a key, which begins now where it isn't known.
    fn flow(&mut self, key: Key, client: usize, opener: MacAddr) -> &mut Flow {
        if !self.flows.contains_key(&key) {
            if self.shares.get(&opener).is_some_and(|share| share.flows >= MOST_FLOWS_OF_ONE) {
                self.push_out(Some(opener));
            }
            if self.flows.len() >= MOST_FLOWS {
                let heaviest = self.shares.iter().max_by_key(|(_, share)| share.flows);
                let heaviest = heaviest.filter(|(_, share)| share.flows > 1).map(|(mac, _)| *mac);
                self.push_out(heaviest);
            }
            self.order.push_back(key);
            self.shares.entry(opener).or_default().flows += 1;
        }
        self.flows.entry(key).or_insert_with(|| Flow::new(client, opener))
    }

    /// Forgets the oldest flow, or the oldest that a machine began.
    fn push_out(&mut self, opener: Option<MacAddr>) {
        let is_its = |key: &Key| {
            opener.is_none_or(|mac| self.flows.get(key).is_some_and(|flow| flow.opener == mac))
        };
        let oldest = self.order.iter().position(is_its).and_then(|at| self.order.remove(at));
        let Some(flow) = oldest.and_then(|key| self.flows.remove(&key)) else {
            *self = Self { pushed_out: self.pushed_out, ..Self::default() };
            return;
        };
        self.pushed_out += 1;
        self.kept = self.kept.saturating_sub(flow.kept());
        if let Some(share) = self.shares.get_mut(&flow.opener) {
            share.flows -= 1;
            share.kept = share.kept.saturating_sub(flow.kept());
            if share.flows == 0 {
                self.shares.remove(&flow.opener);
            }
        }
    }
}

#[cfg(test)]
mod tests;
