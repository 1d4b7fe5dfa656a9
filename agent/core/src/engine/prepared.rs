//! A view made ready before packets have to wait for it: what grows with rules and peers is done elsewhere, and what
//! was in force is given up elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::{Device, Endpoint, Intent, Member};
use anteroom_proto::name::Name;
use anteroom_proto::view::View;

use crate::peer::{PeerConfig, PeerKem};
use crate::policy::Policy;
use crate::table::Seeds;

/// A view, ready to be put in force by [`Engine::put_in_force`](super::Engine::put_in_force).
#[derive(Debug)]
pub struct Prepared {
    /// It doesn't know yet where this gateway's devices are.
    pub(super) policy: Policy,
    pub(super) peers: Peers,
}

/// What a view made void. To drop it takes a while where there are many rules and peers.
#[derive(Debug)]
pub struct Retired {
    pub(super) policies: Vec<Arc<Policy>>,
}

impl Retired {
    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

/// The peers of a view.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Those in front of members that essential rules name come first.
    pub(super) list: Vec<PeerConfig>,
    by_gateway: HashMap<GatewayId, usize>,
}

impl Prepared {
    /// Prepares a view for a gateway with these device ports. `seed` is what the hash tables' seeds grow from:
    /// [`Engine::seed`](super::Engine::seed) gives one.
    #[must_use]
    pub fn new(view: &Arc<View>, ports: &[Name], seed: &[u8; 32]) -> Self {
        Self::with(view, |name| ports.contains(name), &mut Seeds::new(seed))
    }

    pub(super) fn with(
        view: &Arc<View>,
        has_port: impl Fn(&Name) -> bool,
        seeds: &mut Seeds,
    ) -> Self {
        // Of two devices with one Ethernet address only the first has a place, as `Stations::confirm` gives them.
        let mut taken = BTreeSet::new();
        let places = view.intent.devices.iter().filter(|device| has_port(&device.port));
        let places = places.filter(|device| taken.insert(device.member.mac));
        let placed: BTreeSet<MemberId> = places.map(|device| device.member.id).collect();
        let policy = Policy::new(view, seeds, |device: &Device| placed.contains(&device.member.id));
        let peers = Peers::of(view, |gateway| policy.relation(gateway).unwrap_or_default());
        Self { policy, peers }
    }
}

impl Peers {
    fn of(view: &View, relation: impl Fn(GatewayId) -> u64) -> Self {
        let intent = &view.intent;
        let essential = essential(intent);
        let mut peers: Vec<(bool, PeerConfig)> = view
            .peers
            .iter()
            .map(|peer| {
                let config = PeerConfig {
                    gateway: peer.gateway.gateway,
                    overlay: peer.gateway.overlay,
                    keys: peer.keys.iter().map(|key| key.x25519).collect(),
                    kems: peer.keys.iter().filter_map(kem).collect(),
                    endpoints: peer.endpoints.clone(),
                    relation: relation(peer.gateway.gateway),
                    client: false,
                };
                (!essential.contains(&config.gateway), config)
            })
            .collect();
        let suspended = &view.operation.suspended;
        let clients = intent.clients.iter().filter(|one| !suspended.contains(&one.id.into()));
        peers.extend(clients.map(|client| {
            let config = PeerConfig {
                gateway: client.id.into(),
                overlay: client.overlay,
                keys: vec![client.key],
                kems: Vec::new(),
                endpoints: Vec::new(),
                relation: 0,
                client: true,
            };
            (true, config)
        }));
        peers.sort_by_key(|(later, _)| *later);
        let list: Vec<PeerConfig> = peers.into_iter().map(|(_, config)| config).collect();
        let by_gateway = list.iter().enumerate().map(|(at, peer)| (peer.gateway, at)).collect();
        Self { list, by_gateway }
    }

    /// What a view says of a peer.
    pub(super) fn get(&self, gateway: GatewayId) -> Option<&PeerConfig> {
        self.list.get(*self.by_gateway.get(&gateway)?)
    }
}

/// What a peer's tunnel key agrees on pre-shared keys with.
fn kem(binding: &TunnelKeyBinding) -> Option<PeerKem> {
    let encapsulation = binding.ml_kem_768.as_ref()?.0.as_slice().into();
    Some(PeerKem { key: binding.x25519, binding: binding.digest(), encapsulation })
}

/// The gateways in front of members that essential rules name.
fn essential(intent: &Intent) -> BTreeSet<GatewayId> {
    let rules = intent.rules.iter().filter(|rule| rule.essential);
    let ends: hashbrown::HashSet<Endpoint, foldhash::quality::FixedState> =
        rules.flat_map(|rule| [rule.from, rule.to]).collect();
    let in_segments = intent
        .segments
        .iter()
        .filter(|segment| ends.contains(&Endpoint::Segment(segment.id)))
        .flat_map(|segment| &segment.members);
    let in_segments: BTreeSet<&MemberId> = in_segments.collect();
    let named = |member: &&Member| {
        ends.contains(&Endpoint::Member(member.id)) || in_segments.contains(&member.id)
    };
    intent.members.iter().filter(named).map(|member| member.gateway).collect()
}
