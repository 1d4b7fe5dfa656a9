//! The review that auditors ask for: rules that no flow used, externals past their day, devices that weren't seen.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::decide::{Flow, Party, candidates};
use crate::history::{History, Way};
use crate::resolve::Resolved;

/// What a review finds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stale {
    /// Rules that no flow used since then, with when one last did.
    pub rules: BTreeMap<Name, Option<UnixMillis>>,
    /// Externals whose day of review is past, with that day.
    pub externals: BTreeMap<Name, UnixMillis>,
    /// Devices that weren't seen since then, with when they last were.
    pub devices: BTreeMap<Name, Option<UnixMillis>>,
}

/// What is new since another review, and what is settled, as lines for people: `rule.x`, `external.y`, `device.z`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Difference {
    /// Found now and not then.
    pub new: Vec<String>,
    /// Found then and not now.
    pub settled: Vec<String>,
}

/// Reviews the policy at `now` by what was seen `since` then.
#[must_use]
pub fn stale(resolved: &Resolved, history: &History, since: UnixMillis, now: UnixMillis) -> Stale {
    let mut used: BTreeMap<usize, UnixMillis> = BTreeMap::new();
    let mut seen: BTreeMap<MemberId, UnixMillis> = BTreeMap::new();
    for edge in history.edges() {
        for party in [edge.from, edge.to] {
            // A scan makes nobody seen who doesn't answer.
            let spoke = party == edge.from || edge.answered();
            if let Party::Member(id) = party
                && spoke
            {
                let last = seen.entry(id).or_default();
                *last = edge.last.max(*last);
            }
        }
        if edge.way == Way::Dropped {
            continue;
        }
        let flow = Flow { from: edge.from, to: edge.to, protocol: edge.protocol, port: edge.port };
        candidates(resolved, &flow, &mut |place, _| {
            let last = used.entry(place).or_default();
            *last = edge.last.max(*last);
        });
    }
    let idle = |last: &Option<UnixMillis>| last.is_none_or(|last| last < since);
    let rules = resolved.rules.iter().enumerate();
    let rules = rules.map(|(place, rule)| (rule.name.clone(), used.get(&place).copied()));
    let devices = resolved.model.devices.iter();
    let devices = devices.map(|(id, device)| (device.name.clone(), seen.get(id).copied()));
    let externals = resolved.policy.externals.iter();
    let externals = externals.filter_map(|(name, external)| Some((name.clone(), external.review?)));
    Stale {
        rules: rules.filter(|(_, last)| idle(last)).collect(),
        externals: externals.filter(|(_, review)| *review <= now).collect(),
        devices: devices.filter(|(_, last)| idle(last)).collect(),
    }
}

impl Stale {
    /// What changed since the review before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Difference {
        let (now, then) = (self.lines(), before.lines());
        Difference {
            new: now.difference(&then).cloned().collect(),
            settled: then.difference(&now).cloned().collect(),
        }
    }

    /// Everything that it found, as lines for people.
    pub(crate) fn lines(&self) -> BTreeSet<String> {
        let rules = self.rules.keys().map(|name| format!("rule.{name}"));
        let externals = self.externals.keys().map(|name| format!("external.{name}"));
        let devices = self.devices.keys().map(|name| format!("device.{name}"));
        rules.chain(externals).chain(devices).collect()
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::service::Protocol;

    use super::*;
    use crate::decide::End;
    use crate::fixture::{HOUR, NOW, hospital, member_id, name};
    use crate::history::{Counts, Seen};

    #[test]
    fn what_nobody_used_is_found_and_a_review_tells_what_changed() {
        let resolved = Resolved::new(&hospital()).unwrap();
        let seen = |from, to, port, at, back| Seen {
            from: Party::Member(member_id(from)),
            to: Party::Member(member_id(to)),
            protocol: Protocol::Tcp,
            port,
            way: Way::Clear,
            at: End::From,
            counts: Counts { flows: 1, packets: 1, packets_back: back, ..Counts::default() },
            first: at,
            last: at,
        };
        let mut history = History::new(100);
        let old = UnixMillis(NOW.0 - 100 * HOUR);
        history.add(&seen(1, 5, 104, NOW, 1));
        history.add(&seen(4, 6, 2575, old, 1));
        history.add(&seen(1, 3, 445, NOW, 0));
        let since = UnixMillis(NOW.0 - 50 * HOUR);
        let first = stale(&resolved, &history, since, NOW);
        assert_eq!(first.rules.get("alarms"), Some(&Some(old)));
        assert_eq!(first.rules.get("pacs-to-ct"), Some(&None));
        assert!(!first.rules.contains_key("ct-to-pacs"), "{first:?}");
        assert!(first.devices.contains_key("pump-1"), "it never answered: {first:?}");
        assert!(!first.devices.contains_key("pacs-1"));
        assert!(first.externals.is_empty());
        history.add(&seen(4, 6, 2575, NOW, 1));
        let later = UnixMillis(NOW.0 + 365 * 24 * HOUR);
        let second = stale(&resolved, &history, since, later);
        let difference = second.since(&first);
        assert_eq!(difference.new, ["external.archive"]);
        assert!(difference.settled.contains(&"rule.alarms".to_owned()), "{difference:?}");
        assert_eq!(second.externals.keys().collect::<Vec<_>>(), [&name("archive")]);
    }
}
