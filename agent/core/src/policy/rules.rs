//! Rules, indexed by whom they concern.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::id::{ExternalId, MemberId, RuleId};
use anteroom_proto::intent::{Condition, Endpoint, Intent, KnownCondition, Rule};
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::verdict::DropReason;
use ipnet::Ipv4Net;

use super::{MemberIndex, Who};
use crate::clock::Clock;

/// Why no rule allows a flow, and the rule that came closest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: DropReason,
    pub(crate) rule: Option<RuleId>,
}

impl Refused {
    pub(crate) const fn because(reason: DropReason) -> Self {
        Self { reason, rule: None }
    }
}

/// When rules are asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now<'a> {
    pub(super) clock: &'a Clock,
    pub(super) now: Instant,
}

/// What a rule must fulfil besides naming both ends and the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// It must say `clear = true`.
    pub(super) clear: bool,
    /// It must be essential: one end is quarantined.
    pub(super) essential: bool,
}

#[derive(Debug)]
struct Entry {
    id: RuleId,
    services: Vec<PortMatch>,
    clear: bool,
    essential: bool,
    not_after: Option<anteroom_proto::time::UnixMillis>,
    unknown_condition: bool,
}

/// The rules in which somebody is one of the ends, by their places, ascending.
#[derive(Debug, Default, Clone)]
struct Ends {
    from: Vec<u32>,
    to: Vec<u32>,
}

/// All rules of a view.
#[derive(Debug, Default)]
pub(super) struct Rules {
    entries: Vec<Entry>,
    /// By [`MemberIndex`].
    members: Vec<Ends>,
    externals: Vec<(Vec<Ipv4Net>, Ends)>,
}

impl Rules {
    pub(super) fn new(intent: &Intent, member: impl Fn(MemberId) -> Option<MemberIndex>) -> Self {
        let mut rules = Self {
            entries: intent.rules.iter().map(Entry::new).collect(),
            members: Vec::new(),
            externals: intent
                .externals
                .iter()
                .map(|external| (external.prefixes.clone(), Ends::default()))
                .collect(),
        };
        for (place, rule) in (0_u32..).zip(&intent.rules) {
            for (end, is_from) in [(&rule.from, true), (&rule.to, false)] {
                let (members, externals) = expand(intent, end);
                for index in members.into_iter().filter_map(&member) {
                    let at = index.0 as usize;
                    if rules.members.len() <= at {
                        rules.members.resize(at + 1, Ends::default());
                    }
                    rules.members[at].add(place, is_from);
                }
                for id in externals {
                    let at = intent.externals.iter().position(|external| external.id == id);
                    if let Some((_, ends)) = at.and_then(|at| rules.externals.get_mut(at)) {
                        ends.add(place, is_from);
                    }
                }
            }
        }
        rules
    }

    /// The rule that allows a flow, the first of several; or the one that comes nearest.
    pub(super) fn find(
        &self,
        (from, from_address): (Who, Ipv4Addr),
        (to, to_address): (Who, Ipv4Addr),
        service: (Protocol, u16),
        needs: Needs,
        now: Now<'_>,
    ) -> Result<RuleId, Refused> {
        let mut closest = (u32::MAX, Refused::because(DropReason::NoRule));
        let mut allowed: Option<(u32, RuleId)> = None;
        // An address may lie in several externals, whose rules come one list after the other.
        let ordered = ![from, to].contains(&Who::Address);
        self.between(from, from_address, to, to_address, &mut |place, entry| {
            if !entry.services.iter().any(|known| known.matches(service.0, service.1)) {
                return false;
            }
            match entry.check(needs, now) {
                Ok(()) => {
                    if allowed.is_none_or(|(first, _)| place < first) {
                        allowed = Some((place, entry.id));
                    }
                    ordered
                }
                Err(reason) => {
                    let (known, found) = (rank(closest.1.reason), rank(reason));
                    if found > known || (found == known && place < closest.0) {
                        closest = (place, Refused { reason, rule: Some(entry.id) });
                    }
                    false
                }
            }
        });
        allowed.map(|(_, rule)| rule).ok_or(closest.1)
    }

