//! Rules, indexed by whom they concern.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::id::{ExternalId, MemberId, RuleId};
use anteroom_proto::intent::{Condition, Endpoint, Intent, KnownCondition, Rule};
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;
use ipnet::Ipv4Net;

use super::{MemberIndex, Who};
use crate::clock::Clock;
use crate::table::Map;

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
    clear: bool,
    essential: bool,
    not_after: Option<UnixMillis>,
    unknown_condition: bool,
}

/// One of the rules' ends, numbered: a segment, a member or an external.
type EndIndex = u32;

/// What rules open between two of their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    from: EndIndex,
    to: EndIndex,
}

/// A service of a rule with a single port, or without ports. Sorted, these are an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Opening {
    pair: Pair,
    protocol: Protocol,
    first: u16,
    /// The rule's place.
    rule: u32,
}

/// A service of a rule with several ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    opening: Opening,
    last: u16,
}

/// All rules of a view, indexed by their ends and services: what a flow costs doesn't grow with rules about others,
/// nor with rules about other services.
#[derive(Debug, Default)]
pub(super) struct Rules {
    entries: Vec<Entry>,
    /// The ends that a member is, by [`MemberIndex`].
    members: Vec<Vec<EndIndex>>,
    /// The ends that an external is.
    externals: Vec<(Vec<Ipv4Net>, Vec<EndIndex>)>,
    /// Which ends rules name together, and whether one of those rules says `clear = true`.
    pairs: Vec<(Pair, bool)>,
    openings: Vec<Opening>,
    ranges: Vec<Range>,
    /// When a rule's condition changes.
    moments: Vec<UnixMillis>,
}

impl Rules {
    pub(super) fn new(intent: &Intent, member: impl Fn(MemberId) -> Option<MemberIndex>) -> Self {
        let mut rules = Self {
            entries: intent.rules.iter().map(Entry::new).collect(),
            externals: intent
                .externals
                .iter()
                .map(|external| (external.prefixes.clone(), Vec::new()))
                .collect(),
            ..Self::default()
        };
        let mut ends: Map<Endpoint, EndIndex> = Map::default();
        let mut all = Vec::new();
        let mut number = |end: Endpoint| {
            *ends.entry(end).or_insert_with(|| {
                all.push(end);
                EndIndex::try_from(all.len() - 1).unwrap_or(EndIndex::MAX)
            })
        };
        for (place, rule) in (0_u32..).zip(&intent.rules) {
            let pair = Pair { from: number(rule.from), to: number(rule.to) };
            rules.pairs.push((pair, rule.clear));
            for service in &rule.services {
                let PortMatch { protocol, first, last } = *service;
                // The port of an ICMP echo doesn't matter.
                let first = if protocol == Protocol::IcmpEcho { 0 } else { first };
                let opening = Opening { pair, protocol, first, rule: place };
                if protocol == Protocol::IcmpEcho || first == last {
                    rules.openings.push(opening);
                } else {
                    rules.ranges.push(Range { opening, last });
                }
            }
            rules.moments.extend(rule.conditions.iter().filter_map(|condition| match condition {
                Condition::Known(KnownCondition::NotAfter(moment)) => Some(*moment),
                Condition::Unknown(_) => None,
            }));
        }
        // With what says `clear = true` first, so that of several it is what stays.
        rules.pairs.sort_unstable_by_key(|(pair, clear)| (*pair, !clear));
        rules.pairs.dedup_by_key(|(pair, _)| *pair);
        rules.openings.sort_unstable();
        rules.ranges.sort_unstable();
        rules.moments.sort_unstable();
        rules.place(intent, &all, member);
        rules
    }

    /// Notes who is what of `ends`.
    fn place(
        &mut self,
        intent: &Intent,
        ends: &[Endpoint],
        member: impl Fn(MemberId) -> Option<MemberIndex>,
    ) {
        let segments: Map<_, _> = intent.segments.iter().rev().map(|s| (s.id, s)).collect();
        let externals: Map<_, _> =
            intent.externals.iter().enumerate().rev().map(|(at, one)| (one.id, at)).collect();
        for (number, end) in (0..).zip(ends) {
            let (members, named): (&[MemberId], &[ExternalId]) = match end {
                Endpoint::Member(id) => (std::slice::from_ref(id), &[]),
                Endpoint::External(id) => (&[], std::slice::from_ref(id)),
                Endpoint::Segment(id) => segments
                    .get(id)
                    .map(|segment| (&*segment.members, &*segment.externals))
                    .unwrap_or_default(),
            };
            for index in members.iter().filter_map(|id| member(*id)) {
                let at = index.0 as usize;
                if self.members.len() <= at {
                    self.members.resize(at + 1, Vec::new());
                }
                self.members[at].push(number);
            }
            for at in named.iter().filter_map(|id| externals.get(id)) {
                if let Some((_, ends)) = self.externals.get_mut(*at) {
                    ends.push(number);
                }
            }
        }
    }

