//! Modes: what a port can't do, and why a device isn't ready for enforce.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::approval::Place;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::MAX_EXPECTED;
use anteroom_proto::time::UnixMillis;

use super::policy::{mode, moment};
use super::{Evidence, Findings, Severity};
use crate::coverage::Coverage;
use crate::model::{Device, Model};
use crate::parties::{member_label, some_of};
use crate::resolve::{Resolved, ResolvedRule, Side};

/// How long a device must be known before it may go to enforce, in milliseconds, where nothing else is known of it.
pub const OBSERVE_FOR: u64 = 24 * 60 * 60 * 1000;

pub(super) fn check(
    before: Option<&Model>,
    resolved: &Resolved,
    evidence: &Evidence,
    now: UnixMillis,
    findings: &mut Findings,
) {
    ports(resolved, findings);
    let enforced: Vec<(MemberId, &Device)> = resolved
        .model
        .devices
        .iter()
        .filter(|(_, device)| device.mode == Mode::Enforce && resolved.model.is_attached(device))
        // A host was never anything else, and has no other traffic that it could lose.
        .filter(|(_, device)| !Model::is_host(device))
        .map(|(id, device)| (*id, device))
        .collect();
    let held: BTreeSet<MemberId> = enforced
        .iter()
        .filter(|(id, device)| is_held(before, *id, device, evidence))
        .map(|(id, _)| *id)
        .collect();
    watched(&enforced, &held, evidence, now, findings);
    kinds(resolved, &enforced, &held, evidence, findings);
    measured(&enforced, findings);
    gaps(&enforced, evidence, findings);
    for rule in resolved.rules.iter().filter(|rule| !rule.clear && !rule.expired(now)) {
        let (from, to) = (resolved.side(rule.from), resolved.side(rule.to));
        unasked(resolved, rule, from, to, findings);
        if rule.from != rule.to {
            unasked(resolved, rule, to, from, findings);
        }
    }
}

/// Traffic that nothing here knows of.
fn gaps(enforced: &[(MemberId, &Device)], evidence: &Evidence, findings: &mut Findings) {
    if evidence.turned_away == 0 {
        return;
    }
    let tried = enforced.iter().any(|(_, device)| device.rollout.trial.is_some());
    let trial = if tried { ", nor does a trial look at them" } else { "" };
    findings.add(
        Severity::Warning,
        "history-incomplete",
        "flow history",
        format!(
            "{} edges of traffic found no room in it, at gateways or at the controller, as after a scan: what they were isn't \
             among what this would break{trial}. `anteroom flows DEVICE` shows what is known of one.",
            evidence.turned_away
        ),
    );
}

/// Trials by which not everything is measured that should be.
fn measured(enforced: &[(MemberId, &Device)], findings: &mut Findings) {
    for (_, device) in enforced {
        let Some(trial) = &device.rollout.trial else { continue };
        let subject = format!("device {}", device.name);
        if trial.expects.is_empty() {
            findings.add(
                Severity::Warning,
                "trial-measured-by-nothing",
                subject,
                "No connection of it is recorded that was answered in the last 14 days, so only the time ends its trial: \
                 nobody but you notices what fails."
                    .to_owned(),
            );
        } else if trial.expects.len() >= MAX_EXPECTED {
            findings.add(
                Severity::Warning,
                "trial-measured-in-part",
                subject,
                format!(
                    "Its trial is measured by {MAX_EXPECTED} connections, which is as many as there may be: those of essential \
                     rules, and those seen last. What fails of the others ends no trial."
                ),
            );
        }
    }
}

/// Most things that one message says weren't seen.
const MISSING: usize = 6;

/// Devices of which too little was seen to know what enforce would cut off.
fn watched(
    enforced: &[(MemberId, &Device)],
    held: &BTreeSet<MemberId>,
    evidence: &Evidence,
    now: UnixMillis,
    findings: &mut Findings,
) {
    for (id, device) in enforced {
        let subject = format!("device {}", device.name);
        if held.contains(id) {
            findings.add(
                Severity::Warning,
                "held-until-now",
                subject,
                format!(
                    "Its gateway has held it since its port left observe, so nothing of it could be watched, and enforce \
                     cuts nothing off: what rules open passes from now on, all else stays dropped. `anteroom flows {} \
                     --dropped` shows what it misses.",
                    device.name
                ),
            );
            continue;
        }
        match evidence.coverage.get(id) {
            Some(found) if found.enough => unforeseen(subject, found, findings),
            Some(found) => {
                let missing: Vec<String> = found.missing.iter().map(ToString::to_string).collect();
                findings.add(
                    Severity::Refusal,
                    "observed-too-briefly",
                    subject,
                    format!(
                        "Of what is expected of it {} % was seen, and enforce may cut off the rest: {}. Until that was \
                         watched `anteroom device mode {} protect` is as far as it goes; {}.",
                        found.percent(),
                        some_of(&missing, MISSING),
                        device.name,
                        overridden(&device.name)
                    ),
                );
            }
            None if now < device.confirmed_at.saturating_add(OBSERVE_FOR) => findings.add(
                Severity::Refusal,
                "observed-too-briefly",
                subject,
                format!(
                    "It has been watched since {} only: enforce wants 24 hours, so that what happens once a day \
                     has been seen. Until {} `anteroom device mode {} protect` is as far as it goes; {}.",
                    moment(device.confirmed_at),
                    moment(device.confirmed_at.saturating_add(OBSERVE_FOR)),
                    device.name,
                    overridden(&device.name)
                ),
            ),
            None => {}
        }
    }
}

