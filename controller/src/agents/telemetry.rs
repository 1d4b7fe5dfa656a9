//! Reports as they come: cut to what is kept before they reach the store.

use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::{Document, Signed};
use anteroom_proto::inventory::{MAX_DEVICES, MAX_HINTS, value};
use anteroom_proto::text::steers;
use anteroom_proto::v1::telemetry::{
    MAX_ALARMS, MAX_BYPASSES, MAX_EDGES, MAX_HELD_BACK, MAX_RELAYS, MAX_SIGHTINGS, MAX_TRIALS,
    RelayAway, Report,
};
use anteroom_proto::verdict::DropReason;

/// Kinds of traffic that a sighting may name.
const KINDS: [&str; 5] = ["broadcast", "multicast", "ipv6", "tagged", "non-ip"];
/// Most addresses of one sighting.
const MAX_ADDRESSES: usize = 8;
/// Most tunnels of one gateway.
const MAX_TUNNELS: usize = 4096;

/// `report` without what is beyond its bounds or in no vocabulary, and how many entries that was.
pub(super) fn bounded(mut report: Report) -> (Report, usize) {
    let mut away = 0;
    let mut cut = |before: usize, after: usize| away += before - after;
    let before = report.sightings.len();
    report.sightings.truncate(MAX_SIGHTINGS);
    cut(before, report.sightings.len());
    let before = report.edges.len();
    report.edges.truncate(MAX_EDGES);
    cut(before, report.edges.len());
    let before = report.tunnels.len();
    report.tunnels.truncate(MAX_TUNNELS);
    cut(before, report.tunnels.len());
    let before = report.drops.len();
    report.drops.retain(|reason, _| DropReason::from_word(reason).is_some());
    cut(before, report.drops.len());
    let before = report.alarms.len();
    report.alarms.truncate(MAX_ALARMS);
    cut(before, report.alarms.len());
    let before = report.bypasses.len();
    report.bypasses.truncate(MAX_BYPASSES);
    cut(before, report.bypasses.len());
    let before = report.relays.len();
    report.relays.truncate(MAX_RELAYS);
    cut(before, report.relays.len());
    let before = report.relays_away.len();
    report.relays_away.truncate(MAX_RELAYS);
    cut(before, report.relays_away.len());
    for relay in &mut report.relays_away {
        let fit = relay.error.chars().filter(|c| !steers(*c)).take(RelayAway::MAX_ERROR);
        relay.error = fit.collect();
    }
    let before = report.hints.len();
    report.hints.truncate(MAX_DEVICES);
    cut(before, report.hints.len());
    for device in &mut report.hints {
        let before = device.hints.len();
        device.hints.truncate(MAX_HINTS);
        // What is shown to operators is what a gateway may say: printable and short.
        device.hints.retain(|hint| value(hint.value.as_bytes()).as_ref() == Some(&hint.value));
        cut(before, device.hints.len());
        device.vlan = device.vlan.filter(|vlan| *vlan < 4096);
    }
    let before = report.trials.len();
    report.trials.truncate(MAX_TRIALS);
    cut(before, report.trials.len());
    let before = report.held_back.len();
    report.held_back.truncate(MAX_HELD_BACK);
    cut(before, report.held_back.len());
    for sighting in &mut report.sightings {
        let before = sighting.addresses.len() + sighting.kinds.len();
        sighting.addresses.truncate(MAX_ADDRESSES);
        sighting.kinds.sort();
        sighting.kinds.dedup();
        sighting.kinds.retain(|kind| KINDS.contains(&kind.as_str()));
        cut(before, sighting.addresses.len() + sighting.kinds.len());
        sighting.vlan = sighting.vlan.filter(|vlan| *vlan < 4096);
        sighting.prefix_len = sighting.prefix_len.filter(|len| *len <= 32);
        // Whether it is what it says is checked by whoever shows it, against the gateway's key.
        let before = usize::from(sighting.claim.is_some());
        let fits = |claim: &Signed<AddressClaim>| claim.as_bytes().len() <= AddressClaim::MAX_LEN;
        sighting.claim = sighting.claim.take().filter(fits);
        cut(before, usize::from(sighting.claim.is_some()));
    }
    (report, away)
}
