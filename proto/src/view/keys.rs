//! The tunnel keys that a gateway has seen of its peers: what stops a replay of an old one.
//!
//! A binding is signed by the gateway whose key it is, and stays validly signed for ever. A controller that still has
//! one for a key that was replaced, because its private half got into other hands, could show it again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Peer, View};
use crate::binding::TunnelKeyBinding;
use crate::id::GatewayId;
use crate::intent::PeerGateway;
use crate::key::{PublicKey, TunnelPublicKey};

/// What is known of one gateway's tunnel keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// The identity key that signs them. A gateway that enrolled anew is another one, and counts anew; one whose identity
    /// key was replaced has the tunnel keys that it had.
    identity: PublicKey,
    /// Keys with lower serials aren't taken any more.
    lowest: u64,
    /// The one with the highest serial.
    newest: TunnelKeyBinding,
}

/// The tunnel keys that a gateway has seen of its peers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KnownKeys(Vec<Known>);

impl KnownKeys {
    /// Most peers that are remembered. Those that aren't peers any more make room first.
    pub const MAX: usize = 4096;

    /// Whether a newer key was seen of this peer than those that it has in a view.
    fn is_behind(&self, peer: &Peer) -> bool {
        let newest = peer.keys.iter().map(|key| key.serial).max();
        let known = self.at(peer).and_then(|at| self.0.get(at));
        known.is_some_and(|known| newest < Some(known.newest.serial))
    }

    /// Where what is known of this peer stands, be it from before its identity key was replaced.
    fn at(&self, peer: &Peer) -> Option<usize> {
        let by_key = |known: &Known| known.identity == peer.gateway.identity;
        let by_name = |known: &Known| known.newest.gateway == peer.gateway.gateway;
        self.0.iter().position(by_key).or_else(|| self.0.iter().position(by_name))
    }

    /// Leaves out of `view` the tunnel keys that were replaced, and remembers the others. Where it doesn't name the newest
    /// that was seen of a peer, nor a newer one, that one stays in use beside what it names: a controller that came
    /// from a backup knows less than peers do until the gateway has told it. Who is to be cut off is suspended. Gives
    /// what was left out, one sentence each.
    ///
    /// A key that was seen of one peer stays that one's: another that names it, which a controller from a backup can't tell from the
    /// owner, doesn't get it.
    ///
    /// While a gateway names several keys at once, as when it changes from one to the next, all of them count.
    pub fn hold(&mut self, view: &mut View) -> Vec<String> {
        let mut left_out = Vec::new();
        let grabbed = self.take_back(view, &mut left_out);
        // Looking who has which key costs a signature each, and is rarely needed.
        let taken = view.peers.iter().any(|peer| self.is_behind(peer)).then(|| Taken::of(view));
        for peer in &mut view.peers {
            let identity = peer.gateway.identity;
            let at = self.at(peer);
            let known = at.and_then(|at| self.0.get_mut(at));
            if let Some(known) = &known {
                for old in peer.keys.iter().filter(|key| key.serial < known.lowest) {
                    left_out.push(format!(
                        "a tunnel key of {} with serial {}: it was replaced by one with serial {}",
                        peer.gateway.gateway, old.serial, known.newest.serial
                    ));
                }
                peer.keys.retain(|key| key.serial >= known.lowest);
                let newest = peer.keys.first().map(|key| key.serial);
                if newest < Some(known.newest.serial)
                    && (grabbed.contains(&known.newest.x25519)
                        || taken.as_ref().is_some_and(|taken| !taken.contains(&known.newest)))
                {
                    peer.keys.insert(0, known.newest.clone());
                }
            }
            let (Some(newest), Some(oldest)) = (peer.keys.first(), peer.keys.last()) else {
                continue;
            };
            match known {
                Some(known) => {
                    known.identity = identity;
                    known.lowest = known.lowest.max(oldest.serial);
                    if newest.serial >= known.newest.serial {
                        known.newest = newest.clone();
                    }
                }
                None => {
                    let (lowest, newest) = (oldest.serial, newest.clone());
                    self.0.push(Known { identity, lowest, newest });
                }
            }
        }
        if self.0.len() > Self::MAX {
            let peers = &view.intent.peers;
            let mut extra = self.0.len() - Self::MAX;
            self.0.retain(|known| {
                let is_peer = peers.iter().any(|peer| peer.identity == known.identity);
                let goes = extra > 0 && !is_peer;
                extra -= usize::from(goes);
                !goes
            });
            self.0.truncate(Self::MAX);
        }
        view.left_out.extend(left_out.iter().cloned());
        left_out
    }

    /// Leaves out keys that peers name as their own and that were seen as the newest of another peer in the view. Gives which.
    fn take_back(&self, view: &mut View, left_out: &mut Vec<String>) -> BTreeSet<TunnelPublicKey> {
        let names: BTreeMap<PublicKey, GatewayId> =
            view.peers.iter().map(|peer| (peer.gateway.identity, peer.gateway.gateway)).collect();
        let mut seen: BTreeMap<TunnelPublicKey, Vec<PublicKey>> = BTreeMap::new();
        for known in self.0.iter().filter(|known| names.contains_key(&known.identity)) {
            seen.entry(known.newest.x25519).or_default().push(known.identity);
        }
        let mut grabbed = BTreeSet::new();
        for peer in &mut view.peers {
            let PeerGateway { gateway, identity, .. } = &peer.gateway;
            peer.keys.retain(|key| {
                let owners = seen.get(&key.x25519).filter(|owners| !owners.contains(identity));
                let Some(owner) = owners.and_then(|owners| names.get(owners.first()?)) else {
                    return true;
                };
                left_out.push(format!(
                    "the tunnel key {}, which {gateway} claims and {owner} had before",
                    key.x25519
                ));
                grabbed.insert(key.x25519);
                false
            });
        }
        grabbed
    }
}

/// The tunnel keys that a view gives to somebody, or that were left out of it though it names them.
struct Taken(BTreeSet<TunnelPublicKey>);

impl Taken {
    fn of(view: &View) -> Self {
        let offered = view.operation.peers.iter().flat_map(|peer| &peer.keys);
        let offered = offered.filter_map(|key| key.verify_self_named().ok());
        let peers = view.peers.iter().flat_map(|peer| &peer.keys).map(|key| key.x25519);
        let clients = view.intent.clients.iter().map(|client| client.key);
        Self(offered.map(|key| key.x25519).chain(peers).chain(clients).collect())
    }

    fn contains(&self, key: &TunnelKeyBinding) -> bool {
        self.0.contains(&key.x25519)
    }
}