    /// Whether any rule names both ends, whatever it opens; `fits` is told whether it says `clear = true`.
    pub(super) fn any(
        &self,
        from: Who,
        from_address: Ipv4Addr,
        to: Who,
        to_address: Ipv4Addr,
        fits: impl Fn(bool) -> bool,
    ) -> bool {
        let mut found = false;
        self.between(from, from_address, to, to_address, &mut |_, entry| {
            found = fits(entry.clear);
            found
        });
        found
    }

    /// Calls `each` for the rules that name both ends, with their places, until it returns true.
    fn between(
        &self,
        from: Who,
        from_address: Ipv4Addr,
        to: Who,
        to_address: Ipv4Addr,
        each: &mut dyn FnMut(u32, &Entry) -> bool,
    ) {
        self.sides(from, from_address, &mut |left| {
            let mut done = false;
            self.sides(to, to_address, &mut |right| {
                done = intersect(&left.from, &right.to)
                    .any(|place| self.entries.get(place as usize).is_some_and(|e| each(place, e)));
                done
            });
            done
        });
    }

    /// Calls `each` for the ends that somebody is, until it returns true.
    fn sides(&self, who: Who, address: Ipv4Addr, each: &mut dyn FnMut(&Ends) -> bool) {
        match who {
            Who::Member(index) => {
                if let Some(ends) = self.members.get(index.0 as usize) {
                    each(ends);
                }
            }
            Who::Address => {
                for (prefixes, ends) in &self.externals {
                    if prefixes.iter().any(|net| net.contains(&address)) && each(ends) {
                        return;
                    }
                }
            }
            Who::Impostor => {}
        }
    }
}

impl Ends {
    fn add(&mut self, place: u32, is_from: bool) {
        let list = if is_from { &mut self.from } else { &mut self.to };
        if list.last() != Some(&place) {
            list.push(place);
        }
    }
}

impl Entry {
    fn new(rule: &Rule) -> Self {
        let not_after = rule.conditions.iter().filter_map(|condition| match condition {
            Condition::Known(KnownCondition::NotAfter(moment)) => Some(*moment),
            Condition::Unknown(_) => None,
        });
        Self {
            id: rule.id,
            services: rule.services.clone(),
            clear: rule.clear,
            essential: rule.essential,
            not_after: not_after.min(),
            unknown_condition: rule.conditions.iter().any(|c| matches!(c, Condition::Unknown(_))),
        }
    }

    fn check(&self, needs: Needs, now: Now<'_>) -> Result<(), DropReason> {
        if self.unknown_condition {
            return Err(DropReason::UnknownCondition);
        }
        if needs.essential && !self.essential {
            return Err(DropReason::Quarantined);
        }
        match self.not_after.map(|moment| now.clock.has_passed(moment, now.now)) {
            None | Some(Some(false)) => {}
            Some(Some(true)) => return Err(DropReason::Expired),
            Some(None) => return Err(DropReason::TimeUnknown),
        }
        if needs.clear && !self.clear {
            return Err(DropReason::ClearNotAllowed);
        }
        Ok(())
    }
}

/// Of several rules that nearly allow a flow, the one is named that lacks least.
const fn rank(reason: DropReason) -> u8 {
    match reason {
        DropReason::ClearNotAllowed => 5,
        DropReason::Quarantined => 4,
        DropReason::TimeUnknown => 3,
        DropReason::Expired => 2,
        DropReason::UnknownCondition => 1,
        _ => 0,
    }
}

fn expand(intent: &Intent, end: &Endpoint) -> (Vec<MemberId>, Vec<ExternalId>) {
    match end {
        Endpoint::Member(id) => (vec![*id], Vec::new()),
        Endpoint::External(id) => (Vec::new(), vec![*id]),
        Endpoint::Segment(id) => intent
            .segments
            .iter()
            .find(|segment| segment.id == *id)
            .map(|segment| (segment.members.clone(), segment.externals.clone()))
            .unwrap_or_default(),
    }
}

/// What two ascending lists have in common.
fn intersect<'a>(a: &'a [u32], b: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    short.iter().copied().filter(|place| long.binary_search(place).is_ok())
}
