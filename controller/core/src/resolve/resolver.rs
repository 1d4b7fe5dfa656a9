//! Turns the names of a policy into sides and rules, and reports those that name nothing.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::{ExternalId, GatewayId, MemberId, RuleId, SegmentId, SiteId};
use anteroom_proto::intent::Endpoint;
use anteroom_proto::name::Name;
use anteroom_proto::overlay;

use super::{ResolvedRule, Side, SideId};
use crate::model::Model;
use crate::policy::{At, Match, Policy, Position, Segment};
use crate::problem::{Problem, Problems, did_you_mean};

/// Said wherever two things of the shared namespace have one name.
const SHARED: &str = "segments, members and externals share one namespace";

pub(super) type Parts = (Vec<Side>, BTreeMap<Name, SideId>, Vec<ResolvedRule>);

/// Resolves `policy` against `model`; `problems` are those that reading it gave.
pub(super) fn resolve(
    model: &Model,
    policy: &Policy,
    file: &str,
    problems: Problems,
) -> Result<Parts, Problems> {
    let mut resolver = Resolver {
        model,
        policy,
        file,
        members: members(model).map(|(name, id, attached)| (name, (id, attached))).collect(),
        sides: Vec::new(),
        side_by_name: BTreeMap::new(),
        problems,
    };
    resolver.collisions();
    resolver.segments();
    let mut rules = resolver.rules();
    for (name, test) in &policy.tests {
        for end in [&test.from, &test.to] {
            resolver.end(&format!("test.{name}"), end);
        }
    }
    let Resolver { mut sides, side_by_name, problems, .. } = resolver;
    problems.or(())?;
    rules.sort_by_key(|rule| rule.id);
    for (place, rule) in rules.iter().enumerate() {
        sides[rule.from.0].from_rules.push(place);
        sides[rule.to.0].to_rules.push(place);
    }
    Ok((sides, side_by_name, rules))
}

/// Names and ids of all members, and whether they take part: a device whose gateway isn't approved doesn't, nor does a
/// client that was revoked. A policy may go on naming both. Whoever has a name now comes after those who had it.
fn members(model: &Model) -> impl Iterator<Item = (&Name, MemberId, bool)> {
    let former = model.former_clients.iter().map(|(id, client)| (&client.name, *id, false));
    let devices =
        model.devices.iter().map(|(id, device)| (&device.name, *id, model.is_attached(device)));
    former.chain(devices).chain(model.clients.iter().map(|(id, client)| (&client.name, *id, true)))
}

struct Resolver<'a> {
    model: &'a Model,
    policy: &'a Policy,
    file: &'a str,
    /// Members by name, and whether they take part in anything.
    members: BTreeMap<&'a Name, (MemberId, bool)>,
    sides: Vec<Side>,
    side_by_name: BTreeMap<Name, SideId>,
    problems: Problems,
}

