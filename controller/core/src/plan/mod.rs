//! A plan: what a change of the model would do, for a person to judge before they sign.

use std::collections::BTreeMap;
use std::fmt;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::Hash;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::compile::{Compiled, compile};
use crate::lint::{Evidence, Finding, MAX_FINDINGS, Severity, lint, lint_change};
use crate::model::Model;
use crate::problem::Problems;
use crate::resolve::Resolved;
use crate::surface::Criticality;

mod breaks;
mod changes;
mod permissions;
#[cfg(test)]
mod tests;

pub use breaks::{Judge, breaks};

/// Most lines of each kind in a plan: whoever signs a change of thousands of labels can look each of them up.
pub const MAX_LINES: usize = 20_000;
/// So many lines that would break are kept of each criticality, though there are [`MAX_LINES`] before them.
const SOME_LINES: usize = 100;

/// The revision that a plan stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its number; 0 before the first.
    pub number: u64,
    /// Hash of its signed root; [`Hash::ZERO`] before the first.
    pub hash: Hash,
}

/// A plan. Serialised, it is what `policy plan --out` writes and `policy apply PLAN` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names base and result: the same id, the same change.
    pub id: Hash,
    /// The revision that it stands on.
    pub base: Base,
    /// The policy text that it would bring.
    pub policy: String,
    /// What changes, in people's words.
    pub changes: Vec<Change>,
    /// What becomes allowed.
    pub opened: Vec<Permission>,
    /// What is no longer allowed.
    pub closed: Vec<Permission>,
    /// Gateways for which something changes.
    pub affected: Vec<AffectedGateway>,
    /// Recorded traffic that passes today and would be dropped: the essential first, then the most critical, then by flows.
    pub would_break: Vec<WouldBreak>,
    /// What is worth a look.
    pub warnings: Vec<Finding>,
    /// What stops the plan.
    pub refusals: Vec<Finding>,
    /// How many lines were left out above, where there were more than [`MAX_LINES`] of a kind.
    pub left_out: usize,
}

/// One thing that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What kind: `gateway`, `gateway labels`, `bypass`, `client`, `client labels`, `device`, `device labels`, `mode`, `trial`, `quarantine`, `policy`.
    pub kind: String,
    /// Of what, by name.
    pub name: String,
    /// What it was.
    pub before: Option<String>,
    /// What it becomes.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, before, after } = self;
        match (before, after) {
            (None, Some(after)) => write!(f, "+ {kind} {name}: {after}"),
            (Some(before), None) => write!(f, "- {kind} {name}: {before}"),
            (Some(before), Some(after)) => write!(f, "~ {kind} {name}: {before} -> {after}"),
            (None, None) => write!(f, "~ {kind} {name}"),
        }
    }
}

/// Something that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// The rule.
    pub rule: String,
    /// Who may open: a segment, or members and externals by name.
    pub from: Vec<String>,
    /// To whom.
    pub to: Vec<String>,
    /// What: protocols and ports.
    pub services: Vec<String>,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |names: &[String]| crate::parties::some_of(names, 8);
        let (from, to) = (some(&self.from), some(&self.to));
        write!(f, "{from} -> {to}: {} (rule.{})", some(&self.services), self.rule)
    }
}

/// A gateway for which something changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffectedGateway {
    /// Which one.
    pub id: GatewayId,
    /// Its name.
    pub name: String,
}

/// Recorded traffic that would be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WouldBreak {
    /// Who opens the flows: a device's name, an external's, or an address.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What: a service's name where one fits, and protocol and port.
    pub service: String,
    /// Why it would be dropped, in a sentence.
    pub reason: String,
    /// How many flows were recorded.
    pub flows: u64,
    /// When it was last seen.
    pub last: UnixMillis,
    /// The essential rule that carries it today, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub essential: Option<String>,
    /// The greater criticality of its two ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criticality: Option<Criticality>,
}

