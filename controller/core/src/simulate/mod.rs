//! What a policy would have done to the recorded traffic: each edge that it would break. [`live`] says it of the policy in force
//! while devices are still observed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::decide::{Flow, Party, decide, essential};
use crate::history::{History, Way};
use crate::parties::label;
use crate::problem::Problems;
use crate::resolve::Resolved;
use crate::surface::{Criticality, Surfaces};

pub mod live;

const DAY: u64 = 86_400_000;

/// A recorded edge that a policy would break.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Broken {
    /// The device that would notice: the one that opens, where it is one.
    pub device: MemberId,
    /// Who opened, and to whom.
    pub ends: [Party; 2],
    /// Who opened, by name.
    pub from: String,
    /// To whom, by name.
    pub to: String,
    /// The service.
    pub service: PortMatch,
    /// Why it would be dropped.
    pub reason: DropReason,
    /// Whether an essential rule carries it today.
    pub essential: bool,
    /// The greater criticality of its two ends.
    pub criticality: Option<Criticality>,
    /// Flows recorded since the moment that was asked for, as far as the history tells them apart: all of the edge.
    pub flows: u64,
    /// Days with traffic, of the last 64 before now.
    pub days: u32,
    /// Last seen.
    pub last: UnixMillis,
}

/// What a policy would have done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Simulation {
    /// Edges looked at: those that passed and were answered, or UDP.
    pub edges: usize,
    /// Flows of these.
    pub flows: u64,
    /// What would break: essential first, then the most critical, then by device.
    pub broken: Vec<Broken>,
    /// Flows of these.
    pub broken_flows: u64,
}

/// Judges every edge seen `since` then as if the devices `enforced` were in enforce, or all if none are named, under `text` in place of the
/// policy of `today`; `file` is what errors call it.
///
/// # Errors
/// Every problem of the policy and of its names.
pub fn simulate(
    today: &Resolved,
    file: &str,
    text: &str,
    history: &History,
    enforced: &BTreeSet<MemberId>,
    since: UnixMillis,
    now: UnixMillis,
) -> Result<Simulation, Problems> {
    let mut model = today.model.clone();
    for (id, device) in &mut model.devices {
        if enforced.is_empty() || enforced.contains(id) {
            device.mode = Mode::Enforce;
        }
    }
    let after = Resolved::from_text(&model, file, text)?;
    let surfaces = Surfaces::of(&after);
    let today_is = u32::try_from(now.0 / DAY).unwrap_or(u32::MAX);
    let mut simulation = Simulation::default();
    let mut broken: BTreeMap<(Party, Party, PortMatch), Broken> = BTreeMap::new();
    let edges = history.edges().filter(|edge| edge.way != Way::Dropped && edge.last >= since);
    for edge in edges {
        let udp = edge.protocol == anteroom_proto::service::Protocol::Udp && edge.port != 0;
        if !(edge.answered() || udp) {
            continue;
        }
        simulation.edges += 1;
        simulation.flows = simulation.flows.saturating_add(edge.counts.flows);
        let flow = Flow { from: edge.from, to: edge.to, protocol: edge.protocol, port: edge.port };
        let Verdict::Drop(reason) = decide(&after, &flow, now).verdict else { continue };
        let ((Party::Member(device), _) | (_, Party::Member(device))) = (edge.from, edge.to) else {
            continue;
        };
        let essential = essential(today, &flow, now).is_some();
        simulation.broken_flows = simulation.broken_flows.saturating_add(edge.counts.flows);
        let service = PortMatch { protocol: edge.protocol, first: edge.port, last: edge.port };
        let line = broken.entry((edge.from, edge.to, service)).or_insert_with(|| Broken {
            device,
            ends: [edge.from, edge.to],
            from: label(&after, edge.from),
            to: label(&after, edge.to),
            service,
            reason,
            essential,
            criticality: [edge.from, edge.to]
                .into_iter()
                .filter_map(|party| surfaces.party(party).criticality())
                .max(),
            flows: 0,
            days: 0,
            last: edge.last,
        });
        line.flows = line.flows.saturating_add(edge.counts.flows);
        line.days = line.days.max(edge.rhythm.days_before(today_is).count_ones());
        line.last = line.last.max(edge.last);
    }
    simulation.broken = broken.into_values().collect();
    let order = |line: &Broken| (!line.essential, Reverse(line.criticality));
    simulation.broken.sort_by(|a, b| (order(a), a).cmp(&(order(b), b)));
    Ok(simulation)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::service::Protocol;

    use super::*;
    use crate::decide::End;
    use crate::fixture::{NOW, POLICY, hospital, member_id};
    use crate::history::{Counts, Seen};

    fn seen(from: u32, to: u32, port: u16, back: u64) -> Seen {
        Seen {
            from: Party::Member(member_id(from)),
            to: Party::Member(member_id(to)),
            protocol: Protocol::Tcp,
            port,
            way: Way::Clear,
            at: End::From,
            counts: Counts { flows: 3, packets: 9, packets_back: back, ..Counts::default() },
            first: NOW,
            last: NOW,
        }
    }

    #[test]
    fn what_would_break_is_named_with_the_essential_first() {
        let today = Resolved::new(&hospital()).unwrap();
        let mut history = History::new(100);
        history.add(&seen(1, 5, 104, 1)); // scanner to archive: a rule
        history.add(&seen(3, 5, 445, 1)); // pump to archive: none
        history.add(&seen(4, 6, 2575, 1)); // alarms: an essential rule
        history.add(&seen(2, 6, 22, 0)); // nobody answered
        let run = |text: &str, only: &[u32], since| {
            let only = only.iter().map(|number| member_id(*number)).collect();
            simulate(&today, "new", text, &history, &only, since, NOW).unwrap()
        };
        let found = run(POLICY, &[], NOW);
        assert_eq!((found.edges, found.flows, found.broken_flows), (3, 9, 3));
        assert_eq!(found.broken.len(), 1, "{found:?}");
        let line = &found.broken[0];
        assert_eq!((line.from.as_str(), line.to.as_str(), line.flows), ("pump-1", "pacs-1", 3));
        assert_eq!((line.device, line.essential), (member_id(3), false));
        let without = POLICY.replace("to = \"hl7-1\"", "to = \"pacs\"");
        let found = run(&without, &[], NOW);
        assert!(found.broken[0].essential && found.broken.len() == 2, "{found:?}");
        let lives = without.replace(
            "[segment.ct]",
            "[segment.pumps]\nmembers = [\"pump-1\"]\ncriticality = \"life-support\"\n[segment.ct]",
        );
        let none =
            "format = 1\n[segment.pumps]\nmembers = [\"pump-1\"]\ncriticality = \"life-support\"";
        let order = |text: &str| -> Vec<(String, Option<Criticality>)> {
            let found = run(text, &[], NOW).broken.into_iter();
            found.map(|line| (line.from, line.criticality)).collect()
        };
        let pump = ("pump-1".to_owned(), Some(Criticality::LifeSupport));
        assert_eq!(order(&lives), [("monitor-1".to_owned(), None), pump.clone()]);
        assert_eq!(
            order(none),
            [("monitor-1".to_owned(), None), pump, ("ct-1".to_owned(), None)],
            "the essential, then the most critical"
        );
        assert_eq!(run(&without, &[1], NOW).broken, [], "the scanner alone is enforced");
        assert_eq!(run(POLICY, &[], UnixMillis(NOW.0 + 1)).edges, 0);
        assert!(
            simulate(&today, "new", "format = 2", &history, &BTreeSet::new(), NOW, NOW).is_err()
        );
    }
}
