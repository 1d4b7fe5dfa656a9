//! What one rule can say, out of blocks, and which of these are essential.

use std::collections::{BTreeMap, BTreeSet};

use super::blocks::{At, Grant};
use super::facts::{Facts, Kind};
use crate::decide::Party;
use crate::resolve::Resolved;
use crate::surface;

/// Words in a class's name that say that alarms come from it.
const ALARMING: [&str; 8] = [
    "monitor",
    "ventilator",
    "pump",
    "telemetry",
    "alarm",
    "nurse-call",
    "anaesthesia",
    "dialysis",
];
/// In how many hours of the day something must be seen to go on around the clock.
const AROUND_THE_CLOCK: u8 = 20;
/// Who a rule's end is: a cell, or some parties by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Cell(At),
    Listed(Vec<u32>),
}

impl End {
    /// Who it stands for, sorted.
    pub(super) fn parties<'a>(&'a self, facts: &'a Facts) -> &'a [u32] {
        match self {
            Self::Cell((rung, cell)) => &facts.cells[usize::from(*rung)][*cell as usize].parties,
            Self::Listed(parties) => parties,
        }
    }
}

/// Grants that share both ends.
pub(super) struct Bundle<'a> {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) essential: bool,
    pub(super) grants: Vec<&'a Grant>,
}

impl Bundle<'_> {
    /// Who was seen at one end of its pairs.
    pub(super) fn seen_at(&self, end: fn(&(u32, u32)) -> u32) -> BTreeSet<u32> {
        self.grants.iter().flat_map(|grant| grant.seen.iter().map(end)).collect()
    }
}

/// Puts together what one rule can say: services between the same two ends, and devices that do the same towards one end.
pub(super) fn bundles<'a>(
    resolved: &Resolved,
    facts: &Facts,
    grants: &'a [Grant],
) -> Vec<Bundle<'a>> {
    type Ends = (bool, At, At);
    let mut by_ends: BTreeMap<Ends, Vec<&Grant>> = BTreeMap::new();
    for grant in grants {
        let ends = (is_essential(resolved, facts, grant), grant.from, grant.to);
        by_ends.entry(ends).or_default().push(grant);
    }
    let mut bundles = Vec::new();
    let mut rest = by_ends;
    // First those who open to the same end, then those to whom the same one opens.
    for end in [0, 1] {
        type Same = (bool, At, u32, Vec<u32>);
        let mut alike: BTreeMap<Same, Vec<(Ends, Vec<&Grant>)>> = BTreeMap::new();
        for (ends, grants) in std::mem::take(&mut rest) {
            let (own, other) = if end == 0 { (ends.1, ends.2) } else { (ends.2, ends.1) };
            if own.0 != 0 {
                if end == 0 {
                    rest.insert(ends, grants);
                } else {
                    bundles.push(bundle(ends, grants));
                }
                continue;
            }
            let class = facts.class[own.1 as usize];
            let services = grants.iter().map(|grant| grant.service).collect();
            alike.entry((ends.0, other, class, services)).or_default().push((ends, grants));
        }
        for ((essential, other, ..), list) in alike {
            if list.len() == 1 {
                for (ends, grants) in list {
                    if end == 0 {
                        rest.insert(ends, grants);
                    } else {
                        bundles.push(bundle(ends, grants));
                    }
                }
                continue;
            }
            let own = |ends: &Ends| if end == 0 { ends.1.1 } else { ends.2.1 };
            let mut parties: Vec<u32> = list.iter().map(|(ends, _)| own(ends)).collect();
            parties.sort_unstable();
            let listed = End::Listed(parties);
            let (from, to) =
                if end == 0 { (listed, End::Cell(other)) } else { (End::Cell(other), listed) };
            let grants = list.into_iter().flat_map(|(_, grants)| grants).collect();
            bundles.push(Bundle { from, to, essential, grants });
        }
    }
    bundles.sort_by(|a, b| (&a.from, &a.to, a.essential).cmp(&(&b.from, &b.to, b.essential)));
    bundles
}

fn bundle<'a>(ends: (bool, At, At), grants: Vec<&'a Grant>) -> Bundle<'a> {
    Bundle { from: End::Cell(ends.1), to: End::Cell(ends.2), essential: ends.0, grants }
}

/// Whether care may hang on it: it comes from what watches patients or keeps them alive, goes to few, around the
/// clock, weekends included, and on nearly every day on which its senders were seen. A monitor that prints now and then needn't in quarantine.
fn is_essential(resolved: &Resolved, facts: &Facts, grant: &Grant) -> bool {
    let Some((from, _)) = grant.seen.first().copied() else { return false };
    let alarming = match &facts.kinds[facts.class[from as usize] as usize] {
        Kind::Label(class) => {
            let class = class.to_lowercase();
            ALARMING.iter().any(|word| class.contains(word))
        }
        _ => false,
    };
    let life = match facts.parties[from as usize] {
        Party::Member(id) => surface::of_member(resolved, id).is_life_support(),
        Party::Address(_) => false,
    };
    let inside = |party: u32| matches!(facts.parties[party as usize], Party::Member(_));
    let receivers: BTreeSet<u32> = grant.seen.iter().map(|(_, to)| *to).collect();
    let senders: BTreeSet<u32> = grant.seen.iter().map(|(from, _)| *from).collect();
    let watched = |from: u32| u64::from(facts.watched[from as usize].count_ones());
    let days: u64 = grant.seen.iter().map(|(from, _)| watched(*from)).sum();
    (alarming || life)
        && grant.events * 5 >= days * 4
        && receivers.iter().all(|to| inside(*to))
        && receivers.len() <= senders.len().max(2)
        && grant.sum.hours >= AROUND_THE_CLOCK
        && grant.sum.weekend
}
