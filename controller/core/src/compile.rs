//! From a model to one intent leaf a gateway, each with what that gateway needs to know and no more.
//!
//! Pure and deterministic: the same model gives the same bytes, on the operator's machine and on the controller.
//! Work and size follow what gateways share with each other: a rule costs each gateway the members at its far end.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::cbor;
use anteroom_proto::id::{ExternalId, GatewayId, MemberId, SiteId};
use anteroom_proto::intent::{
    self, Condition, Endpoint, Infrastructure, Intent, KnownCondition, MAX_INTENT_LEN,
};
use anteroom_proto::key::Hash;
use anteroom_proto::merkle::{self, Proof, Tree};
use anteroom_proto::name::Name;
use anteroom_proto::overlay;

use crate::model::{Gateway, Model};
use crate::problem::{Problem, Problems};
use crate::resolve::{Resolved, SideId};

#[cfg(test)]
mod tests;

/// Most members in all leaves together: what keeps a policy of "everyone to everyone" from filling the memory.
const MAX_VISIBLE: usize = 2_000_000;

/// A compiled model.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// A leaf for each approved gateway, in the order of their ids, which is their order in the tree.
    pub leaves: BTreeMap<GatewayId, Leaf>,
    /// The Merkle root over the leaves.
    pub root: Hash,
    /// The digest of the encoded model, as an intent root names it.
    pub model_hash: Hash,
    /// The resolved model, for [`crate::decide`] and its friends.
    pub resolved: Resolved,
    tree: Tree,
    order: Vec<GatewayId>,
}

/// One gateway's leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The encoded intent, as it is hashed and carried.
    pub bytes: Vec<u8>,
    /// The leaf's digest in the tree.
    pub hash: Hash,
    /// The intent.
    pub intent: Intent,
}

/// Compiles `model`.
///
/// # Errors
/// Every problem of the policy, of its names, of ids or overlay addresses that collide, and of views that grow
/// too large.
pub fn compile(model: &Model) -> Result<Compiled, Problems> {
    let resolved = Resolved::new(model)?;
    let shared = Shared::of(&resolved);
    let mut problems = Problems::default();
    if shared.visible() > MAX_VISIBLE {
        let message = format!(
            "gateways would see more than {MAX_VISIBLE} members in all: narrow the segments"
        );
        problems.push(too_large("policy", message));
        return Err(problems);
    }
    let mut leaves = BTreeMap::new();
    for (id, gateway) in &model.gateways {
        let intent = shared.intent(*id, gateway);
        let bytes = cbor::encode(&intent);
        if bytes.len() > MAX_INTENT_LEN {
            let (len, members) = (bytes.len(), intent.members.len());
            let message = format!(
                "its view of {members} members has {len} bytes, more than {MAX_INTENT_LEN}: narrow the segments"
            );
            problems.push(too_large(&format!("gateway {}", gateway.name), message));
        }
        leaves.insert(*id, Leaf { hash: merkle::leaf_hash(&bytes), bytes, intent });
    }
    let model_hash = Model::hash(&model.encode());
    let tree = Tree::new(leaves.values().map(|leaf: &Leaf| leaf.hash).collect());
    let order = leaves.keys().copied().collect();
    problems.or(Compiled { root: tree.root(), leaves, model_hash, resolved, tree, order })
}

fn too_large(key: &str, message: String) -> Problem {
    Problem { file: "model".into(), line: 0, column: 0, key: key.to_owned(), message }
}

impl Compiled {
    /// That a gateway's leaf stands under the root; nothing where it has no leaf.
    #[must_use]
    pub fn proof(&self, gateway: GatewayId) -> Option<Proof> {
        self.order.binary_search(&gateway).ok().and_then(|index| self.tree.proof(index))
    }

    /// Gateways for which `after` differs: other bytes, or a leaf where there was none, or none where there was.
    #[must_use]
    pub fn affected(&self, after: &Self) -> Vec<GatewayId> {
        let ids: BTreeSet<&GatewayId> = self.leaves.keys().chain(after.leaves.keys()).collect();
        let hash = |compiled: &Self, id: &GatewayId| compiled.leaves.get(id).map(|leaf| leaf.hash);
        ids.into_iter().filter(|id| hash(self, id) != hash(after, id)).copied().collect()
    }
}

/// What all leaves are cut from.
struct Shared<'a> {
    resolved: &'a Resolved,
    members: BTreeMap<MemberId, intent::Member>,
    clients: BTreeMap<MemberId, intent::Client>,
    by_gateway: BTreeMap<GatewayId, Vec<MemberId>>,
}

