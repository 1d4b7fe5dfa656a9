//! Which pairs of keys make tunnels, which of a peer's tunnels packets take, and when an old key has done its duty.
//!
//! Every own key makes a tunnel with every key of a peer, so that either end may change its key without asking the
//! other: the better pair is shaken hands with beside the one in use, and takes the packets once it has a session. What
//! is still under way to the old one is opened as long as that is there.

use std::time::{Duration, Instant};

use anteroom_proto::key::TunnelPublicKey;

use super::{OWNER_SHIFT, Peers, Tunnel};
use crate::peer::own::{DRAINED, KeyUse, OwnKey};
use crate::peer::{LIVE_FOR, MAX_KEYS, PeerConfig};

/// New tunnels of peers that are there already are tried this far apart.
const STAGGER: Duration = Duration::from_millis(2);
/// How long a peer that is spoken to with an old key of this gateway has to come by itself with a new one, of which
/// it hears by way of the controller.
const FOR_PEER_TO_HEAR: Duration = Duration::from_secs(3);

impl Peers {
    /// Makes `keys` this gateway's own, best first: at most [`MAX_OWN_KEYS`](crate::peer::MAX_OWN_KEYS) of them.
    /// Tunnels with those that stay go on; those with keys that aren't named any more, or not for the peer's kind, end at once.
    pub fn set_own_keys(&mut self, keys: &[OwnKey], now: Instant) {
        self.own.set(keys);
        let mut first_attempt = now;
        for index in self.peers.numbers() {
            let Some(peer) = self.peers.get(index) else { continue };
            let (client, spoken_to) = (peer.client, peer.sending.is_some());
            let ended = |number: &&u32| {
                self.tunnels.get(**number).is_none_or(|tunnel| !self.own.serves(tunnel.own, client))
            };
            let ended: Vec<u32> = peer.tunnels.iter().filter(ended).copied().collect();
            if !ended.is_empty() {
                self.remove_tunnels(index, &ended);
            }
            let wait = if spoken_to { FOR_PEER_TO_HEAR } else { Duration::ZERO };
            if self.pair(index, (!client).then_some(first_attempt + wait), now) {
                first_attempt += STAGGER;
            }
            self.drop_stale_agreements(index);
            self.choose_sending(index);
            self.judge(index, now);
            self.review(index);
            self.wake(index, now);
        }
    }

    /// What receiver indices of this table begin with.
    pub(super) fn owner_bits(&self) -> u32 {
        u32::from(self.config.owner & 0x0f) << OWNER_SHIFT
    }

    /// This gateway's keys for other gateways, and who still needs each.
    #[must_use]
    pub fn key_use(&self, now: Instant) -> Vec<KeyUse> {
        let keys = self.own.iter().filter(|own| own.gateways);
        keys.filter_map(|own| {
            let rank = self.own.rank(own.number)?;
            let mut found = KeyUse { key: own.key, live: 0, away: 0, names: Vec::new() };
            for (_, peer) in self.peers.iter().filter(|(_, peer)| !peer.client) {
                if peer.tunnels.is_empty() || self.has_left(peer, rank, now) {
                    continue;
                }
                if peer.is_live(now) {
                    found.live += 1;
                    if found.names.len() < KeyUse::NAMED {
                        found.names.push(peer.gateway);
                    }
                } else {
                    found.away += 1;
                }
            }
            Some(found)
        })
        .collect()
    }

    /// Whether a peer has moved from the own key of this rank to a newer one, and nothing is under way to the old one. Nor does one need
    /// a key in the middle that holds on to a still older one: it may be kept from going further, or have no good in mind, and
    /// the others' keys go all the same.
    fn has_left(&self, peer: &super::Peer, rank: usize, now: Instant) -> bool {
        let tunnels = || peer.tunnels.iter().filter_map(|number| self.tunnels.get(*number));
        let of = |tunnel: &Tunnel| self.own.rank(tunnel.own);
        let newer = |tunnel: &Tunnel| of(tunnel).is_some_and(|of| of < rank);
        let sending = peer.sending.and_then(|number| self.tunnels.get(number));
        let older = |tunnel: &Tunnel| rank > 0 && of(tunnel).is_some_and(|of| of > rank);
        let moved = match sending {
            Some(tunnel) => newer(tunnel) || older(tunnel),
            None => tunnels().any(|tunnel| newer(tunnel) && tunnel.is_proved()),
        };
        let quiet = |tunnel: &Tunnel| {
            of(tunnel) != Some(rank)
                || !tunnel.is_begun()
                || now.saturating_duration_since(tunnel.last_heard()) > DRAINED
        };
        moved && tunnels().all(quiet)
    }

