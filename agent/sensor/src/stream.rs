//! The first bytes of TCP streams, put in order.
//!
//! Associations of DICOM and hellos of TLS span segments, so the first [`MOST_BYTES`] of each direction are kept until their parser
//! is done with them. Flows are forgotten in the order of their beginnings, once there are [`MOST_FLOWS`] or what is kept of
//! all comes to [`MOST_KEPT`].

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::frame::Segment;
use crate::gate::Look;
use crate::sight::Station;

/// Most flows that are known at a time.
const MOST_FLOWS: usize = 4096;
/// Most bytes of one direction that are kept.
const MOST_BYTES: usize = 16 * 1024;
/// Most segments with bytes of one direction that are looked at.
const MOST_SEGMENTS: u8 = 24;
/// Most segments of one direction that wait for one before them.
const MOST_WAITING: usize = 4;
/// Most bytes of all flows together.
const MOST_KEPT: usize = 8 * 1024 * 1024;

/// An end of a flow.
type End = (IpAddr, u16);

/// A flow, its lower end first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    vlan: Option<u16>,
    ends: [End; 2],
}

/// What was said so far between two stations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Talk<'a> {
    /// Who opened the connection.
    pub(crate) client: Station,
    /// Who took it.
    pub(crate) server: Station,
    /// The port that the server listens at.
    pub(crate) port: u16,
    /// The first bytes of the client.
    pub(crate) asked: &'a [u8],
    /// The first bytes of the server.
    pub(crate) answered: &'a [u8],
}

/// One direction of a flow.
#[derive(Debug, Default)]
struct Half {
    who: Option<Station>,
    /// The sequence number that comes next, once it is known.
    next: Option<u32>,
    bytes: Vec<u8>,
    segments: u8,
    /// Segments that came before their time.
    waiting: Vec<(u32, Vec<u8>)>,
    /// Nothing more is taken.
    full: bool,
}

impl Half {
    fn open(who: Station, next: u32) -> Self {
        Self { who: Some(who), next: Some(next), ..Self::default() }
    }

