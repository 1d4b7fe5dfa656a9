//! What one relay says of peers: by which numbers they are known there, and what they can be handed.

use std::collections::HashMap;

use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::PeerState;
use anteroom_proto::relay::packet::PeerNumber;

/// Most peers that one relay may tell of.
const MOST_PEERS: usize = PeerNumber::COUNT as usize;
/// So much more room for packets, in bytes, isn't told to the data plane.
const LITTLE: u16 = 16;

/// What a relay says of peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) numbers: HashMap<GatewayId, PeerState>,
    pub(super) names: HashMap<PeerNumber, GatewayId>,
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
        }
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
