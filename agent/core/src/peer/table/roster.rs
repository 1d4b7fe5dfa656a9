//! Who is a peer, and by which keys.

use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use hashbrown::HashMap;

use super::{MAX_PEERS, OWNER_SHIFT, Peer, Peers, Tunnel};
use crate::peer::{MAX_KEYS, PeerConfig};

/// New peers are initiated to this far apart.
const STAGGER: Duration = Duration::from_millis(3);

impl Peers {
    /// Makes `peers` the peers: new ones are added and initiated to, in their order; those that are missing are
    /// cut off; sessions with keys that stay go on.
    ///
    /// A tunnel key belongs to the first peer that brought it. Another one that claims it as well is left without.
    pub fn set_peers(&mut self, peers: &[PeerConfig], now: Instant) {
        let wanted: HashMap<GatewayId, &PeerConfig> =
            peers.iter().map(|config| (config.gateway, config)).collect();
        for number in self.peers.numbers() {
            let Some(peer) = self.peers.get(number) else { continue };
            let keys: &[TunnelPublicKey] = match wanted.get(&peer.gateway) {
                Some(config) => &config.keys,
                None => &[],
            };
            let kept = &keys[..keys.len().min(MAX_KEYS)];
            let gone = |tunnel: &&u32| {
                self.tunnels.get(**tunnel).is_none_or(|tunnel| !kept.contains(&tunnel.key))
            };
            let gone: Vec<u32> = peer.tunnels.iter().filter(gone).copied().collect();
            let removed = !wanted.contains_key(&peer.gateway);
            self.remove_tunnels(number, &gone);
            if removed {
                self.remove_peer(number);
            }
        }
        let mut first_attempt = now;
        for config in peers {
            let Some(number) = self.place(config, now) else { continue };
            if self.give_keys(number, config, (now, first_attempt)) {
                first_attempt += STAGGER;
            }
            self.choose_sending(number);
            self.review(number);
            self.wake(number, now);
        }
    }

    /// Finds or makes the place of a peer.
    fn place(&mut self, config: &PeerConfig, now: Instant) -> Option<u32> {
        if let Some(number) = self.by_gateway.get(&config.gateway) {
            let number = *number;
            self.peers.get_mut(number)?.configure(config, now);
            self.fit(number, false, now);
            return Some(number);
        }
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let number = self.peers.insert(|_| Peer::new(config, generation, now));
        let Some(number) = number else {
            tracing::warn!(gateway = %config.gateway, "no room for more than {MAX_PEERS} peers");
            return None;
        };
        self.by_gateway.insert(config.gateway, number);
        self.fit(number, false, now);
        Some(number)
    }

    /// Makes tunnels for new keys and puts all in order. Says whether it made one.
    fn give_keys(
        &mut self,
        index: u32,
        config: &PeerConfig,
        (now, first_attempt): (Instant, Instant),
    ) -> bool {
        let (mut order, mut made) = (Vec::new(), false);
        for key in config.keys.iter().take(MAX_KEYS) {
            let number = match self.by_key.get(key) {
                Some(number) => {
                    if self.tunnels.get(*number).is_none_or(|tunnel| tunnel.peer != index) {
                        tracing::warn!(gateway = %config.gateway, %key, "another peer has this key");
                        continue;
                    }
                    *number
                }
                None if *key == self.own_key => continue,
                None => {
                    let owner = u32::from(self.config.owner & 0x0f) << OWNER_SHIFT;
                    let (secret, limiter) = (&self.secret, self.front.limiter());
                    let made_one = self.tunnels.insert(|number| {
                        let who = (index, *key, config.client);
                        // Where a client was before this start it is called, too.
                        let called = !config.client || !config.endpoints.is_empty();
                        let times = (now, called.then_some(first_attempt));
                        Tunnel::new(secret, who, owner | number, limiter, times)
                    });
                    let Some(number) = made_one else { continue };
                    self.by_key.insert(*key, number);
                    made = true;
                    number
                }
            };
            if !order.contains(&number) {
                order.push(number);
            }
        }
        if let Some(peer) = self.peers.get_mut(index) {
            peer.tunnels = order;
        }
        made
    }

    fn remove_tunnels(&mut self, index: u32, gone: &[u32]) {
        for number in gone {
            if let Some(tunnel) = self.tunnels.remove(*number) {
                self.by_key.remove(&tunnel.key);
            }
        }
        if let Some(peer) = self.peers.get_mut(index) {
            peer.tunnels.retain(|number| !gone.contains(number));
        }
        self.choose_sending(index);
    }

    fn remove_peer(&mut self, index: u32) {
        // Before it is gone.
        self.review(index);
        let Some(peer) = self.peers.remove(index) else { return };
        self.joiner.remove(index);
        self.by_gateway.remove(&peer.gateway);
        self.events.retain(|listed| *listed != index);
        self.count(DropReason::TunnelDown, peer.queue.len() as u64);
    }
}