impl fmt::Display for WouldBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, service, reason, flows, essential, criticality, .. } = self;
        write!(f, "{from} -> {to}: {service}, {flows} flows recorded.")?;
        if let Some(rule) = essential {
            write!(f, " ESSENTIAL (rule.{rule})")?;
        }
        if *criticality == Some(Criticality::LifeSupport) {
            f.write_str(" LIFE SUPPORT.")?;
        }
        write!(f, " {reason}")
    }
}

/// The digest of the model after a change, with no word of when the change confirmed devices or added clients.
fn timeless(before: &Compiled, after: &Compiled) -> Hash {
    let known = &before.resolved.model;
    let model = &after.resolved.model;
    if model.devices.keys().all(|id| known.devices.contains_key(id))
        && model.clients.keys().all(|id| known.clients.contains_key(id))
    {
        return after.model_hash;
    }
    let mut model = model.clone();
    let devices = model.devices.iter_mut().filter(|(id, _)| !known.devices.contains_key(id));
    devices.for_each(|(_, device)| device.confirmed_at = UnixMillis(0));
    let clients = model.clients.iter_mut().filter(|(id, _)| !known.clients.contains_key(id));
    clients.for_each(|(_, client)| client.added_at = UnixMillis(0));
    Model::hash(&model.encode())
}

impl Plan {
    /// What going from `before` to `after` would do, judged by `evidence` at `now`.
    ///
    /// # Errors
    /// Every problem for which `after`, or `before`, doesn't compile.
    pub fn between(
        base: Base,
        before: &Model,
        after: &Model,
        evidence: &Evidence,
        now: UnixMillis,
    ) -> Result<Self, Problems> {
        // What is in force was compiled once; if this program can't any more, the new model is judged by itself.
        let before = match compile(before) {
            Ok(compiled) => compiled,
            Err(_) => compile(&Model { policy: "format = 1\n".into(), ..before.clone() })?,
        };
        Ok(Self::of(base, &before, &compile(after)?, evidence, now))
    }

    /// As [`Plan::between`], for models that are compiled already.
    #[must_use]
    pub fn of(
        base: Base,
        before: &Compiled,
        after: &Compiled,
        evidence: &Evidence,
        now: UnixMillis,
    ) -> Self {
        // What it does is measured by the modes that devices are in.
        let standing = &evidence.standing;
        let as_it_is = |compiled: &'_ Compiled| {
            let there = (!standing.is_empty()).then(|| standing.apply(&compiled.resolved.model));
            there.and_then(|model| Resolved::new(&model).ok())
        };
        let (old_now, new_now) = (as_it_is(before), as_it_is(after));
        let old = old_now.as_ref().unwrap_or(&before.resolved);
        let new = new_now.as_ref().unwrap_or(&after.resolved);
        let affected = before.affected(after).into_iter().map(|id| {
            let gateway = new.model.gateways.get(&id).or_else(|| old.model.gateways.get(&id));
            let name = gateway.map_or_else(|| id.to_string(), |gateway| gateway.name.to_string());
            AffectedGateway { id, name }
        });
        let (warnings, mut refusals) = judged(old, new, evidence, now);
        let would_break = breaks::between(old, new, &evidence.edges, now);
        if !only_closes(&old.model, &new.model) {
            refusals.extend(would_break.iter().filter_map(breaks::refusal).take(MAX_FINDINGS));
        }
        let mut plan = Self {
            id: Self::id(base, timeless(before, after)),
            base,
            policy: new.model.policy.clone(),
            changes: changes::between(&before.resolved, &after.resolved, standing, now),
            opened: permissions::opened(old, new, now),
            closed: permissions::opened(new, old, now),
            affected: affected.collect(),
            would_break,
            warnings,
            refusals,
            left_out: 0,
        };
        plan.shorten();
        plan
    }

    fn shorten(&mut self) {
        fn cut<T>(list: &mut Vec<T>) -> usize {
            let left_out = list.len().saturating_sub(MAX_LINES);
            list.truncate(MAX_LINES);
            left_out
        }
        self.left_out = cut(&mut self.changes)
            + cut(&mut self.opened)
            + cut(&mut self.closed)
            + some_of_each(&mut self.would_break)
            + cut(&mut self.warnings);
    }

    /// The id of the change from `base` to the model with this digest; devices and clients that the change adds count as added at 0,
    /// so that who makes the same plan a minute later finds the same id.
    #[must_use]
    pub fn id(base: Base, model: Hash) -> Hash {
        Hash::of("anteroom plan", &[base.hash.as_bytes(), model.as_bytes()])
    }

    /// Whether the plan changes nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.affected.is_empty()
    }

    /// Whether nothing stops it: no refusals, or only such as `forced` overrides.
    #[must_use]
    pub fn may_be_applied(&self, forced: bool) -> bool {
        self.refusals.iter().all(|finding| forced && finding.severity == Severity::Refusal)
    }
}