impl<'a> Resolver<'a> {
    fn problem(&mut self, position: Position, key: &str, message: String) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: position.line,
            column: position.column,
            key: key.to_owned(),
            message,
        });
    }

    fn model_problem(&mut self, key: String, message: String) {
        self.problems.push(Problem { file: "model".into(), line: 0, column: 0, key, message });
    }

    /// Names that two things share, and derived ids and overlay addresses that two names share.
    fn collisions(&mut self) {
        let policy = self.policy;
        let segments =
            policy.segments.iter().map(|(name, entry)| ("segment", name, entry.position));
        let externals =
            policy.externals.iter().map(|(name, entry)| ("external", name, entry.position));
        for (kind, name, position) in segments.chain(externals) {
            let current = |id| !self.model.former_clients.contains_key(id);
            if let Some((id, _)) = self.members.get(name).filter(|(id, _)| current(id)) {
                let member = if self.model.clients.contains_key(id) { "client" } else { "device" };
                let message = format!("a {member} has the name \"{name}\" already; {SHARED}");
                self.problem(position, &format!("{kind}.{name}"), message);
            }
        }
        let rules = policy.rules.iter().map(|(name, rule)| (name, rule.position));
        self.derived("rule", rules, RuleId::of);
        let segments = policy.segments.iter().map(|(name, segment)| (name, segment.position));
        self.derived("segment", segments, SegmentId::of);
        let externals = policy.externals.iter().map(|(name, external)| (name, external.position));
        self.derived("external", externals, ExternalId::of);
        let sites: BTreeSet<&Name> =
            self.model.gateways.values().map(|gateway| &gateway.site).collect();
        let sites = sites.into_iter().map(|site| (site, Position::default()));
        self.derived("site", sites, SiteId::of);
        self.model_collisions();
    }

    fn derived<Id: Ord>(
        &mut self,
        kind: &str,
        names: impl Iterator<Item = (&'a Name, Position)>,
        id: fn(&str) -> Id,
    ) {
        let mut taken: BTreeMap<Id, &Name> = BTreeMap::new();
        for (name, position) in names {
            if let Some(other) = taken.insert(id(name.as_str()), name) {
                let message = format!(
                    "by chance its id in views is the same as that of {kind}.{other}: rename one of them"
                );
                self.problem(position, &format!("{kind}.{name}"), message);
            }
        }
    }

    fn model_collisions(&mut self) {
        let model = self.model;
        let organisation = model.organisation;
        let gateways = model.gateways.iter().map(|(id, gateway)| {
            (format!("gateway {}", gateway.name), overlay::gateway_address(organisation, *id))
        });
        let members = model.devices.iter().map(|(id, device)| {
            (format!("device {}", device.name), overlay::member_address(organisation, *id))
        });
        let clients = model.clients.iter().map(|(id, client)| {
            (format!("client {}", client.name), overlay::member_address(organisation, *id))
        });
        let mut taken = BTreeMap::new();
        for (who, address) in gateways.chain(members).chain(clients) {
            if let Some(other) = taken.insert(address, who.clone()) {
                let message = format!("has the same overlay address as {other}: give it a new id");
                self.model_problem(who, message);
            }
        }
        let mut names = BTreeSet::new();
        for device in model.devices.values() {
            if !names.insert(&device.name) {
                self.model_problem(
                    format!("device {}", device.name),
                    "two devices have this name".to_owned(),
                );
            }
        }
        self.client_collisions(names);
        let mut names = BTreeSet::new();
        for gateway in model.gateways.values() {
            if !names.insert(&gateway.name) {
                self.model_problem(
                    format!("gateway {}", gateway.name),
                    "two gateways have this name".to_owned(),
                );
            }
        }
    }

    /// Clients that share a name with another member, or a key or an id with anybody.
    fn client_collisions(&mut self, mut names: BTreeSet<&'a Name>) {
        let model = self.model;
        let mut keys = BTreeSet::new();
        let former = model.former_clients.iter().map(|(id, client)| (id, client, true));
        let clients = model.clients.iter().map(|(id, client)| (id, client, false));
        for (id, client, is_former) in former.chain(clients) {
            let mut problem = |message: &str| {
                self.model_problem(format!("client {}", client.name), message.to_owned());
            };
            if !is_former && !names.insert(&client.name) {
                problem("another member has this name");
            }
            if !keys.insert(client.key) {
                problem("another client has this key, or had it: a key is one client's for good");
            }
            let own_gateway = GatewayId::from(*id);
            if model.devices.contains_key(id)
                || model.gateways.contains_key(&own_gateway)
                || (!is_former && model.former_clients.contains_key(id))
            {
                problem("something else has its id");
            }
        }
    }

    fn segments(&mut self) {
        let (policy, model) = (self.policy, self.model);
        let index = Index::of(model);
        for (name, segment) in &policy.segments {
            let mut members = self.listed(name, segment);
            if let Some(matches) = &segment.matches {
                members.extend(index.matching(model, matches));
            }
            let externals: BTreeSet<Name> = segment
                .externals
                .iter()
                .filter(|external| policy.externals.contains_key(&external.value))
                .map(|external| external.value.clone())
                .collect();
            let endpoint = Endpoint::Segment(SegmentId::of(name.as_str()));
            self.add(name.clone(), endpoint, members, externals.into_iter().collect());
        }
    }

    /// The members that a segment lists by name.
    fn listed(&mut self, name: &Name, segment: &Segment) -> BTreeSet<MemberId> {
        let mut members = BTreeSet::new();
        let path = format!("segment.{name}");
        for member in &segment.members {
            if let Some((id, attached)) = self.members.get(&member.value) {
                if *attached {
                    members.insert(*id);
                }
                continue;
            }
            let found = &member.value;
            let message = if self.policy.segments.contains_key(found) {
                format!(
                    "\"{found}\" is a segment, and a segment can't hold another: use its members or a match"
                )
            } else if self.policy.externals.contains_key(found) {
                format!("\"{found}\" is an external: list it in \"externals\"")
            } else {
                let known = self.members.keys().map(|name| name.as_str());
                format!("no device \"{found}\"{}", did_you_mean(found.as_str(), known))
            };
            self.problem(member.position, &path, message);
        }
        members
    }

    fn add(
        &mut self,
        name: Name,
        endpoint: Endpoint,
        members: BTreeSet<MemberId>,
        externals: Vec<Name>,
    ) -> SideId {
        let id = SideId(self.sides.len());
        let gateways: BTreeSet<_> = members
            .iter()
            .filter_map(|member| self.model.devices.get(member))
            .map(|device| device.attachment.gateway)
            .collect();
        self.side_by_name.insert(name.clone(), id);
        self.sides.push(Side {
            name,
            endpoint,
            members: members.into_iter().collect(),
            externals,
            gateways: gateways.into_iter().collect(),
            from_rules: Vec::new(),
            to_rules: Vec::new(),
        });
        id
    }

    fn rules(&mut self) -> Vec<ResolvedRule> {
        let policy = self.policy;
        let mut rules = Vec::with_capacity(policy.rules.len());
        for (name, rule) in &policy.rules {
            let path = format!("rule.{name}");
            let (from, to) = (self.end(&path, &rule.from), self.end(&path, &rule.to));
            let (Some(from), Some(to)) = (from, to) else { continue };
            let services = rule.services.iter();
            let mut ports: Vec<_> = services
                .filter_map(|service| policy.ports(service.value.as_str()))
                .flatten()
                .copied()
                .collect();
            ports.sort_unstable();
            ports.dedup();
            rules.push(ResolvedRule {
                name: name.clone(),
                id: RuleId::of(name.as_str()),
                from,
                to,
                ports,
                clear: rule.clear,
                essential: rule.essential,
                expires: rule.expires,
            });
        }
        rules
    }

    /// The side that a rule's or a test's end stands for.
    fn end(&mut self, path: &str, end: &At<Name>) -> Option<SideId> {
        let name = &end.value;
        if let Some(side) = self.side_by_name.get(name) {
            return Some(*side);
        }
        if let Some((id, attached)) = self.members.get(name).copied() {
            let members = attached.then_some(id).into_iter().collect();
            return Some(self.add(name.clone(), Endpoint::Member(id), members, Vec::new()));
        }
        if self.policy.externals.contains_key(name) {
            let endpoint = Endpoint::External(ExternalId::of(name.as_str()));
            return Some(self.add(name.clone(), endpoint, BTreeSet::new(), vec![name.clone()]));
        }
        let policy = self.policy;
        let known = policy.segments.keys().chain(policy.externals.keys());
        let known = known.chain(self.members.keys().copied()).map(Name::as_str);
        let hint = did_you_mean(name.as_str(), known);
        self.problem(
            end.position,
            path,
            format!("no segment, device or external \"{name}\"{hint}"),
        );
        None
    }
}