/// What one gateway needs to know, by id.
#[derive(Default)]
struct Needed {
    rules: BTreeSet<usize>,
    /// Sides whose members and externals its devices share a rule with: held whole.
    far: BTreeSet<SideId>,
    /// Sides that its rules name.
    named: BTreeSet<SideId>,
}

impl<'a> Shared<'a> {
    fn of(resolved: &'a Resolved) -> Self {
        let model = &resolved.model;
        let mut members = BTreeMap::new();
        let mut by_gateway: BTreeMap<GatewayId, Vec<MemberId>> = BTreeMap::new();
        for (id, device) in &model.devices {
            let Some(gateway) = model.gateways.get(&device.attachment.gateway) else { continue };
            let mut addresses = device.addresses.clone();
            addresses.sort_unstable();
            addresses.dedup();
            by_gateway.entry(device.attachment.gateway).or_default().push(*id);
            members.insert(
                *id,
                intent::Member {
                    id: *id,
                    gateway: device.attachment.gateway,
                    overlay: overlay::member_address(model.organisation, *id),
                    site: SiteId::of(gateway.site.as_str()),
                    vlan: device.attachment.vlan,
                    mac: device.attachment.mac,
                    addresses,
                    mode: device.mode,
                    mode_since: device.mode_since,
                    quarantined: device.quarantined,
                },
            );
        }
        let clients = model.clients.iter().map(|(id, client)| {
            let compiled = intent::Client {
                id: *id,
                key: client.key,
                overlay: overlay::member_address(model.organisation, *id),
                site: SiteId::of(client.site.as_str()),
                address: client.address,
            };
            (*id, compiled)
        });
        Self { resolved, members, clients: clients.collect(), by_gateway }
    }

    fn intent(&self, id: GatewayId, gateway: &Gateway) -> Intent {
        let model = &self.resolved.model;
        let own = self.by_gateway.get(&id).map(Vec::as_slice).unwrap_or_default();
        let needed = self.needed(own);
        let mut visible: BTreeSet<MemberId> = BTreeSet::new();
        for side in &needed.far {
            visible.extend(&self.resolved.side(*side).members);
        }
        for member in own {
            visible.remove(member);
        }
        let members: Vec<intent::Member> =
            visible.iter().filter_map(|id| self.members.get(id)).cloned().collect();
        let peers: BTreeSet<GatewayId> = members.iter().map(|member| member.gateway).collect();
        Intent {
            organisation: model.organisation,
            gateway: id,
            identity: (!gateway.former.is_empty()).then_some(gateway.identity),
            overlay: overlay::gateway_address(model.organisation, id),
            site: SiteId::of(gateway.site.as_str()),
            devices: own.iter().filter_map(|id| self.device(*id)).collect(),
            segments: self.segments(&needed, own, &visible),
            externals: self.externals(&needed),
            rules: needed.rules.iter().map(|place| self.rule(*place)).collect(),
            infrastructure: self.infrastructure(&gateway.site),
            bypasses: self.bypasses(id, &peers),
            peers: peers.into_iter().filter_map(|id| self.peer(id)).collect(),
            clients: visible.iter().filter_map(|id| self.clients.get(id)).cloned().collect(),
            members,
        }
    }

    /// How many members all leaves show together, counted until it is more than [`MAX_VISIBLE`]. A member
    /// that a gateway shares several rules with may count more than once.
    fn visible(&self) -> usize {
        let mut visible = 0;
        for own in self.by_gateway.values() {
            let far = self.needed(own).far;
            visible +=
                far.iter().map(|side| self.resolved.side(*side).members.len()).sum::<usize>();
            if visible > MAX_VISIBLE {
                break;
            }
        }
        visible
    }

    /// Which rules touch the devices of a gateway and have somebody at their other end.
    fn needed(&self, own: &[MemberId]) -> Needed {
        let mut near: BTreeMap<SideId, Vec<MemberId>> = BTreeMap::new();
        for member in own {
            for side in self.resolved.sides_of(*member) {
                near.entry(*side).or_default().push(*member);
            }
        }
        let mut needed = Needed::default();
        for (side, own) in &near {
            let side = self.resolved.side(*side);
            let to = side.from_rules.iter().map(|rule| (*rule, self.resolved.rules[*rule].to));
            let from = side.to_rules.iter().map(|rule| (*rule, self.resolved.rules[*rule].from));
            for (rule, far) in to.chain(from) {
                let opposite = self.resolved.side(far);
                let anyone = match opposite.members.as_slice() {
                    [] => !opposite.externals.is_empty(),
                    [only] => !opposite.externals.is_empty() || own.iter().any(|id| id != only),
                    _ => true,
                };
                if anyone {
                    let found = &self.resolved.rules[rule];
                    needed.rules.insert(rule);
                    needed.far.insert(far);
                    needed.named.extend([found.from, found.to]);
                }
            }
        }
        needed
    }

