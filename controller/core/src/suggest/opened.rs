//! What the policy opens already, and what its rules opened until they ended.

use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use crate::decide::Party;
use crate::policy::drafting::covers;
use crate::resolve::Resolved;

/// Between how many pairs of an ended rule another rule that is in force is looked for. A block with more of them is taken as one that the end closed.
const MOST_ASKED: usize = 10_000;

/// What the policy says of a pair.
#[derive(Debug, Clone, Copy)]
pub(super) enum Open {
    Now,
    /// A rule opened it whose end has come.
    Until(UnixMillis),
    Closed,
}

/// What the policy opens already, by party.
#[derive(Debug, Default)]
pub(super) struct Opened {
    sides: Vec<Vec<usize>>,
    /// Of each side its rules, with the far side and the ports.
    rules: Vec<Vec<usize>>,
    /// What was over by then is open no more.
    now: UnixMillis,
    ended: Vec<Ended>,
}

/// A rule whose end has come.
#[derive(Debug)]
struct Ended {
    /// Its place among the rules.
    rule: usize,
    /// The parties at each end, sorted.
    ends: [Vec<u32>; 2],
}

impl Opened {
    pub(super) fn of(resolved: &Resolved, parties: &[Party], now: UnixMillis) -> Self {
        let mut opened = Self { sides: vec![Vec::new(); parties.len()], now, ..Self::default() };
        let sides: Vec<_> = resolved.sides().collect();
        for (place, (id, side)) in sides.iter().enumerate() {
            opened.rules.push(side.from_rules.clone());
            for (number, party) in parties.iter().enumerate() {
                let holds = match party {
                    Party::Member(member) => side.members.binary_search(member).is_ok(),
                    Party::Address(address) => resolved.external_holds(*id, *address),
                };
                if holds {
                    opened.sides[number].push(place);
                }
            }
        }
        let over = resolved.rules.iter().enumerate().filter(|(_, rule)| rule.expired(now));
        opened.ended = over.map(|(rule, _)| opened.ended(resolved, rule)).collect();
        opened
    }

    fn ended(&self, resolved: &Resolved, rule: usize) -> Ended {
        let ends = [resolved.rules[rule].from, resolved.rules[rule].to];
        let ends = ends.map(|end| {
            let parties = self.sides.iter().enumerate();
            let there =
                parties.filter(|(_, sides)| sides.iter().any(|side| resolved.is_side(*side, end)));
            there.map(|(number, _)| u32::try_from(number).unwrap_or(u32::MAX)).collect()
        });
        Ended { rule, ends }
    }

    /// Whether a rule between all of `from` and all of `to` would open again to any two of them what a rule's end closed.
    pub(super) fn reopens(
        &self,
        resolved: &Resolved,
        [from, to]: [&[u32]; 2],
        service: &PortMatch,
    ) -> bool {
        let both = |own: &[u32], others: &[u32]| -> Vec<u32> {
            let (few, many) = if own.len() < others.len() { (own, others) } else { (others, own) };
            few.iter().copied().filter(|party| many.binary_search(party).is_ok()).collect()
        };
        self.ended.iter().filter(|ended| covers(&resolved.rules[ended.rule], service)).any(
            |ended| {
                let froms = both(from, &ended.ends[0]);
                let tos = if froms.is_empty() { Vec::new() } else { both(to, &ended.ends[1]) };
                if froms.len().saturating_mul(tos.len()) > MOST_ASKED {
                    return true;
                }
                froms.iter().any(|from| {
                    let over = |to: u32| {
                        matches!(self.state(resolved, *from, to, service), Open::Until(_))
                    };
                    tos.iter().any(|to| to != from && over(*to))
                })
            },
        )
    }

    pub(super) fn state(
        &self,
        resolved: &Resolved,
        from: u32,
        to: u32,
        service: &PortMatch,
    ) -> Open {
        let there = &self.sides[to as usize];
        let mut found = Open::Closed;
        for rule in self.sides[from as usize].iter().flat_map(|side| &self.rules[*side]) {
            let rule = &resolved.rules[*rule];
            let here = || there.iter().any(|side| resolved.is_side(*side, rule.to));
            if !covers(rule, service) || !here() {
                continue;
            }
            match (rule.expires.filter(|_| rule.expired(self.now)), found) {
                (None, _) => return Open::Now,
                (Some(end), Open::Until(later)) => found = Open::Until(later.max(end)),
                (Some(end), _) => found = Open::Until(end),
            }
        }
        found
    }
}