    /// The rule that allows a flow, the first of several; or the one that comes nearest.
    pub(super) fn find(
        &self,
        from: (Who, Ipv4Addr),
        to: (Who, Ipv4Addr),
        (protocol, port): (Protocol, u16),
        needs: Needs,
        now: Now<'_>,
    ) -> Result<RuleId, Refused> {
        let port = if protocol == Protocol::IcmpEcho { 0 } else { port };
        let mut search = Search {
            allowed: None,
            closest: (u32::MAX, Refused::because(DropReason::NoRule)),
            needs,
            now,
        };
        for pair in self.pairs_of(from, to) {
            let key = |opening: &Opening| (opening.pair, opening.protocol, opening.first);
            let begin = self.openings.partition_point(|o| key(o) < (pair, protocol, port));
            let exact = self.openings.iter().skip(begin);
            for opening in exact.take_while(|o| key(o) == (pair, protocol, port)) {
                self.consider(opening.rule, &mut search);
            }
            let begin = self.ranges.partition_point(|r| key(&r.opening) < (pair, protocol, 0));
            let open = |range: &&Range| {
                (range.opening.pair, range.opening.protocol) == (pair, protocol)
                    && range.opening.first <= port
            };
            let ranges = self.ranges.iter().skip(begin).take_while(open);
            for range in ranges.filter(|range| port <= range.last) {
                self.consider(range.opening.rule, &mut search);
            }
        }
        search.allowed.map(|(_, rule)| rule).ok_or(search.closest.1)
    }

    /// Looks whether a rule that names both ends and the service allows the flow that is searched for.
    fn consider(&self, place: u32, search: &mut Search<'_>) {
        if search.allowed.is_some_and(|(first, _)| first <= place) {
            return;
        }
        let Some(entry) = self.entries.get(place as usize) else { return };
        match entry.check(search.needs, search.now) {
            Ok(()) => search.allowed = Some((place, entry.id)),
            Err(reason) => {
                let (known, found) = (rank(search.closest.1.reason), rank(reason));
                if found > known || (found == known && place < search.closest.0) {
                    search.closest = (place, Refused { reason, rule: Some(entry.id) });
                }
            }
        }
    }

    /// Whether any rule names both ends, whatever it opens; `fits` is told whether one says `clear = true`.
    pub(super) fn any(
        &self,
        from: Who,
        from_address: Ipv4Addr,
        to: Who,
        to_address: Ipv4Addr,
        fits: impl Fn(bool) -> bool,
    ) -> bool {
        self.pairs_of((from, from_address), (to, to_address)).any(|pair| {
            let found = self.pairs.binary_search_by_key(&pair, |(known, _)| *known);
            found.ok().and_then(|at| self.pairs.get(at)).is_some_and(|(_, clear)| fits(*clear))
        })
    }

    /// Whether an address lies in an external that a rule names.
    pub(super) fn names(&self, address: Ipv4Addr) -> bool {
        self.ends(Who::Address, address).next().is_some()
    }

    /// The next moment after another at which a rule's condition changes.
    pub(super) fn next_moment(&self, after: UnixMillis) -> Option<UnixMillis> {
        self.moments.get(self.moments.partition_point(|moment| *moment <= after)).copied()
    }

    /// The pairs of ends that two are.
    fn pairs_of(
        &self,
        (from, from_address): (Who, Ipv4Addr),
        (to, to_address): (Who, Ipv4Addr),
    ) -> impl Iterator<Item = Pair> {
        self.ends(from, from_address)
            .flat_map(move |from| self.ends(to, to_address).map(move |to| Pair { from, to }))
    }

    /// The ends that somebody is.
    fn ends(&self, who: Who, address: Ipv4Addr) -> impl Iterator<Item = EndIndex> {
        let (known, outside): (&[EndIndex], _) = match who {
            Who::Member(index) => {
                (self.members.get(index.0 as usize).map(Vec::as_slice).unwrap_or_default(), &[][..])
            }
            Who::Address => (&[], self.externals.as_slice()),
            Who::Impostor => (&[], &[][..]),
        };
        let within = move |prefixes: &[Ipv4Net]| prefixes.iter().any(|net| net.contains(&address));
        let outside = outside.iter().filter(move |(prefixes, _)| within(prefixes));
        known.iter().chain(outside.flat_map(|(_, ends)| ends)).copied()
    }
}

/// What was found so far.
#[derive(Debug)]
struct Search<'a> {
    allowed: Option<(u32, RuleId)>,
    closest: (u32, Refused),
    needs: Needs,
    now: Now<'a>,
}

impl Entry {
    fn new(rule: &Rule) -> Self {
        let not_after = rule.conditions.iter().filter_map(|condition| match condition {
            Condition::Known(KnownCondition::NotAfter(moment)) => Some(*moment),
            Condition::Unknown(_) => None,
        });
        Self {
            id: rule.id,
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

#[cfg(test)]
mod tests;