    fn device(&self, id: MemberId) -> Option<intent::Device> {
        let device = self.resolved.model.devices.get(&id)?;
        Some(intent::Device {
            member: self.members.get(&id)?.clone(),
            port: device.attachment.port.clone(),
            prefix_len: device.prefix_len,
            router: device.router,
            on_failure: device.on_failure,
            rollout: device.rollout.clone(),
            two_person: self.resolved.wants_two_persons(id),
        })
    }

    fn peer(&self, id: GatewayId) -> Option<intent::PeerGateway> {
        let model = &self.resolved.model;
        let gateway = model.gateways.get(&id)?;
        Some(intent::PeerGateway {
            gateway: id,
            identity: gateway.identity,
            overlay: overlay::gateway_address(model.organisation, id),
        })
    }

    /// Orders that concern a gateway: about itself, and about the peers of its devices.
    fn bypasses(&self, own: GatewayId, peers: &BTreeSet<GatewayId>) -> Vec<intent::Bypass> {
        let orders = self.resolved.model.bypasses.iter();
        orders
            .filter(|(gateway, _)| **gateway == own || peers.contains(*gateway))
            .map(|(gateway, order)| intent::Bypass {
                gateway: *gateway,
                serial: order.serial,
                until: order.until,
                since: order.since,
            })
            .collect()
    }

    /// The segments that the rules name, cut down to whom the gateway knows anyway.
    fn segments(
        &self,
        needed: &Needed,
        own: &[MemberId],
        visible: &BTreeSet<MemberId>,
    ) -> Vec<intent::Segment> {
        let mut members: BTreeMap<SideId, Vec<MemberId>> = BTreeMap::new();
        for member in own.iter().chain(visible) {
            for side in self.resolved.sides_of(*member) {
                if needed.named.contains(side) {
                    members.entry(*side).or_default().push(*member);
                }
            }
        }
        let named = needed.named.iter().filter_map(|id| {
            let side = self.resolved.side(*id);
            let Endpoint::Segment(segment) = side.endpoint else { return None };
            let mut members = members.remove(id).unwrap_or_default();
            members.sort_unstable();
            let mut externals = Vec::new();
            if needed.far.contains(id) {
                externals.extend(side.externals.iter().map(|name| ExternalId::of(name.as_str())));
                externals.sort_unstable();
            }
            Some(intent::Segment { id: segment, members, externals })
        });
        let mut segments: Vec<intent::Segment> = named.collect();
        segments.sort_by_key(|segment| segment.id);
        segments
    }

    fn externals(&self, needed: &Needed) -> Vec<intent::External> {
        let names: BTreeSet<&Name> =
            needed.far.iter().flat_map(|side| &self.resolved.side(*side).externals).collect();
        let mut externals: Vec<intent::External> = names
            .into_iter()
            .filter_map(|name| {
                let external = self.resolved.policy.externals.get(name)?;
                let id = ExternalId::of(name.as_str());
                Some(intent::External { id, prefixes: external.prefixes.clone() })
            })
            .collect();
        externals.sort_by_key(|external| external.id);
        externals
    }

    fn rule(&self, place: usize) -> intent::Rule {
        let rule = &self.resolved.rules[place];
        let not_after = |end| Condition::Known(KnownCondition::NotAfter(end));
        intent::Rule {
            id: rule.id,
            from: self.resolved.side(rule.from).endpoint,
            to: self.resolved.side(rule.to).endpoint,
            services: rule.ports.clone(),
            clear: rule.clear,
            essential: rule.essential,
            conditions: rule.expires.map(not_after).into_iter().collect(),
        }
    }

    fn infrastructure(&self, site: &Name) -> Infrastructure {
        let found = self.resolved.policy.infrastructure.get(site);
        found.map_or_else(Infrastructure::default, |found| Infrastructure {
            dhcp: found.dhcp.clone(),
            dns: found.dns.clone(),
            ntp: found.ntp.clone(),
            routers: found.routers.clone(),
        })
    }
}
