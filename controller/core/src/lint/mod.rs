//! What is likely to hurt: warnings, and refusals that stop a plan.

use std::collections::BTreeMap;
use std::fmt;

use anteroom_proto::api::{Edge, SightingRecord};
use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::coverage::Coverage;
use crate::model::Model;
use crate::resolve::Resolved;
use crate::standing::Standing;
use crate::surface::Surfaces;

mod addresses;
mod clients;
mod failure;
mod infrastructure;
mod modes;
mod networks;
mod policy;
mod surface;
#[cfg(test)]
mod tests;
mod tests_in_policy;

pub use modes::OBSERVE_FOR;
pub(crate) use policy::day;
pub use policy::moment;

/// What was seen on the network, for plans and lint to judge by.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evidence {
    /// Recorded traffic.
    pub edges: Vec<Edge>,
    /// Devices as gateways see them.
    pub sightings: Vec<SightingRecord>,
    /// How much was seen of devices that are to be enforced. Of one that isn't in it only how long it is known is looked at.
    pub coverage: BTreeMap<MemberId, Coverage>,
    /// Devices that aren't in the mode that was ordered.
    pub standing: Standing,
    /// How many edges found no room and are in nothing of this, where a device is to be enforced.
    pub turned_away: u64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth a look.
    Warning,
    /// Stops a plan, unless it is forced with a reason.
    Refusal,
    /// Stops a plan, always.
    Error,
}

/// Something that lint found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// A stable word for the kind of finding, such as `observed-too-briefly`.
    pub code: String,
    /// What it is about, such as `device ct-1` or `rule.ct-to-pacs`.
    pub subject: String,
    /// What, and what to do, in sentences.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// Everything worth saying about a model at `now`, worst first. At most [`MAX_FINDINGS`] of each kind.
#[must_use]
pub fn lint(resolved: &Resolved, evidence: &Evidence, now: UnixMillis) -> Vec<Finding> {
    lint_change(None, resolved, evidence, now)
}

/// The same of what `before` is changed to.
#[must_use]
pub fn lint_change(
    before: Option<&Model>,
    resolved: &Resolved,
    evidence: &Evidence,
    now: UnixMillis,
) -> Vec<Finding> {
    let mut findings = Findings::default();
    policy::check(resolved, now, &mut findings);
    tests_in_policy::check(resolved, now, &mut findings);
    addresses::check(resolved, &mut findings);
    networks::check(resolved, &mut findings);
    infrastructure::check(resolved, &mut findings);
    modes::check(before, resolved, evidence, now, &mut findings);
    let surfaces = Surfaces::of(resolved);
    failure::check(resolved, &surfaces, &mut findings);
    surface::check(resolved, &mut findings);
    clients::check(resolved, now, &mut findings);
    let mut list = findings.list;
    list.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    list.dedup();
    list
}

/// Most findings of one kind.
pub const MAX_FINDINGS: usize = 200;

/// Findings so far, bounded kind by kind.
#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<&'static str, usize>,
}

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) {
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= MAX_FINDINGS {
            let (subject, message) = (subject.into(), message.into());
            self.list.push(Finding { severity, code: code.to_owned(), subject, message });
        }
    }
}
