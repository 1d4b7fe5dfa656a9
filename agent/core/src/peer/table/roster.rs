//! Who is a peer, and by which keys.

use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use hashbrown::HashMap;

use super::{MAX_PEERS, Peer, Peers};
use crate::peer::{MAX_KEYS, PeerConfig};

/// New peers are initiated to this far apart.
const STAGGER: Duration = Duration::from_millis(2);

impl Peers {
    /// Makes `peers` the peers: new ones are added and initiated to, in their order; those that are missing are
    /// cut off; sessions with keys that stay go on.
    ///
    /// A tunnel key belongs to the first peer that brought it. Another one that claims it as well is left without.
    pub fn set_peers(&mut self, peers: &[PeerConfig], now: Instant) {
        let wanted: HashMap<GatewayId, &PeerConfig> =
            peers.iter().map(|config| (config.gateway, config)).collect();
        self.cut_off(|gateway| wanted.get(&gateway).copied(), now);
        for config in peers {
            self.admit(config, now);
        }
    }

    /// Cuts off whoever isn't `wanted` any more, and whatever key. Those who stay are told from now on what is held in
    /// common. Each one that is wanted is to be [admitted](Self::admit) then.
    pub fn cut_off<'a>(
        &mut self,
        wanted: impl Fn(GatewayId) -> Option<&'a PeerConfig>,
        now: Instant,
    ) {
        for number in self.peers.numbers() {
            let Some(peer) = self.peers.get_mut(number) else { continue };
            let config = wanted(peer.gateway);
            if let Some(config) = config {
                peer.relate(config.relation, now);
            }
            let keys: &[TunnelPublicKey] = config.map(|config| &*config.keys).unwrap_or_default();
            let kept = &keys[..keys.len().min(MAX_KEYS)];
            let gone = |tunnel: &&u32| {
                self.tunnels.get(**tunnel).is_none_or(|tunnel| !kept.contains(&tunnel.key))
            };
            let gone: Vec<u32> = peer.tunnels.iter().filter(gone).copied().collect();
            peer.keys.retain(|key| kept.contains(key));
            if !gone.is_empty() {
                self.remove_tunnels(number, &gone);
                self.choose_sending(number);
            }
            if config.is_none() {
                self.remove_peer(number);
            }
        }
    }

    /// Makes somebody a peer, or a peer what it is to be now. A new one is initiated to soon, after those before it.
    pub fn admit(&mut self, config: &PeerConfig, now: Instant) {
        let Some(number) = self.place(config, now) else { return };
        let first_attempt = self.next_first_attempt.max(now);
        self.give_keys(number, config);
        let called = (!config.client || !config.endpoints.is_empty()).then_some(first_attempt);
        if self.pair(number, called, now) {
            self.next_first_attempt = first_attempt + STAGGER;
        }
        self.drop_stale_agreements(number);
        self.choose_sending(number);
        self.judge(number, now);
        self.review(number);
        self.wake(number, now);
    }

    /// Finds or makes the place of a peer.
    fn place(&mut self, config: &PeerConfig, now: Instant) -> Option<u32> {
        if let Some(number) = self.by_gateway.get(&config.gateway) {
            let number = *number;
            self.peers.get_mut(number)?.configure(config, now);
            self.take_relays(number, now);
            self.fit(number, false, now);
            return Some(number);
        }
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let number = self.peers.insert(|_| Peer::new(config, generation, now));
        let Some(number) = number else {
            self.turned_away += 1;
            tracing::warn!(gateway = %config.gateway, "no room for more than {MAX_PEERS} peers");
            return None;
        };
        self.by_gateway.insert(config.gateway, number);
        let agreed = self.agreed.contains(&config.gateway);
        if let Some(peer) = self.peers.get_mut(number) {
            peer.secrecy.reached = agreed;
        }
        self.take_relays(number, now);
        self.fit(number, false, now);
        Some(number)
    }

    fn remove_peer(&mut self, index: u32) {
        // Before it is gone.
        self.review(index);
        let Some(peer) = self.peers.remove(index) else { return };
        if peer.route.via().is_some() {
            self.on_relays = self.on_relays.saturating_sub(1);
        }
        self.joiner.remove(index);
        self.by_gateway.remove(&peer.gateway);
        self.events.retain(|listed| *listed != index);
        self.count(DropReason::TunnelDown, peer.queue.len() as u64);
    }
}