/// Clients and attached devices by site and by label, so that a match looks at few.
struct Index<'a> {
    sites: BTreeMap<&'a Name, Vec<MemberId>>,
    labels: BTreeMap<(&'a str, &'a str), Vec<MemberId>>,
}

impl<'a> Index<'a> {
    fn of(model: &'a Model) -> Self {
        let mut index = Self { sites: BTreeMap::new(), labels: BTreeMap::new() };
        for (_, id, _) in members(model) {
            let Some((site, labels)) = traits(model, id) else { continue };
            index.sites.entry(site).or_default().push(id);
            for (label, value) in labels {
                index.labels.entry((label.as_str(), value)).or_default().push(id);
            }
        }
        index
    }

    fn matching(&self, model: &Model, matches: &Match) -> Vec<MemberId> {
        let mut lists: Vec<&[MemberId]> = Vec::new();
        if let Some(site) = &matches.site {
            lists.push(self.sites.get(&site.value).map(Vec::as_slice).unwrap_or_default());
        }
        for (label, value) in &matches.labels {
            let found = self.labels.get(&(label.as_str(), value.as_str()));
            lists.push(found.map(Vec::as_slice).unwrap_or_default());
        }
        // A match without a condition holds nobody, and is refused where it is read.
        let Some(shortest) = lists.into_iter().min_by_key(|list| list.len()) else {
            return Vec::new();
        };
        shortest.iter().copied().filter(|id| holds(model, *id, matches)).collect()
    }
}

/// What a match can ask of a member that takes part: its site and its labels.
fn traits(model: &Model, id: MemberId) -> Option<(&Name, &BTreeMap<Name, String>)> {
    if let Some(client) = model.clients.get(&id) {
        return Some((&client.site, &client.labels));
    }
    let device = model.devices.get(&id)?;
    Some((&model.gateways.get(&device.attachment.gateway)?.site, &device.labels))
}

fn holds(model: &Model, id: MemberId, matches: &Match) -> bool {
    traits(model, id).is_some_and(|(site, labels)| {
        matches.site.as_ref().is_none_or(|wanted| *site == wanted.value)
            && matches.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
    })
}