/// Cuts what would break to [`MAX_LINES`], and keeps some of each criticality beside these: whoever asks for one must not be told that
/// nothing of it would break. Gives how many were left out.
fn some_of_each(lines: &mut Vec<WouldBreak>) -> usize {
    let mut kept: BTreeMap<Option<Criticality>, usize> = BTreeMap::new();
    let (all, mut place) = (lines.len(), 0);
    lines.retain(|line| {
        let like_it = kept.entry(line.criticality).or_default();
        let keeps = place < MAX_LINES || *like_it < SOME_LINES;
        place += 1;
        *like_it += usize::from(keeps);
        keeps
    });
    all - lines.len()
}

/// Warnings and refusals. What was so before the change doesn't stop it, and nothing stops a change that only cuts
/// gateways or clients off or quarantines devices.
fn judged(
    before: &Resolved,
    after: &Resolved,
    evidence: &Evidence,
    now: UnixMillis,
) -> (Vec<Finding>, Vec<Finding>) {
    let old = lint(before, evidence, now);
    let closes = only_closes(&before.model, &after.model);
    let (refusals, warnings): (Vec<Finding>, Vec<Finding>) =
        lint_change(Some(&before.model), after, evidence, now).into_iter().partition(|finding| {
            finding.severity != Severity::Warning
                && !closes
                && !old.contains(finding)
                && !was_enforced(&before.model, &after.model, finding)
        });
    let warnings = warnings
        .into_iter()
        .map(|finding| Finding { severity: Severity::Warning, ..finding })
        .collect();
    (warnings, refusals)
}

/// Whether a finding only says that a device isn't ready for enforce, which it was in before: another gateway,
/// port or mainboard doesn't make it begin anew.
fn was_enforced(before: &Model, after: &Model, finding: &Finding) -> bool {
    let readiness = ["observed-too-briefly", "kinds-not-carried"].contains(&finding.code.as_str());
    let device = finding.subject.strip_prefix("device ").and_then(|name| after.device_named(name));
    readiness
        && device
            .and_then(|(id, _)| before.devices.get(&id))
            .is_some_and(|device| device.mode == Mode::Enforce)
}

/// Whether all that changes is gateways and clients that are cut off and devices that are quarantined.
fn only_closes(before: &Model, after: &Model) -> bool {
    let gateways = after.gateways.iter().all(|(id, found)| before.gateways.get(id) == Some(found));
    let devices = after.devices.iter().all(|(id, found)| {
        before.devices.get(id).is_some_and(|device| {
            let closed = found.quarantined || !device.quarantined;
            let same = crate::model::Device { quarantined: device.quarantined, ..found.clone() };
            closed && same == *device
        })
    });
    let clients = after.clients.iter().all(|(id, found)| before.clients.get(id) == Some(found));
    gateways && devices && clients && before.policy == after.policy
}
