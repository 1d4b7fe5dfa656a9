//! What one relay says of peers: by which numbers they are known there, and what they can be handed.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::PeerState;
use anteroom_proto::relay::packet::PeerNumber;
use bytes::Bytes;

/// Most peers that one relay may tell of.
const MOST_PEERS: usize = PeerNumber::COUNT as usize;
/// So much more room for packets, in bytes, isn't told to the data plane.
const LITTLE: u16 = 16;

/// How long packets of peers that the relay hasn't named wait for that. Tests have their machine pause now and then.
const WORD: Duration = Duration::from_secs(if cfg!(test) { 30 } else { 1 });
/// Most of them.
const MOST_UNNAMED: usize = 256;

/// What a relay says of peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) numbers: HashMap<GatewayId, PeerState>,
    pub(super) names: HashMap<PeerNumber, GatewayId>,
    /// Packets of numbers that nobody has, the oldest first. Nothing puts a connection's datagrams behind the message that says whose they
    /// are, not even where the relay sends them so.
    unnamed: VecDeque<Unnamed>,
    /// Whether a name has come since they were looked at.
    news: bool,
}

#[derive(Debug)]
struct Unnamed {
    number: PeerNumber,
    datagram: Bytes,
    came: Instant,
}

/// What has become of packets that waited for a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Waited {
    /// They have one.
    pub(super) named: Vec<(GatewayId, Bytes)>,
    /// How many have waited in vain.
    pub(super) late: u64,
}

impl Peers {
    /// Takes over what is said of those whom this gateway's pass `names`. Of others an honest relay says nothing.
    pub(super) fn hear(&mut self, states: Vec<PeerState>, names: impl Fn(&GatewayId) -> bool) {
        for mut state in states.into_iter().filter(|state| names(&state.gateway)) {
            let known = self.numbers.get(&state.gateway);
            if self.numbers.len() >= MOST_PEERS && known.is_none() {
                continue;
            }
            // A little more room is worth nothing, and might be told again and again.
            if let (Some(before), Some(now)) = (known.and_then(|known| known.room), state.room)
                && (before..before.saturating_add(LITTLE)).contains(&now)
            {
                state.room = Some(before);
            }
            if let Some(before) = self.numbers.insert(state.gateway, state) {
                self.names.remove(&before.number);
            }
            self.names.insert(state.number, state.gateway);
            self.news = true;
        }
    }

    /// Keeps a packet for when the relay says whose `number` is; false where there is no room.
    pub(super) fn wait(&mut self, number: PeerNumber, datagram: &[u8], now: Instant) -> bool {
        let room = self.unnamed.len() < MOST_UNNAMED;
        if room {
            // Copied, so that what waits doesn't hold on to the whole of what the socket gave.
            let datagram = Bytes::copy_from_slice(datagram);
            self.unnamed.push_back(Unnamed { number, datagram, came: now });
        }
        room
    }

    /// Takes out of those that wait whoever has a name by now, and whoever has waited for too long.
    pub(super) fn named(&mut self, now: Instant) -> Waited {
        let mut waited = Waited::default();
        if std::mem::take(&mut self.news) {
            let names = &self.names;
            self.unnamed.retain_mut(|one| {
                let name = names.get(&one.number).copied();
                waited.named.extend(name.map(|name| (name, std::mem::take(&mut one.datagram))));
                name.is_none()
            });
        }
        let is_late = |one: &Unnamed| now.saturating_duration_since(one.came) > WORD;
        while self.unnamed.pop_front_if(|one| is_late(one)).is_some() {
            waited.late += 1;
        }
        waited
    }

    /// Whom it can hand packets to, no longer than `own`.
    pub(super) fn rooms(&self, own: u16) -> HashMap<GatewayId, u16> {
        let here = self.numbers.values().filter_map(|state| Some((state.gateway, state.room?)));
        here.map(|(gateway, room)| (gateway, room.min(own))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_overtake_the_word_whose_they_are_wait_for_it_in_their_order_for_a_moment() {
        let (begin, named) = (Instant::now(), GatewayId::from_bytes([1; 16]));
        let number = |n| PeerNumber::new(n).unwrap();
        let mut peers = Peers::default();
        for (called, mark) in [(7, 1), (8, 2), (7, 3)] {
            assert!(peers.wait(number(called), &[mark], begin));
        }
        assert_eq!(peers.named(begin + WORD), Waited::default());
        let state = PeerState { gateway: named, number: number(7), room: None };
        peers.hear(vec![state], |_| false);
        assert_eq!(peers.named(begin + WORD), Waited::default(), "no pass names it");
        peers.hear(vec![state], |_| true);
        let packets = [[1], [3]].map(|bytes| (named, Bytes::copy_from_slice(&bytes)));
        assert_eq!(peers.named(begin + WORD), Waited { named: packets.to_vec(), late: 0 });
        let late = begin + WORD + Duration::from_millis(1);
        assert_eq!(peers.named(late), Waited { named: vec![], late: 1 });
        // Numbers that are nobody's take up so much and no more, and make room again.
        let taken = (0..2 * MOST_UNNAMED).filter(|_| peers.wait(number(9), &[4], late)).count();
        assert_eq!(taken, MOST_UNNAMED);
        let last = late + 2 * WORD;
        assert_eq!(peers.named(last).late, u64::try_from(MOST_UNNAMED).unwrap());
        assert!(peers.wait(number(9), &[5], last));
    }

    #[test]
    fn what_a_relay_says_of_peers_is_kept_by_name_and_number() {
        let gateway = |n| GatewayId::from_bytes([n; 16]);
        let number = |n| PeerNumber::new(n).unwrap();
        let state =
            |n, called, room| PeerState { gateway: gateway(n), number: number(called), room };
        let mut peers = Peers::default();
        peers.hear(vec![state(1, 0, Some(1_200)), state(2, 1, None)], |_| true);
        assert_eq!(peers.rooms(1_160), HashMap::from([(gateway(1), 1_160)]));
        peers.hear(vec![state(2, 1, Some(900))], |_| true);
        assert_eq!(peers.rooms(1_160).get(&gateway(2)), Some(&900));
        // One that calls a peer otherwise all at once is believed, and the old name is nobody's.
        peers.hear(vec![state(2, 7, Some(900))], |_| true);
        assert_eq!(peers.names.get(&number(1)), None);
        assert_eq!(peers.names.get(&number(7)), Some(&gateway(2)));
        // Whom no pass names is nobody, however many of them there are.
        peers.hear((10..200).map(|n| state(n, n.into(), Some(1_200))).collect(), |_| false);
        assert_eq!(peers.numbers.len(), 2);
        for (room, told) in [(915, 900), (916, 916), (899, 899), (914, 899)] {
            peers.hear(vec![state(2, 7, Some(room))], |_| true);
            assert_eq!(peers.rooms(2_000).get(&gateway(2)), Some(&told), "{room}");
        }
    }
}
