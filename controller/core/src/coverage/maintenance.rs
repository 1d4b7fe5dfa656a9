//! Whether a device was watched while somebody looked after it from elsewhere: a field service engineer's shell, a vendor's remote screen.
//!
//! That comes once a quarter or year, longer than anybody watches before they enforce. What a class lets itself be looked after by shows at
//! some of its devices, and the policy says by a rule that it's wanted: the others are asked about.

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

/// Who looked after which devices, and with what.
#[derive(Debug, Default)]
pub(super) struct Maintenance {
    /// On which days, counted back, by device.
    days: BTreeMap<MemberId, u64>,
    ways: BTreeMap<MemberId, BTreeSet<Way>>,
    /// What a rule opens of it, by class.
    ruled: BTreeMap<String, BTreeSet<Way>>,
}

impl Maintenance {
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
            self.ruled.entry(class.to_owned()).or_default().insert(way);
        }
    }

    /// On how many of the last 64 days somebody looked after a device.
    pub(super) fn days_of(&self, device: MemberId) -> u32 {
        self.days.get(&device).map_or(0, |days| days.count_ones())
    }

    /// By what others of a device's class are looked after under a rule, and it was neither seen to be nor could be.
    pub(super) fn missing(&self, resolved: &Resolved, device: MemberId) -> Vec<Missing> {
        let of_class = class(resolved, device).and_then(|class| self.ruled.get(class));
        let own = self.ways.get(&device);
        let is_missing = |(from, service): &&Way| {
            let to = Party::Member(device);
            let flow = Flow { from: *from, to, protocol: service.protocol, port: service.first };
            *from != to
                && own.is_none_or(|own| !own.contains(&(*from, *service)))
                && !is_ruled(resolved, &flow)
        };
        let missing = of_class.into_iter().flatten().filter(is_missing);
        missing
            .map(|(from, service)| Missing::Maintenance {
                from: label(resolved, *from),
                service: *service,
            })
            .collect()
    }
}

fn class(resolved: &Resolved, device: MemberId) -> Option<&str> {
    resolved.model.devices.get(&device)?.labels.get("class").map(String::as_str)
}