    fn kept(&self) -> usize {
        self.bytes.len() + self.waiting.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Takes a segment's bytes. Says whether there is something new to be read.
    fn take(&mut self, segment: &Segment<'_>) -> bool {
        self.who = Some(segment.from);
        if self.full || segment.payload.is_empty() {
            return false;
        }
        self.segments = self.segments.saturating_add(1);
        let next = *self.next.get_or_insert(segment.sequence);
        let before = self.bytes.len();
        match ahead(next, segment.sequence) {
            Place::Here(known) => self.append(segment.payload.get(known..).unwrap_or_default()),
            Place::Later if self.waiting.len() < MOST_WAITING => {
                let most = segment.payload.len().min(MOST_BYTES);
                self.waiting.push((segment.sequence, segment.payload[..most].to_vec()));
            }
            Place::Later | Place::Far => {}
        }
        while let Some(at) = self.waiting.iter().position(|(sequence, _)| {
            self.next.is_some_and(|next| matches!(ahead(next, *sequence), Place::Here(_)))
        }) {
            let (sequence, bytes) = self.waiting.swap_remove(at);
            let next = self.next.unwrap_or(sequence);
            if let Place::Here(known) = ahead(next, sequence) {
                self.append(bytes.get(known..).unwrap_or_default());
            }
        }
        self.full |= self.segments >= MOST_SEGMENTS || self.bytes.len() >= MOST_BYTES;
        self.bytes.len() > before
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = MOST_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.full |= bytes.len() >= room;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.next = self.next.map(|next| next.wrapping_add(length));
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

#[derive(Debug)]
struct Flow {
    /// Of the key's ends, in their order.
    halves: [Half; 2],
    /// Which of the ends opened the flow.
    client: usize,
    done: bool,
}

impl Flow {
    fn kept(&self) -> usize {
        self.halves.iter().map(Half::kept).sum()
    }
}

/// The flows that are known.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    flows: HashMap<Key, Flow>,
    /// In the order of their beginnings.
    order: VecDeque<Key>,
    kept: usize,
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
        if segment.rst {
            return;
        }
        if segment.syn {
            let next = segment.sequence.wrapping_add(1);
            if segment.ack {
                let flow = self.flow(key, 1 - sender);
                flow.client = 1 - sender;
                if flow.halves[sender].bytes.is_empty() {
                    flow.halves[sender] = Half::open(segment.from, next);
                }
            } else {
                self.restart(key);
                let flow = self.flow(key, sender);
                flow.client = sender;
                flow.halves[sender] = Half::open(segment.from, next);
            }
            return;
        }
        if segment.payload.is_empty() {
            return;
        }
        // Of a flow whose beginning nobody saw, the end with the lower port is taken for the server.
        let client = if from.1 >= to.1 { sender } else { 1 - sender };
        if look == Look::Anew && self.flows.get(&key).is_some_and(|flow| flow.done) {
            self.restart(key);
        }
        let flow = self.flow(key, client);
        if flow.done {
            return;
        }
        let before = flow.kept();
        flow.halves[1 - sender].who.get_or_insert(segment.to);
        let news = flow.halves[sender].take(segment);
        let client = flow.client;
        if news
            && let (Some(asker), Some(answerer)) =
                (flow.halves[client].who, flow.halves[1 - client].who)
        {
            flow.done = read(Talk {
                client: asker,
                server: answerer,
                port: key.ends[1 - client].1,
                asked: &flow.halves[client].bytes,
                answered: &flow.halves[1 - client].bytes,
            });
        }
        flow.done |= flow.halves.iter().all(|half| half.full);
        if flow.done {
            flow.halves.iter_mut().for_each(Half::forget);
        }
        let after = flow.kept();
        self.kept = (self.kept + after).saturating_sub(before);
        while self.kept > MOST_KEPT || self.flows.len() > MOST_FLOWS {
            self.forget_oldest();
        }
    }

    /// The flow of a key, which begins now where it isn't known.
    fn flow(&mut self, key: Key, client: usize) -> &mut Flow {
        while self.flows.len() >= MOST_FLOWS && !self.flows.contains_key(&key) {
            self.forget_oldest();
        }
        self.flows.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Flow { halves: Default::default(), client, done: false }
        })
    }

    /// Forgets what was said in a flow: its ends use the same ports again, or it is read again.
    fn restart(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(&key) {
            self.kept = self.kept.saturating_sub(flow.kept());
            flow.halves = Default::default();
            flow.done = false;
        }
    }

    fn forget_oldest(&mut self) {
        let Some(key) = self.order.pop_front() else {
            self.kept = 0;
            self.flows.clear();
            return;
        };
        if let Some(flow) = self.flows.remove(&key) {
            self.kept = self.kept.saturating_sub(flow.kept());
        }
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;

    const CLIENT: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 1]), vlan: None };
    const SERVER: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 2]), vlan: None };

    fn segment(port: u16, sequence: u32, payload: &[u8]) -> Segment<'_> {
        Segment {
            from: CLIENT,
            to: SERVER,
            ips: (IpAddr::from([10, 0, 0, 9]), IpAddr::from([10, 0, 0, 1])),
            ports: (port, 104),
            ttl: 64,
            syn: false,
            ack: true,
            rst: false,
            window: 0,
            sequence,
            options: &[],
            payload,
        }
    }

    fn opened(port: u16, sequence: u32) -> Segment<'static> {
        Segment { syn: true, ack: false, ..segment(port, sequence, &[]) }
    }

    fn read(streams: &mut Streams, segment: &Segment<'_>) -> Option<Vec<u8>> {
        let mut read = None;
        streams.take(segment, Look::Further, |talk| {
            assert_eq!((talk.client, talk.server, talk.port), (CLIENT, SERVER, 104));
            read = Some(talk.asked.to_vec());
            false
        });
        read
    }

    #[test]
    fn segments_are_put_in_order_and_overlaps_taken_once() {
        let mut streams = Streams::default();
        let start = u32::MAX - 3;
        read(&mut streams, &opened(4000, start.wrapping_sub(1)));
        assert_eq!(read(&mut streams, &segment(4000, start.wrapping_add(4), b"efgh")), None);
        assert_eq!(read(&mut streams, &segment(4000, start, b"ab")), Some(b"ab".to_vec()));
        assert_eq!(read(&mut streams, &segment(4000, start, b"ab")), None, "a repetition");
        let all = read(&mut streams, &segment(4000, start.wrapping_add(1), b"bcde"));
        assert_eq!(all, Some(b"abcdefgh".to_vec()));
        assert_eq!(read(&mut streams, &segment(4000, start.wrapping_add(1 << 20), b"far")), None);
    }

    #[test]
    fn a_port_that_is_used_again_begins_anew() {
        let mut streams = Streams::default();
        read(&mut streams, &opened(4000, 10));
        read(&mut streams, &segment(4000, 11, b"old"));
        read(&mut streams, &opened(4000, 900));
        assert_eq!(read(&mut streams, &segment(4000, 901, b"new")), Some(b"new".to_vec()));
    }

    #[test]
    fn what_is_kept_is_bounded_for_each_direction_and_in_all() {
        let mut streams = Streams::default();
        let large = vec![7; 60_000];
        for port in 1024..11_024 {
            read(&mut streams, &opened(port, 0));
            let seen = read(&mut streams, &segment(port, 1, &large)).expect("the first bytes");
            assert_eq!(seen.len(), MOST_BYTES);
            assert_eq!(read(&mut streams, &segment(port, 60_001, &large)), None);
        }
        assert!(streams.kept <= MOST_KEPT, "{}", streams.kept);
        assert!(streams.flows.len() <= MOST_FLOWS, "{}", streams.flows.len());
        assert_eq!(streams.flows.len(), streams.order.len());
        let kept: usize = streams.flows.values().map(Flow::kept).sum();
        assert_eq!(kept, streams.kept);
    }

    #[test]
    fn of_a_flow_that_was_under_way_the_lower_port_is_the_server() {
        let mut streams = Streams::default();
        let answer = Segment {
            from: SERVER,
            to: CLIENT,
            ips: (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 9])),
            ports: (104, 4000),
            ..segment(4000, 5, b"hello")
        };
        let mut who = None;
        streams.take(&answer, Look::Further, |talk| {
            who = Some((talk.client, talk.answered.to_vec()));
            true
        });
        assert_eq!(who, Some((CLIENT, b"hello".to_vec())));
        assert_eq!(read(&mut streams, &segment(4000, 50, b"more")), None, "it is done with");
    }
}