/// Whether a device has no traffic so far that enforce could cut off: where it stands somebody is held whom nobody has confirmed.
/// What its gateway said before it was confirmed is old where it has been in a mode since in which its traffic passes.
fn is_held(before: Option<&Model>, id: MemberId, device: &Device, evidence: &Evidence) -> bool {
    let known = before.and_then(|before| before.devices.get(&id));
    if known.is_some_and(|known| known.mode != Mode::Enforce) {
        return false;
    }
    let at = &device.attachment;
    evidence.sightings.iter().any(|record| {
        let seen = &record.sighting;
        (record.gateway, &seen.port, seen.mac, seen.vlan) == (at.gateway, &at.port, at.mac, at.vlan)
            && seen.held
            && seen.member.is_none()
    })
}

/// What is likely still to come of a device that was watched long enough.
fn unforeseen(subject: String, coverage: &Coverage, findings: &mut Findings) {
    if coverage.unforeseen.is_empty() {
        return;
    }
    let kinds: Vec<String> = coverage.unforeseen.iter().map(ToString::to_string).collect();
    let text = format!(
        "More like this may come, and is dropped then: {}. If it is wanted, a rule from segment to segment opens it.",
        some_of(&kinds, MISSING)
    );
    findings.add(Severity::Warning, "not-covered", subject, text);
}

/// Most devices that one command in a message names.
const MAX_NAMED: usize = 20;

/// How a person goes on in spite of a refusal.
fn overridden(device: impl std::fmt::Display) -> String {
    format!("to go on all the same, `anteroom device mode {device} enforce --force --reason WHY`")
}

/// Devices on one port can't be told apart by what comes in, so they have one mode, and go back from a trial as one.
fn ports(resolved: &Resolved, findings: &mut Findings) {
    let mut by_port: BTreeMap<(GatewayId, &Name), Vec<&Device>> = BTreeMap::new();
    for device in resolved.model.devices.values() {
        let attachment = &device.attachment;
        if resolved.model.is_attached(device) {
            by_port.entry((attachment.gateway, &attachment.port)).or_default().push(device);
        }
    }
    for ((gateway, port), devices) in by_port.into_iter().filter(|(_, devices)| devices.len() > 1) {
        let Some(gateway) = resolved.model.gateways.get(&gateway) else { continue };
        let subject = format!("{port} of gateway {}", gateway.name);
        let modes: BTreeSet<Mode> = devices.iter().map(|device| device.mode).collect();
        let since = |device: &&Device| device.rollout.trial.as_ref().map(|trial| trial.since);
        let trials: BTreeSet<Option<Place>> = devices.iter().map(since).collect();
        let names: Vec<String> =
            devices.iter().map(|device| format!("{} ({})", device.name, device.mode)).collect();
        let names = some_of(&names, 8);
        let together = devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>();
        let together = together.join(" ");
        if modes.len() > 1 {
            findings.add(
                Severity::Error,
                "port-mixed-modes",
                subject,
                format!(
                    "{names} share it, and a port has one mode: `anteroom device mode {together} {}` changes them \
                     together, or give each a port of its own.",
                    modes.last().copied().unwrap_or(Mode::Observe)
                ),
            );
        } else if trials.len() > 1 {
            findings.add(
                Severity::Error,
                "port-mixed-trials",
                subject,
                format!(
                    "{names} share it, and not all of them are on the same trial: a port has one mode, so none could \
                     go back by itself. `anteroom device mode {together} protect`, and then `anteroom device mode \
                     {together} enforce --confirm-within TIME` try them together, `anteroom device keep` confirms \
                     together what is on trial."
                ),
            );
        } else if !modes.contains(&Mode::Observe) {
            findings.add(
                Severity::Warning,
                "port-shared",
                subject,
                format!("{names} share it, so nothing keeps them from each other."),
            );
        }
    }
}