    /// The peer that has a key.
    pub(super) fn holder(&self, key: &TunnelPublicKey) -> Option<u32> {
        let number = self.own.iter().find_map(|own| self.by_key.get(&(own.number, *key, false)))?;
        self.tunnels.get(*number).map(|tunnel| tunnel.peer)
    }

    /// Notes which keys a peer has, but for those that are somebody else's.
    pub(super) fn give_keys(&mut self, index: u32, config: &PeerConfig) {
        let mut keys: Vec<TunnelPublicKey> = Vec::new();
        for key in config.keys.iter().take(MAX_KEYS) {
            if self.holder(key).is_some_and(|holder| holder != index) {
                tracing::warn!(gateway = %config.gateway, %key, "another peer has this key");
            } else if !self.own.has(key) && !keys.contains(key) {
                keys.push(*key);
            }
        }
        if let Some(peer) = self.peers.get_mut(index) {
            let kems = config.kems.iter().filter(|kem| keys.contains(&kem.key));
            peer.secrecy.set_kems(kems.cloned());
            peer.keys = keys;
        }
    }

    /// Makes the tunnels of a peer that are missing, first shaken hands with at `first_attempt`, and puts all in order.
    /// Says whether it made one.
    pub(super) fn pair(
        &mut self,
        index: u32,
        first_attempt: Option<Instant>,
        now: Instant,
    ) -> bool {
        let Some(peer) = self.peers.get(index) else { return false };
        let (keys, client) = (peer.keys.clone(), peer.client);
        let owner = self.owner_bits();
        let (mut order, mut made) = (Vec::new(), false);
        for (rank, own) in self.own.iter().filter(|own| own.is_for(client)).enumerate() {
            for (place, key) in keys.iter().enumerate() {
                let pair = (own.number, *key, false);
                let number = match self.by_key.get(&pair) {
                    Some(number) => *number,
                    None => {
                        let made_one = self.tunnels.insert(|number| {
                            let (times, limiter) = ((now, first_attempt), own.limiter());
                            let who = (index, *key, client);
                            let index = owner | number;
                            let tunnel = Tunnel::new(&own.secret, who, index, limiter, times);
                            tunnel.of(own.number)
                        });
                        let Some(number) = made_one else {
                            self.turned_away += 1;
                            continue;
                        };
                        self.by_key.insert(pair, number);
                        made = true;
                        number
                    }
                };
                // The better of both ends' keys decides last: a pair of which one is old is old. None without a pre-shared
                // key is as good as any that has one.
                let place = (rank.max(place), rank + place, rank);
                order.push((true, place, number));
                if let Some(number) = self.by_key.get(&(own.number, *key, true)) {
                    order.push((false, place, *number));
                }
            }
        }
        order.sort_unstable();
        if let Some(peer) = self.peers.get_mut(index) {
            peer.tunnels = order.into_iter().map(|(.., number)| number).collect();
        }
        made
    }

    pub(super) fn remove_tunnels(&mut self, index: u32, gone: &[u32]) {
        for number in gone {
            if let Some(tunnel) = self.tunnels.remove(*number) {
                self.by_key.remove(&(tunnel.own, tunnel.key, tunnel.has_psk()));
            }
        }
        if let Some(peer) = self.peers.get_mut(index) {
            peer.tunnels.retain(|number| !gone.contains(number));
            if peer.sending.is_some_and(|number| gone.contains(&number)) {
                peer.sending = None;
            }
        }
        self.review(index);
    }

    /// Makes the best tunnel with a session the one that packets take, unless the peer speaks through another and
    /// has gone quiet there: it may run anew, and know one of its keys or of ours no more.
    pub(super) fn choose_sending(&mut self, index: u32) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let ready = || {
            let tunnels = peer.tunnels.iter();
            let tunnels = tunnels.filter_map(|number| Some((*number, self.tunnels.get(*number)?)));
            tunnels.filter(|(_, tunnel)| tunnel.has_session())
        };
        let newest = ready().map(|(_, tunnel)| tunnel.last_heard()).max();
        let speaks = |tunnel: &Tunnel| {
            newest.is_none_or(|newest| {
                newest.saturating_duration_since(tunnel.last_heard()) <= LIVE_FOR
            })
        };
        let sending = ready().find(|(_, tunnel)| speaks(tunnel)).map(|(number, _)| number);
        if std::mem::replace(&mut peer.sending, sending) != sending {
            self.review(index);
        }
    }
}
