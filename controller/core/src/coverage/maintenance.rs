//! Whether a device was watched while somebody looked after it from elsewhere: a field service engineer's shell, a vendor's remote screen.
//!
//! That comes once a quarter or year, longer than anybody watches before they enforce. What a class lets itself be looked after by shows at
//! some of its devices, and the policy says by a rule that it's wanted: the others are asked about. One device that somebody maintains, or that
//! a misconfigured machine calls day after day, says nothing of its class.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::service::PortMatch;

use super::Missing;
use super::unforeseen::is_ruled;
use crate::decide::{Flow, Party};
use crate::history::Edge;
use crate::parties::label;
use crate::resolve::Resolved;

/// Who comes, and with what.
type Way = (Party, PortMatch);

/// So many devices of a class, or half of it, but two at least, are to be looked after in a way for it to be the way of the class.
const SEVERAL: usize = 3;

/// Who looked after which devices, and with what.
#[derive(Debug)]
pub(super) struct Maintenance {
    /// How many devices each class has.
    sizes: BTreeMap<String, usize>,
    /// On which days, counted back, by device.
    days: BTreeMap<MemberId, u64>,
    ways: BTreeMap<MemberId, BTreeSet<Way>>,
    /// What a rule opens of it, and to whom, by class.
    ruled: BTreeMap<String, BTreeMap<Way, BTreeSet<MemberId>>>,
}

impl Maintenance {
    pub(super) fn new(resolved: &Resolved) -> Self {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        let classes = resolved.model.devices.keys().filter_map(|id| class(resolved, *id));
        classes.for_each(|class| *sizes.entry(class.to_owned()).or_default() += 1);
        Self { sizes, days: BTreeMap::new(), ways: BTreeMap::new(), ruled: BTreeMap::new() }
    }

    /// Adds an edge that passed; whatever isn't maintenance counts for nothing.
    pub(super) fn add(&mut self, resolved: &Resolved, edge: &Edge, today: u32) {
        let Edge { from, to, protocol, port, .. } = *edge;
        let Party::Member(device) = to else { return };
        if !edge.answered() || !resolved.policy.maintenance(protocol, port) {
            return;
        }
        let way = (from, PortMatch { protocol, first: port, last: port });
        *self.days.entry(device).or_default() |= edge.rhythm.days_before(today);
        self.ways.entry(device).or_default().insert(way);
        let class = class(resolved, device);
        if let Some(class) =
            class.filter(|_| is_ruled(resolved, &Flow { from, to, protocol, port }))
        {
            let ways = self.ruled.entry(class.to_owned()).or_default();
            ways.entry(way).or_default().insert(device);
        }
    }

    /// On how many of the last 64 days somebody looked after a device.
    pub(super) fn days_of(&self, device: MemberId) -> u32 {
        self.days.get(&device).map_or(0, |days| days.count_ones())
    }

    /// By what several others of a device's class are looked after under rules, and it was neither seen to be nor could be.
    pub(super) fn missing(&self, resolved: &Resolved, device: MemberId) -> Vec<Missing> {
        let Some(class) = class(resolved, device) else { return Vec::new() };
        let size = self.sizes.get(class).copied().unwrap_or_default();
        let own = self.ways.get(&device);
        let is_missing = |(way, of): &(&Way, &BTreeSet<MemberId>)| {
            let (from, service) = **way;
            let to = Party::Member(device);
            let flow = Flow { from, to, protocol: service.protocol, port: service.first };
            let is_usual = of.len() >= SEVERAL || (of.len() >= 2 && 2 * of.len() >= size);
            let had = own.is_some_and(|own| own.contains(*way));
            is_usual && from != to && !had && !is_ruled(resolved, &flow)
        };
        let ways = self.ruled.get(class).into_iter().flatten().filter(is_missing);
        let told = |(from, service): &Way| {
            let from = label(resolved, *from);
            Missing::Maintenance { from, service: *service }
        };
        ways.map(|(way, _)| told(way)).collect()
    }
}

fn class(resolved: &Resolved, device: MemberId) -> Option<&str> {
    resolved.model.devices.get(&device)?.labels.get("class").map(String::as_str)
}