/// Traffic that no rule can carry was seen of a device that is to be enforced.
fn kinds(
    resolved: &Resolved,
    enforced: &[(MemberId, &Device)],
    held: &BTreeSet<MemberId>,
    evidence: &Evidence,
    findings: &mut Findings,
) {
    let places: BTreeMap<_, MemberId> = enforced
        .iter()
        .filter(|(id, _)| !held.contains(id))
        .map(|(id, device)| ((device.attachment.gateway, device.attachment.mac), *id))
        .collect();
    let mut seen: BTreeMap<MemberId, BTreeSet<&str>> = BTreeMap::new();
    for record in &evidence.sightings {
        if let Some(id) = places.get(&(record.gateway, record.sighting.mac)) {
            seen.entry(*id).or_default().extend(record.sighting.kinds.iter().map(String::as_str));
        }
    }
    for (id, kinds) in seen.into_iter().filter(|(_, kinds)| !kinds.is_empty()) {
        let kinds = kinds.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let label = member_label(resolved, id);
        findings.add(
            Severity::Refusal,
            "kinds-not-carried",
            format!("device {label}"),
            format!(
                "It was seen to use what no rule carries and enforce drops: {}. `anteroom flows {label}` shows with \
                 whom it speaks. What needs it can't be enforced: `anteroom device mode {label} protect`; if \
                 nothing does, {}.",
                some_of(&kinds, 8),
                overridden(&label)
            ),
        );
    }
}

/// Hosts that a rule would have speak with observed devices. Nothing opens by it, and back to observe must always be
/// possible: so it is a warning, as with clients.
fn hosts(
    resolved: &Resolved,
    (near, observed): (&Side, &[String]),
    subject: &str,
    findings: &mut Findings,
) {
    let is_host = |id: &MemberId| resolved.model.devices.get(id).is_some_and(Model::is_host);
    let hosts: Vec<String> = near
        .members
        .iter()
        .filter(|id| is_host(id))
        .map(|id| member_label(resolved, *id))
        .collect();
    if hosts.is_empty() || observed.is_empty() {
        return;
    }
    findings.add(
        Severity::Warning,
        "host-of-observed",
        subject,
        format!(
            "Nothing passes between {} and {}, because what is in observe uses no tunnel: `anteroom device mode {} \
             protect`.",
            some_of(&hosts, 4),
            some_of(observed, 4),
            observed[..observed.len().min(MAX_NAMED)].join(" ")
        ),
    );
}

/// Enforced devices that a rule would have speak in the clear, though it doesn't say so.
fn unasked(
    resolved: &Resolved,
    rule: &ResolvedRule,
    near: &Side,
    far: &Side,
    findings: &mut Findings,
) {
    let with = |side: &Side, wanted: Mode| -> Vec<String> {
        let members = side.members.iter().filter(|id| mode(resolved, **id) == Some(wanted));
        members.map(|id| member_label(resolved, *id)).collect()
    };
    let is_host = |id: &MemberId| resolved.model.devices.get(id).is_some_and(Model::is_host);
    let subject = format!("rule.{}", rule.name);
    let observed = with(far, Mode::Observe);
    hosts(resolved, (near, &observed), &subject, findings);
    let enforced = near.members.iter().filter(|id| !is_host(id));
    let enforced = enforced.filter(|id| mode(resolved, **id) == Some(Mode::Enforce));
    let enforced: Vec<String> = enforced.map(|id| member_label(resolved, *id)).collect();
    if enforced.is_empty() {
        return;
    }
    let externals: Vec<String> = far.externals.iter().map(ToString::to_string).collect();
    for device in enforced {
        if !observed.is_empty() {
            findings.add(
                Severity::Refusal,
                "clear-unasked",
                &subject,
                format!(
                    "{device} is to be in enforce, but {} only observed, so the rule's traffic between them would \
                     be dropped: `anteroom device mode {} protect` first, or write clear = true in the rule and \
                     `anteroom policy apply policy.toml`.",
                    if observed.len() == 1 {
                        format!("{} is", observed[0])
                    } else {
                        format!("{} are", some_of(&observed, 4))
                    },
                    observed[..observed.len().min(MAX_NAMED)].join(" ")
                ),
            );
        }
        if !externals.is_empty() {
            findings.add(
                Severity::Refusal,
                "clear-unasked",
                &subject,
                format!(
                    "{device} is to be in enforce, but traffic with {} is in the clear, so it would be dropped: write \
                     clear = true in the rule and `anteroom policy apply policy.toml`, or put a gateway in front of the \
                     other end.",
                    some_of(&externals, 4)
                ),
            );
        }
    }
}
